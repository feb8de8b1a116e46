"""A FedAvg round of an MLP by pfl 0.6 and by ours: the same clients, steps, weights; in turn in one process.

100 clients of 320 images of Fashion-MNIST, 10 a round, 2 epochs in batches of 32, SGD at 0.05, one thread, no evaluation.

    ENV/bin/python benchmarks/peers/pfl_fedavg.py [--rounds 10] [--repeats 3]

The environment has SecureFed and `pip install --no-deps pfl==0.6.0`. Prints one JSON line: CPU seconds of a round,
theirs over ours, pair by pair.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

from securefed.assembly import Assembly, assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.federation import Federation
from securefed_benchmarks.mlp_federation import BATCH, COHORT, EPOCHS, JOB, RATE
from securefed_benchmarks.timing import ratio, report

CLIENTS = 100


class Net(nn.Module):
    """The MLP with the two methods that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Any]:
        """The loss, weighted."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl has no types
    """CPU seconds at the end of each round."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Never stops."""
        self.marks.append(time.process_time())
        return False, Metrics()


def theirs(tensors: list[list[torch.Tensor]], rounds: int) -> float:
    """Median CPU seconds of a round; the first is the warm-up."""
    net, clock = Net(), Clock()
    model = PyTorchModel(
        model=net,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    users = FederatedDataset(
        lambda name: Dataset(raw_data=tensors[int(name)], user_id=name),
        get_user_sampler("random", [str(k) for k in range(CLIENTS)]),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds + 1,
            evaluation_frequency=10**6,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=EPOCHS, local_learning_rate=RATE, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
        callbacks=[clock],
    )
    return float(np.median(np.diff(clock.marks)))


def ours(assembly: Assembly, rounds: int, scratch: Path) -> float:
    """CPU seconds of the run over its rounds."""
    scratch.mkdir()
    player = Federation(assembly, scratch, "bench", SystemEntropy())
    began = time.process_time()
    player.play(None)
    player.close()
    return (time.process_time() - began) / rounds


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    assembly = assemble(load_config(JOB | {"rounds": options.rounds}))
    shards = [shard.train for shard in assembly.shards]
    tensors = [[torch.from_numpy(s.images), torch.from_numpy(s.labels)] for s in shards]
    mine, peer = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(options.repeats + 1):
            a, b = (
                ours(assembly, options.rounds, Path(scratch) / str(repeat)),
                theirs(tensors, options.rounds),
            )
            if repeat:  # the first of each warms up
                mine.append(a)
                peer.append(b)
    report(
        "FedAvg round of an MLP beside pfl",
        {"ratio": ratio(peer, mine), "ours_s": round(min(mine), 4), "theirs_s": round(min(peer), 4)},
    )


if __name__ == "__main__":
    main()
