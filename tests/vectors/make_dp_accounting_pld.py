"""Writes dp_accounting_pld.json: epsilons of sampled Gaussians by Google's dp-accounting.

Run in an environment of its own (its pins clash with ours):

    python -m venv oracle && oracle/bin/pip install dp-accounting==0.6.0
    oracle/bin/python tests/vectors/make_dp_accounting_pld.py tests/vectors/dp_accounting_pld.json

Each case holds a list of [noise_multiplier, sample_rate, steps] composed together, delta, and
`pld` (pessimistic, connect-the-dots), `optimistic` (privacy buckets rounded down) and `rdp`.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dp_accounting
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution as pld

SINGLE: list[tuple[float, float, int, float, float]] = [
    # noise_multiplier, sample_rate, steps, delta, discretization interval
    (1.0, 0.01, 1000, 1e-5, 1e-4),
    (0.6, 0.01, 1000, 1e-5, 1e-4),
    (0.5, 0.1, 200, 1e-5, 1e-3),
    (8.0, 0.5, 50, 1e-5, 1e-4),
    (1.0, 0.05, 200, 1e-5, 1e-4),
    (1.0, 0.01, 2000, 1e-6, 1e-4),
    (4.0, 1.0, 50, 1e-5, 1e-4),
    (0.8, 1e-4, 100_000, 1e-8, 1e-5),
    (0.3, 0.05, 500, 1e-5, 1e-3),
    (1.0, 0.01, 1, 1e-5, 1e-5),
    (0.73, 0.135, 63, 1e-5, 1e-4),
    (1.3, 0.135, 63, 1e-5, 1e-4),
    (2.0, 0.135, 63, 1e-6, 1e-4),
    (0.3, 1.0, 1, 1e-5, 1e-4),
    (0.3, 1.0, 30, 1e-6, 1e-3),
    (50.0, 1.0, 1000, 1e-5, 1e-4),
    (50.0, 0.3, 5000, 1e-6, 1e-5),
    (1.5, 0.5, 100, 1e-10, 1e-3),
    (1.0, 0.02, 10, 1e-10, 1e-4),
    (0.7, 1e-3, 5000, 1e-9, 1e-5),
    (0.4, 0.2, 3, 1e-5, 1e-4),
    (0.9, 0.9, 5, 1e-7, 1e-4),
    (3.0, 0.25, 400, 1e-3, 1e-4),
    (0.5, 0.001, 10, 1e-6, 1e-4),
]
MIXED: list[tuple[list[tuple[float, float, int]], float, float]] = [
    ([(1.0, 0.05, 100), (1.5, 0.1, 50)], 1e-5, 1e-4),
    ([(0.8, 0.01, 300), (2.0, 0.5, 20), (4.0, 1.0, 5)], 1e-6, 1e-4),
    ([(0.6 + 0.1 * k, 0.02, 10) for k in range(10)], 1e-5, 1e-4),
]


def plds(events: list[tuple[float, float, int]], interval: float, pessimistic: bool) -> Any:
    """The composed privacy loss distribution, both directions."""
    total = None
    for noise_multiplier, sample_rate, steps in events:
        one = pld.from_gaussian_mechanism(
            noise_multiplier,
            pessimistic_estimate=pessimistic,
            value_discretization_interval=interval,
            sampling_prob=sample_rate,
            use_connect_dots=pessimistic,
        ).self_compose(steps)
        total = one if total is None else total.compose(one)
    return total


def renyi(events: list[tuple[float, float, int]], delta: float) -> float:
    """Epsilon by dp-accounting's RDP accountant."""
    accountant = rdp.RdpAccountant()
    for noise_multiplier, sample_rate, steps in events:
        gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), steps)
    return float(accountant.get_epsilon(delta))


def known_answer(events: list[tuple[float, float, int]], delta: float, interval: float) -> dict[str, Any]:
    """One case; the optimistic estimate uses a finer grid, since rounding losses down is coarse."""
    steps = sum(event[2] for event in events)
    fine = max(interval / max(1.0, math.sqrt(steps) / 4), 4e-6)
    answer = {
        "events": events,
        "delta": delta,
        "interval": interval,
        "pld": plds(events, interval, True).get_epsilon_for_delta(delta),
        "optimistic": plds(events, fine, False).get_epsilon_for_delta(delta),
        "rdp": renyi(events, delta),
    }
    sys.stderr.write(json.dumps(answer) + "\n")
    return answer


def main(path: Path) -> None:
    """Computes every case and writes the file."""
    warnings.simplefilter("ignore")
    cases = [known_answer([(s, q, t)], delta, h) for s, q, t, delta, h in SINGLE]
    cases += [known_answer(events, delta, h) for events, delta, h in MIXED]
    origin = f"dp-accounting {version('dp-accounting')}, tests/vectors/make_dp_accounting_pld.py"
    path.write_text(
        json.dumps({"origin": origin, "relation": "add or remove one", "cases": cases}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
