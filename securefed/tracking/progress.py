"""What a person sees while a run goes: what runs on what with which guarantee, then a line a round."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import IO, Any

from securefed.tracking import plots
from securefed.tracking.numbers import clock, count, mib, score, small, spent
from securefed.tracking.tracker import UNTRAINED, RoundRecord, RunInfo, RunSummary

WIDTHS = {
    "round": 7,
    "phase": 9,
    "train": 8,
    "loss": 7,
    "score": 12,
    "epsilon": 9,
    "up": 10,
    "clients": 9,
    "time": 12,
    "left": 12,
}
"""Columns and their widths; one that this run does not fill is left out."""

RECENT = 5
"""Rounds whose median says how long one takes: a first round with a frozen pass in it says little about the others."""


class ProgressTracker:
    """Aligned lines to a stream; on a terminal a live bar under them shows the round and the time left.

    Args:
        stream: standard output for people; standard error where standard output is for machines.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._ended = time.monotonic()
        self._pace: deque[float] = deque(maxlen=RECENT)
        self._head: tuple[str, ...] = ()
        self._names = {"score": "accuracy", "train": "train"}
        self._bar: Any = None
        self._task: Any = None

    def start(self, info: RunInfo) -> None:
        """Says what runs, on whose data, with which guarantee, and what is easy to reach."""
        data, model = info.dataset, info.model
        self._names["train"] = "train" if info.privacy is None else "train*"
        if info.config.model.task != "classification":
            self._names["score"] = "perplexity"
        self._say(f"{info.name}, run {info.run}, into {info.folder}")
        self._say(
            f"  model    {model['name']}: {model['trainable']:,} of {model['parameters']:,} parameters trained, {info.config.model.adapter}"
        )
        self._say(
            f"  data     {data['name']}: {data['train']:,} records at {count(len(info.shards), 'client')}, {data['test']:,} for testing ({data['licence']})"
        )
        self._say(f"  privacy  {_guarantee(info)}")
        self._say(f"  seen     {_seen(info)}")
        for line in _cost(info):
            self._say(f"  sealed   {line}")
        easy = [
            f"{plots.baseline_name(k)} {v['accuracy']:.3f}"
            for k, v in info.baselines.items()
            if "accuracy" in v
        ]
        if easy:
            self._say(f"  easy     accuracy of {', '.join(easy)}")
        before = info.baselines.get(UNTRAINED, {}).get("perplexity")
        if before is not None:
            self._say(f"  before   perplexity {score(before)}, and no step taken")
        if info.resumed_at is not None:
            self._say(f"going on from round {info.resumed_at + 1}")
        self._ended = time.monotonic()
        if self._stream.isatty():
            self._start_bar(info)

    def round(self, record: RoundRecord) -> None:
        """One line: losses, score, epsilon, bytes, who was missing, time, time left at the pace of the last rounds."""
        if not self._head:
            self._start_table(record)
        now = time.monotonic()
        self._pace.append(now - self._ended)
        self._ended = now
        left = record.rounds - record.round - 1
        # a first round often holds a frozen pass, which no other does
        known = len(self._pace) > 1 or left == 0
        cells = _cells(record, statistics.median_low(self._pace) * left if known else None)
        line = "".join(f"{cells[name]:>{WIDTHS[name]}}" for name in self._head)
        self._say(line + "".join(f"  client {k} refused: {why}" for k, why in record.refused.items()))
        if self._bar is not None:
            self._bar.update(self._task, completed=record.round + 1)

    def end(self, summary: RunSummary) -> None:
        """The final scores and how the run stopped."""
        scores = ", ".join(
            f"{k.replace('_', ' ')} {score(v)}" for k, v in summary.metrics.items() if k != "n"
        )
        self._say(
            f"stopped: {summary.stopped}, after {summary.rounds} rounds and {clock(summary.seconds)}; {mib(summary.mib_up)} sent"
        )
        self._say(f"global test set: {scores}")

    def close(self) -> None:
        """Takes the live bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_table(self, record: RoundRecord) -> None:
        """The heading; what is computed on private data is marked under DP."""
        empty = {"epsilon"} if record.epsilon is None else set()
        if "loss" not in record.diagnostics:
            empty.add("train")
        self._head = tuple(name for name in WIDTHS if name not in empty)
        self._say("".join(f"{self._names.get(name, name):>{WIDTHS[name]}}" for name in self._head))
        if "train" in self._head and self._names["train"] != "train":
            self._say("  * computed on private data, shown in simulations only; a real client never sends it")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
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


def _cells(record: RoundRecord, left: float | None) -> dict[str, str]:
    metrics = record.metrics or {}
    value = next((metrics[n] for n in ("accuracy", "perplexity") if n in metrics), None)
    return {
        "round": f"{record.round + 1}/{record.rounds}",
        "phase": record.phase,
        "train": score(record.diagnostics.get("loss")),
        "loss": score(metrics.get("loss")),
        "score": score(value),
        "epsilon": "" if record.epsilon is None else spent(record.epsilon),
        "up": mib(record.mib_up),
        "clients": f"{len(record.survivors)}/{len(record.cohort)}",
        "time": clock(record.seconds),
        "left": "–" if left is None else clock(left),
    }


def _guarantee(info: RunInfo) -> str:
    p = info.privacy
    if p is None:
        return "none: nothing bounds what an update or the model tells about a record"
    if p["noise_multiplier"] == 0:
        return "NONE: noise multiplier 0 adds no noise, epsilon is infinite; updates are clipped and no more"
    target = f"epsilon {p['epsilon']:g}" if p["epsilon"] is not None else "epsilon follows from the noise"
    config, example = info.config, p["unit"] == "example"
    by_server = not config.distributed and (not example or config.fedsgd)  # fedsgd's noise is one, on the sum
    whose = "each record of each client" if example else "each client"
    whose += ", against all but the server" if by_server else ", against everyone, the server included"
    return f"{target} at delta {small(p['delta'])} for {whose} (noise multiplier {p['noise_multiplier']:.3g})"


def _seen(info: RunInfo) -> str:
    from securefed.registry import algorithm_name, make_protection
    from securefed.tracking.guarantee import seen

    protection = make_protection(info.config.protection)
    sent = seen(protection.reveals, algorithm_name(info.config.algorithm.name))
    return f"the server sees {sent} ({protection.name}); simulated: this process holds all data and keys"


def _cost(info: RunInfo) -> Sequence[str]:
    """What the protection says of this cohort; d is the whole layout, of which a round may share a part."""
    from securefed.registry import make_protection
    from securefed.types import Costed

    protection, config = make_protection(info.config.protection), info.config
    if not isinstance(protection, Costed):
        return ()
    sizes = [int(shard["train"]) for shard in info.shards]
    secret = not config.private and config.weights != "equal"
    n = config.clients_per_round or len(sizes)
    return protection.cost(n, int(info.model["trainable"]), float(max(sizes)) if secret else None)
