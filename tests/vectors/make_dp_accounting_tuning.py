"""Writes dp_accounting_tuning.json: epsilons of best-of-many searches by Google's dp-accounting.

Run in an environment of its own (its pins clash with ours):

    python -m venv oracle && oracle/bin/pip install dp-accounting==0.6.0
    oracle/bin/python tests/vectors/make_dp_accounting_tuning.py tests/vectors/dp_accounting_tuning.json

Each case holds one trial as [noise_multiplier, sample_rate, steps], the mean and the shape of the number of
trials (shape null: Poisson), delta, and `rdp`, with the orders that the file lists.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from dp_accounting import dp_event, rdp

ORDERS = [
    *(1 + k / 20 for k in range(1, 20)),
    *(2 + k / 10 for k in range(90)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1000),
]
TRIALS = [(4.0, 1.0, 1), (20.0, 1.0, 50), (1.0, 0.01, 1000), (1.2, 0.05, 200)]
COUNTS = [
    (1.0, 1.0),
    (10.0, 0.0),
    (10.0, 1.0),
    (10.0, 0.5),
    (30.0, 2.0),
    (100.0, 0.0),
    (10.0, math.inf),
    (60.0, math.inf),
]
DELTAS = [1e-5, 1e-8]


def known_answer(trial: tuple[float, float, int], mean: float, shape: float, delta: float) -> float:
    """Epsilon by dp-accounting's RDP accountant at our orders."""
    noise_multiplier, sample_rate, steps = trial
    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    step = dp_event.PoissonSampledDpEvent(sample_rate, gaussian)
    accountant = rdp.RdpAccountant(ORDERS)
    run = dp_event.SelfComposedDpEvent(step, steps)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(run, mean, shape))
    return float(accountant.get_epsilon(delta))


def main(path: Path) -> None:
    """Computes every case and writes the file."""
    warnings.simplefilter("ignore")
    cases = [
        {
            "trial": trial,
            "mean": mean,
            "shape": None if math.isinf(shape) else shape,
            "delta": delta,
            "rdp": known_answer(trial, mean, shape, delta),
        }
        for trial, (mean, shape), delta in itertools.product(TRIALS, COUNTS, DELTAS)
    ]
    origin = f"dp-accounting {version('dp-accounting')}, tests/vectors/make_dp_accounting_tuning.py"
    path.write_text(json.dumps({"origin": origin, "orders": ORDERS, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
