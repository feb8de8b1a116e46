"""FedAvg of an MLP on Fashion-MNIST beside a hand-written loop that does the same sums, and the engine's own cost.

100 clients of 320 images, 10 a round, batch 32, 2 epochs = 20 steps of SGD, one thread, no evaluation.
Both sides start from the same model, use the same shards and average with the same weights.

    python -m securefed_benchmarks.mlp_federation
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed_benchmarks.timing import ratio, report

if TYPE_CHECKING:
    import torch

    from securefed.assembly import Assembly

ROUNDS, COHORT, BATCH, EPOCHS, RATE, REPEATS = 10, 10, 32, 2, 0.05, 4
JOB: dict[str, Any] = {
    "name": "mlp",
    "rounds": ROUNDS,
    "clients_per_round": COHORT,
    "data": {"name": "fashion-mnist", "clients": 100, "partition": "iid", "limit": 32_000},
    "model": {"name": "mlp", "adapter": "full"},
    "train": {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "engine": {"threads": 1},
}


def hand_written(
    assembly: Assembly, tensors: list[tuple[torch.Tensor, torch.Tensor]], rounds: int
) -> list[float]:
    """Seconds a round of the least a FedAvg simulation can do: the same local SGD, the same weighted mean."""
    import torch
    from torch import nn

    images = assembly.dataset.train.images
    assert images is not None
    net = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, 128), nn.ReLU(), nn.Linear(128, 10))
    flat = nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    rng = np.random.default_rng(0)
    loss = nn.CrossEntropyLoss()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        vectors, weights = [], []
        for client in rng.choice(len(tensors), COHORT, replace=False):
            x, y = tensors[int(client)]
            nn.utils.vector_to_parameters(torch.from_numpy(flat), net.parameters())
            optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
            for _ in range(EPOCHS):
                for i in range(0, len(x), BATCH):
                    optimizer.zero_grad()
                    loss(net(x[i : i + BATCH]), y[i : i + BATCH]).backward()
                    optimizer.step()
            vectors.append(nn.utils.parameters_to_vector(net.parameters()).detach().numpy())
            weights.append(len(x))
        flat = np.average(np.stack(vectors), axis=0, weights=weights).astype(np.float32)
        seconds.append(time.perf_counter() - began)
    return seconds


def rounds_of(folder: Path) -> list[dict[str, float]]:
    """The rounds on record of a finished run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Prints two JSON lines: the ratio to the loop, and the engine's milliseconds a round."""
    import torch

    from securefed.assembly import assemble
    from securefed.config import load_config
    from securefed.crypto.entropy import SystemEntropy
    from securefed.federation import Federation

    torch.set_num_threads(1)
    assembly = assemble(load_config(JOB))
    tensors = []
    for shard in assembly.shards:
        assert shard.train.images is not None
        assert shard.train.labels is not None
        tensors.append((torch.from_numpy(shard.train.images), torch.from_numpy(shard.train.labels)))
    ours: list[float] = []
    overheads: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(REPEATS + 1):
            folder = Path(scratch) / str(repeat)
            folder.mkdir()
            player = Federation(assembly, folder, f"bench {repeat} {time.time_ns()}", SystemEntropy())
            player.play(None)
            player.close()
            loop = hand_written(assembly, tensors, ROUNDS)
            if repeat:  # the first of each warms up
                found = rounds_of(folder)
                ours.append(statistics.median(r["seconds"] for r in found))
                overheads += [r["seconds"] - r["train_seconds"] for r in found]
                theirs.append(statistics.median(loop))
    report(
        "MLP round against a hand-written loop's",
        {
            "ratio": ratio(ours, theirs),
            "loop_s_per_round": round(min(theirs), 4),
            "ours_s_per_round": round(min(ours), 4),
        },
    )
    report(
        "engine overhead per round, 10 clients",
        {
            "ms_median": round(1e3 * statistics.median(overheads), 2),
            "ms_min": round(1e3 * min(overheads), 2),
            "ms_max": round(1e3 * max(overheads), 2),
        },
    )


if __name__ == "__main__":
    main()
