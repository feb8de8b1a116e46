"""A FedAvg round of an MLP by pfl 0.6 and by ours: the same clients, steps, weights; in turn in one process.

100 clients of 320 images of Fashion-MNIST, 10 a round, 2 epochs in batches of 32, SGD at 0.05, one thread, no evaluation.

    ENV/bin/python benchmarks/peers/pfl_fedavg.py [--rounds 10] [--repeats 3]

The environment has SecureFed and `pip install --no-deps pfl==0.6.0`. Prints one JSON line: CPU seconds of a round (the median
of all but the first, from mark to mark, so that neither side's start-up is in it) and of a whole run with each side's own
start-up and end, the model and the data being there; theirs over ours, pair by pair.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
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


@dataclass(frozen=True)
class Took:
    """CPU seconds of a median round after the first, and of the whole run."""

    round: float
    run: float

    @classmethod
    def of(cls, play: Callable[[], Any], marks: list[float]) -> Took:
        """Plays a run that notes the end of each round."""
        began = time.process_time()
        play()
        whole = time.process_time() - began
        return cls(float(np.median(np.diff(marks))), whole)


def theirs(tensors: list[list[torch.Tensor]], rounds: int) -> Took:
    """A run by pfl."""
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
    algorithm = NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=10**6,
        train_cohort_size=COHORT,
        val_cohort_size=0,
    )

    def play() -> None:
        FederatedAveraging().run(
            algorithm_params=algorithm,
            backend=SimulatedBackend(training_data=users, val_data=users),
            model=model,
            model_train_params=NNTrainHyperParams(
                local_num_epochs=EPOCHS, local_learning_rate=RATE, local_batch_size=BATCH
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
            callbacks=[clock],
        )

    return Took.of(play, clock.marks)


class OurClock:
    """The same of a run by ours."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def start(self, info: RunInfo) -> None:
        """Nothing to note."""

    def round(self, record: RoundRecord) -> None:
        """Notes the end of a round."""
        self.marks.append(time.process_time())

    def end(self, summary: RunSummary) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to close."""


def ours(assembly: Assembly, scratch: Path) -> Took:
    """A run by ours: ledger, checkpoints, records, a last evaluation on the test set and the report in the whole."""
    scratch.mkdir()
    clock = OurClock()

    def play() -> None:
        player = Federation(assembly, scratch, "bench", SystemEntropy())
        player.play(None, [clock])
        player.close()

    return Took.of(play, clock.marks)


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    assembly = assemble(load_config(JOB | {"rounds": options.rounds + 1}))  # the first is the warm-up
    shards = [shard.train for shard in assembly.shards]
    tensors = [[torch.from_numpy(s.images), torch.from_numpy(s.labels)] for s in shards]
    mine, peer = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(options.repeats + 1):
            pair = ours(assembly, Path(scratch) / str(repeat)), theirs(tensors, options.rounds + 1)
            if repeat:  # the first of each warms up
                mine.append(pair[0])
                peer.append(pair[1])
    report(
        "FedAvg round of an MLP beside pfl",
        {
            "ratio": ratio([t.round for t in peer], [t.round for t in mine]),
            "ratio_of_runs": ratio([t.run for t in peer], [t.run for t in mine]),
            "ours_s": round(min(t.round for t in mine), 4),
            "theirs_s": round(min(t.round for t in peer), 4),
            "ours_run_s": round(min(t.run for t in mine), 3),
            "theirs_run_s": round(min(t.run for t in peer), 3),
        },
    )


if __name__ == "__main__":
    main()
