"""Integer noise by OpenDP's exact discrete Gaussian and by our tables, in one process on one core.

Run in an environment of its own (the wheel is large), from the root of the repository:

    python -m venv peer && peer/bin/pip install opendp==0.16.0 numpy cryptography
    OMP_NUM_THREADS=1 PYTHONPATH=. peer/bin/python benchmarks/peers/opendp_discrete.py

Prints JSON: samples per CPU second of each, the ratio (goal: 50, hoped for: 300), and the time of one
client's noise at d = 1e6. OpenDP samples exactly, ours from tables within 2^-170 of the law, charged to delta.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import opendp.prelude as dp

from securefed.crypto.entropy import SystemEntropy
from securefed.privacy.samplers import discrete_gaussian, skellam


def rate(draw: Callable[[int], Any], n: int, repeats: int) -> float:
    """The best of some repeats, in values per CPU second: other jobs may share the machine."""
    draw(n)
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        draw(n)
        best = min(best, time.process_time() - start)
    return n / best


def opendp_draw(deviation: float) -> Callable[[int], Any]:
    """OpenDP's measurement on a vector of zeros."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    measurement = dp.m.make_gaussian(*space, scale=deviation)
    return lambda n: measurement([0] * n)


def main() -> None:
    """Compares deviations small, usual and large."""
    stream = SystemEntropy().stream("benchmark")
    rows = []
    for deviation in (3.0, 100.0, 300.0, 1e4, 1e6):
        peer = rate(opendp_draw(deviation), 20_000, 3)
        row: dict[str, float] = {"deviation": deviation, "opendp_per_s": round(peer)}
        for name, make in (("discrete_gaussian", discrete_gaussian), ("skellam", skellam)):
            start = time.process_time()
            sampler = make(deviation**2)
            built = time.process_time() - start
            ours = rate(lambda n, s=sampler: s.draw(n, stream), 1_000_000, 5)  # type: ignore[misc]
            row |= {
                f"{name}_per_s": round(ours),
                f"{name}_ratio": round(ours / peer),
                f"{name}_seconds_at_1e6": round(1e6 / ours, 4),
                f"{name}_table_s": round(built, 4),
            }
        rows.append(row)
    json.dump(
        {"opendp": version("opendp"), "machine": platform.processor() or platform.machine(), "rows": rows},
        sys.stdout,
        indent=1,
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
