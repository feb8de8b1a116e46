"""FedAvg of an MLP in Flower's simulation (Ray): so many rounds, then the end.

    ENV/bin/python benchmarks/peers/flower_fedavg.py SHARDS.npz ROUNDS ACTORS

The environment has flwr 1.41, ray and torch, and nothing of SecureFed. `SHARDS.npz` holds `images` (n, k, 1, 28, 28) and
`labels` (n, k) of n clients. Each of ROUNDS rounds takes ten clients, two epochs in batches of 32, SGD at 0.05, one thread,
no evaluation; an actor is a process with one of ACTORS cores, which reads the shards once. Prints a line `mark`
before the first round and at the end of each. Actors find the model and the shards by importing this file, so its folder is on PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",
)
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

COHORT, BATCH, EPOCHS, RATE = 10, 32, 2, 0.05


def net() -> nn.Module:
    """The MLP."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


class Site:
    """What an actor keeps between clients: the model and everybody's shard."""

    def __init__(self, path: str) -> None:
        torch.set_num_threads(1)
        found = np.load(path)
        self.images, self.labels = torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])
        self.model = net()

    def train(self, flat: Any, client: int) -> tuple[Any, int]:
        """One client's turn: (its vector, its records)."""
        x, y = self.images[client], self.labels[client]
        nn.utils.vector_to_parameters(torch.from_numpy(np.array(flat)), self.model.parameters())
        optimizer, loss = torch.optim.SGD(self.model.parameters(), lr=RATE), nn.CrossEntropyLoss()
        for _ in range(EPOCHS):
            for i in range(0, len(x), BATCH):
                optimizer.zero_grad()
                loss(self.model(x[i : i + BATCH]), y[i : i + BATCH]).backward()
                optimizer.step()
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().numpy(), len(x)


@lru_cache(maxsize=1)
def site(path: str) -> Site:
    """This process' own: a function that Ray carries by value would read the shards at every turn."""
    return Site(path)


def play(shards: str, rounds: int, actors: int) -> None:
    """The whole simulation."""
    clients = len(np.load(shards)["labels"])
    server, client = ServerApp(), ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        import flower_fedavg

        mine = flower_fedavg.site(shards)
        flat, n = mine.train(message.content["arrays"]["w"].numpy(), int(context.node_config["partition-id"]))
        content = RecordDict(
            {"arrays": ArrayRecord({"w": Array(flat)}), "metrics": MetricRecord({"num-examples": n})}
        )
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        flat = nn.utils.parameters_to_vector(net().parameters()).detach().numpy()
        strategy = FedAvg(
            fraction_train=COHORT / clients,
            fraction_evaluate=0.0,
            min_train_nodes=COHORT,
            min_available_nodes=clients,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord({"w": Array(flat)}),
            num_rounds=rounds,
            timeout=600,
            evaluate_fn=lambda round, arrays: print("mark", flush=True),
        )

    run_simulation(
        server,
        client,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": actors, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    play(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
