"""What one record can have met over many runs that divided the same data differently.

Pure functions; the argument for their soundness is in `worst_cases`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from securefed.privacy.events import Event, SampledGaussian, merge

MOST_CASES = 64

Exposure = tuple[Event, ...]
"""Merged events that one record (or client) may have met."""


def per_shard(runs: Iterable[Mapping[str, Sequence[Event]]]) -> dict[str, Exposure]:
    """Exposure of each shard over runs with the same partition; each maps shard digest -> its events."""
    total: dict[str, list[Event]] = {}
    for run in runs:
        for shard, events in run.items():
            total.setdefault(shard, []).extend(events)
    return {shard: merge(events) for shard, events in total.items()}


def worst_cases(partitions: Sequence[Iterable[Exposure]]) -> list[Exposure]:
    """Exposures such that every record's true exposure is contained in one of them.

    In a partition into disjoint shards a record lies in at most one shard, so within the runs of that
    partition it met that shard's events and no others. Over several partitions it lies in one shard of
    each, and which combination is unknown: so every combination is a case. A shard whose events are
    contained in another's is left out, since spending grows with events. Beyond `MOST_CASES`
    combinations, partitions with the most choices get one case that stands for all their shards: of
    each kind of event, the most that any shard met.
    """
    choices = [_maximal(exposures) for exposures in partitions]
    while math.prod(len(c) for c in choices) > MOST_CASES:
        largest = max(range(len(choices)), key=lambda k: len(choices[k]))
        choices[largest] = [_envelope(choices[largest])]
    return [merge(itertools.chain.from_iterable(case)) for case in itertools.product(*choices)]


def _kinds(exposure: Exposure) -> dict[Event, int]:
    """Kind of event (steps taken out) -> steps; kinds that have no steps count 1."""
    return {_kind(event): event.steps if isinstance(event, SampledGaussian) else 1 for event in exposure}


def _kind(event: Event) -> Event:
    return replace(event, steps=1) if isinstance(event, SampledGaussian) else event


def _contains(larger: Exposure, smaller: Exposure) -> bool:
    most = _kinds(larger)
    return all(most.get(kind, 0) >= steps for kind, steps in _kinds(smaller).items())


def _maximal(exposures: Iterable[Exposure]) -> list[Exposure]:
    distinct = list(dict.fromkeys(exposures)) or [()]
    return [e for e in distinct if not any(o != e and _contains(o, e) for o in distinct)]


def _envelope(exposures: Sequence[Exposure]) -> Exposure:
    most: dict[Event, int] = {}
    for exposure in exposures:
        for kind, steps in _kinds(exposure).items():
            most[kind] = max(most.get(kind, 0), steps)
    return merge(replace(k, steps=t) if isinstance(k, SampledGaussian) else k for k, t in most.items())
