"""Timing that survives a noisy machine: variants in turn in one process, ratios pair by pair."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def alternate(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each variant, `repeats` times in turn (A B A B ...) after one warm-up of each.

    `clock = time.process_time` counts this process' own CPU seconds, where others use the machine too.
    """
    for play in variants.values():
        play()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, play in variants.items():
            start = clock()
            play()
            seconds[name].append(clock() - start)
    return seconds


def per_record(plays: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each play over the records that it met (which it gives), in turn; the first of each warms up."""
    found: dict[str, list[float]] = {name: [] for name in plays}
    for repeat in range(repeats + 1):
        for name, play in plays.items():
            began = time.process_time()
            seen = play()
            if repeat:
                found[name].append((time.process_time() - began) / seen)
    return found


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the pairwise ratios, rounded to three places."""
    pairs = [a / b for a, b in zip(over, under, strict=True)]
    found = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    return {k: round(v, 3) for k, v in found.items()}


def report(name: str, facts: Mapping[str, Any]) -> None:
    """One JSON line: the figure, what it was measured on, and how."""
    import torch

    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"benchmark": name, **facts, **machine}))
