"""FedAvg of an MLP on Fashion-MNIST beside a hand-written loop that does the same sums, and the engine's own cost.

100 clients of 320 images, 10 a round, batch 32, 2 epochs = 20 steps of SGD, one thread, no evaluation.
Both sides start from the same model, use the same shards and average with the same weights.

    python -m securefed_benchmarks.mlp_federation
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed_benchmarks.timing import alternate, ratio, report

if TYPE_CHECKING:
    import torch

    from securefed.assembly import Assembly

ROUNDS, COHORT, BATCH, EPOCHS, RATE = 10, 10, 32, 2, 0.05
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


def hand_written(assembly: Assembly, tensors: list[tuple[torch.Tensor, torch.Tensor]], rounds: int) -> None:
    """The least a FedAvg simulation can do: the same local SGD and the same weighted mean, nothing else."""
    import torch
    from torch import nn

    images = assembly.dataset.train.images
    assert images is not None
    net = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, 128), nn.ReLU(), nn.Linear(128, 10))
    flat = nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
    rng = np.random.default_rng(0)
    loss = nn.CrossEntropyLoss()
    for _ in range(rounds):
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


def engine_overhead(folder: Path) -> list[float]:
    """Seconds of each round of a finished run that were not spent in local training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] - line["train_seconds"] for line in lines]


def main() -> None:
    """Prints two JSON lines: the ratio to the loop, and the engine's milliseconds a round."""
    import torch

    from securefed.assembly import assemble
    from securefed.config import load_config
    from securefed.crypto.entropy import SystemEntropy
    from securefed.federation import Federation
    from securefed.tracking.folder import FolderTracker

    torch.set_num_threads(1)
    assembly = assemble(load_config(JOB))
    tensors = []
    for shard in assembly.shards:
        assert shard.train.images is not None
        assert shard.train.labels is not None
        tensors.append((torch.from_numpy(shard.train.images), torch.from_numpy(shard.train.labels)))
    overheads: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = iter(Path(scratch) / str(i) for i in range(1_000))

        def federation() -> None:
            folder = next(folders)
            folder.mkdir()
            player = Federation(assembly, folder, "bench", SystemEntropy(), FolderTracker(folder))
            player.play(None, None)
            player.close()
            overheads.extend(engine_overhead(folder)[1:])

        seconds = alternate(
            {"federation": federation, "loop": lambda: hand_written(assembly, tensors, ROUNDS)}
        )
    report(
        "mlp federation against a hand-written loop",
        {
            "ratio": ratio(seconds["federation"], seconds["loop"]),
            "loop_s_per_round": round(min(seconds["loop"]) / ROUNDS, 4),
            "note": "the federation's time includes start, checkpoints, result folder and its report",
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
