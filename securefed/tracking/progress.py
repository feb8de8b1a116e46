"""What a person sees while a run goes: what runs on what with which guarantee, then a line a round."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary


class ProgressTracker:
    """Lines to a stream; on a terminal a live bar under them shows the round and the time left.

    Args:
        stream: standard output for people; standard error where standard output is for machines.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._began = time.monotonic()
        self._first: int | None = None
        self._bar: Any = None
        self._task: Any = None

    def start(self, info: RunInfo) -> None:
        """Says what runs, on whose data, with which guarantee."""
        data, model = info.dataset, info.model
        self._say(
            f"{info.name}: {model['name']}, {model['trainable']:,} of {model['parameters']:,} parameters trained"
        )
        self._say(
            f"data: {data['name']}, {data['train']:,} records at {len(info.shards)} clients, {data['test']:,} for testing"
        )
        self._say(f"privacy: {_guarantee(info)}")
        for name, scores in info.baselines.items():
            if "accuracy" in scores:
                self._say(f"  baseline {name.replace('_', ' ')}: accuracy {scores['accuracy']:.3f}")
        if info.resumed_at is not None:
            self._say(f"going on from round {info.resumed_at + 1}")
        self._began = time.monotonic()
        if self._stream.isatty():
            self._start_bar(info)

    def round(self, record: RoundRecord) -> None:
        """One line: scores, epsilon, bytes, who was missing, time, time left."""
        if self._first is None:
            self._first = record.round
        done = record.round - self._first + 1
        left = (time.monotonic() - self._began) / done * (record.rounds - record.round - 1)
        parts = [f"round {record.round + 1:>{len(str(record.rounds))}}/{record.rounds} {record.phase:<4}"]
        if "loss" in record.diagnostics:
            parts.append(f"train loss {record.diagnostics['loss']:.3f}")
        for name in ("accuracy", "perplexity"):
            if record.metrics and name in record.metrics:
                parts.append(f"{name} {record.metrics[name]:.3f}")
        if record.epsilon is not None:
            parts.append(f"epsilon {record.epsilon:.2f}")
        parts.append(f"up {record.mib_up:.2f} MiB")
        missing = len(record.cohort) - len(record.survivors)
        if missing:
            parts.append(f"{missing} of {len(record.cohort)} clients missing")
        parts.append(f"{record.seconds:.1f} s, {_clock(left)} left")
        self._say("  ".join(parts))
        if self._bar is not None:
            self._bar.update(self._task, completed=record.round + 1)

    def end(self, summary: RunSummary) -> None:
        """The final scores and how the run stopped."""
        scores = ", ".join(f"{k} {v:.3f}" for k, v in summary.metrics.items() if k != "n")
        self._say(
            f"stopped by {summary.stopped} after {summary.rounds} rounds and {_clock(summary.seconds)}: {scores}"
        )

    def close(self) -> None:
        """Takes the live bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def _start_bar(self, info: RunInfo) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=self._stream), transient=True)
        self._task = self._bar.add_task("rounds", total=info.config.rounds, completed=info.resumed_at or 0)
        self._bar.start()


def _guarantee(info: RunInfo) -> str:
    if info.privacy is None:
        return "none: updates travel in the clear and nothing bounds what they tell"
    p = info.privacy
    target = f"epsilon {p['epsilon']:g}" if p["epsilon"] is not None else "epsilon follows from the noise"
    whose = (
        "per record of each client, against everyone"
        if p["unit"] == "example"
        else "per client, against all but the server"
    )
    return f"{target} at delta {p['delta']:g}, {whose}; noise multiplier {p['noise_multiplier']:.3f}"


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
