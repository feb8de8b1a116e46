"""A round of FedAvg in Flower's simulation beside ours: the same MLP, clients, steps and weights.

100 clients of 320 images of Fashion-MNIST, 10 a round, 2 epochs in batches of 32, SGD at .05, one thread a process, no
evaluation. Flower's simulation is many processes (Ray's own, and an actor a core), so each side is a command of its own, and the CPU
seconds of all that it starts are read at the end of each round. Both sides in turn, the first pair to warm up.

    python -m securefed_benchmarks.fedavg_vs_flower --flower ENV/bin/python [--rounds 20] [--repeats 3]

ENV has flwr 1.41, ray and torch, and nothing of SecureFed (`peers/flower_fedavg.py`). Linux.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed_benchmarks.mlp_federation import JOB
from securefed_benchmarks.process_tree import MARK, Marks, watched
from securefed_benchmarks.timing import ratio, report

if TYPE_CHECKING:
    from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary

THEIRS = Path(__file__).parents[1] / "peers" / "flower_fedavg.py"


class Marking:
    """A tracker that says where the rounds begin and end."""

    def start(self, info: RunInfo) -> None:
        """Before the first round."""
        print(MARK, flush=True)

    def round(self, record: RoundRecord) -> None:
        """After each."""
        print(MARK, flush=True)

    def end(self, summary: RunSummary) -> None:
        """Nothing to say."""

    def close(self) -> None:
        """Nothing to close."""


def play(rounds: int, cores: int) -> None:
    """A run by ours, in this process or with a worker a core, ledger, checkpoints and records included."""
    import securefed as sf

    engine = {"threads": 1, "workers": 0 if cores == 1 else cores}
    job = JOB | {"rounds": rounds, "tracking": {"report": False}, "engine": engine}
    with tempfile.TemporaryDirectory() as scratch:
        sf.run(job, folder=Path(scratch) / "run", trackers=[Marking()])


def shards(folder: Path) -> Path:
    """Everybody's records in a file, as ours cuts them."""
    from securefed.assembly import assemble
    from securefed.config import load_config

    held = [shard.train for shard in assemble(load_config(JOB)).shards]
    images = [s.images for s in held if s.images is not None]
    labels = [s.labels for s in held if s.labels is not None]
    file = folder / "shards.npz"
    np.savez(file, images=np.stack(images), labels=np.stack(labels))
    return file


def compared(flower: str, file: Path, rounds: int, cores: int, repeats: int) -> dict[str, Any]:
    """Both sides in turn."""
    mine: list[Marks] = []
    peer: list[Marks] = []
    own = [sys.executable, "-m", "securefed_benchmarks.fedavg_vs_flower", "--cores", str(cores)]
    for _ in range(repeats + 1):
        mine.append(watched([*own, "--play", str(rounds)]))
        paths = {"PYTHONPATH": str(THEIRS.parent)}
        peer.append(watched([flower, str(THEIRS), str(file), str(rounds), str(cores)], paths))
    mine, peer = mine[1:], peer[1:]
    return {
        "ratio": ratio([m.round_cpu for m in peer], [m.round_cpu for m in mine]),
        "ratio_by_clock": ratio([m.round_clock for m in peer], [m.round_clock for m in mine]),
        "ours_cpu_s": round(min(m.round_cpu for m in mine), 4),
        "theirs_cpu_s": round(min(m.round_cpu for m in peer), 4),
        "ours_to_the_first_round_s": round(statistics.median(m.clock[0] for m in mine), 2),
        "theirs_to_the_first_round_s": round(statistics.median(m.clock[0] for m in peer), 2),
    }


def main() -> None:
    """Prints a JSON line for one process that trains and one for two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flower", help="a Python that has flwr, ray and torch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--play", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play:
        play(asked.play, asked.cores[0])
        return
    if asked.rounds < 3:
        parser.error(f"--rounds {asked.rounds}: the first starts what the others use; ask for 3 or more")
    if asked.flower is None:
        parser.error("--flower PYTHON: an environment with flwr, ray and torch")
    with tempfile.TemporaryDirectory() as scratch:
        file = shards(Path(scratch))
        for cores in asked.cores:
            facts = compared(asked.flower, file, asked.rounds, cores, asked.repeats)
            report(f"FedAvg round of an MLP beside Flower's simulation, {cores} at a time", facts)


if __name__ == "__main__":
    main()
