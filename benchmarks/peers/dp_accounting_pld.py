"""The epsilon of DP-SGD by Google's dp-accounting and by ours: the same events, values and CPU time side by side.

    ENV/bin/python benchmarks/peers/dp_accounting_pld.py [--repeats 3]

The environment has SecureFed and `pip install --no-deps dp-accounting==0.6.0` with attrs, dm-tree and mpmath. Prints
one JSON line a mechanism: epsilon by both (by PLD and by RDP) and CPU seconds, theirs over ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version

from dp_accounting import dp_event, pld
from dp_accounting.rdp import rdp_privacy_accountant

from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed_benchmarks.timing import ratio, report

DELTA = 1e-5
CASES = ((1.0, 0.01, 1000), (2.0, 0.1, 300), (0.8, 0.001, 10_000), (5.0, 1.0, 50))
"""(noise multiplier, sample rate, steps)"""


def theirs(noise: float, rate: float, steps: int, kind: str) -> float:
    """Epsilon by the peer; its PLD in its default steps of 1e-4."""
    accountant = pld.PLDAccountant() if kind == "pld" else rdp_privacy_accountant.RdpAccountant()
    one = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    accountant.compose(dp_event.SelfComposedDpEvent(one, steps))
    return float(accountant.get_epsilon(DELTA))


def ours(noise: float, rate: float, steps: int, kind: str) -> float:
    """Epsilon by this project, as `securefed epsilon` states it."""
    return epsilon_of([SampledGaussian(noise, rate, steps)], DELTA, kind)  # type: ignore[arg-type]  # a literal


def cpu(play: Callable[[], float]) -> tuple[float, float]:
    """(CPU seconds, the value)."""
    began = time.process_time()
    value = play()
    return time.process_time() - began, value


def pair(
    case: tuple[float, float, int], kind: str, repeat: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both sides once, (CPU seconds, epsilon) each; a noise of its own each time, since ours remembers answers."""
    noise, rate, steps = case[0] * (1 + 1e-4 * repeat), case[1], case[2]
    return cpu(lambda: theirs(noise, rate, steps, kind)), cpu(lambda: ours(noise, rate, steps, kind))


def main() -> None:
    """Prints one JSON line a mechanism and accountant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for kind in ("pld", "rdp"):
        for case in CASES:
            pairs = [pair(case, kind, repeat) for repeat in range(repeats + 1)][
                1:
            ]  # the first of each warms up
            (_, their_value), (_, our_value) = pairs[-1]
            report(
                "epsilon beside dp-accounting",
                {
                    "accountant": kind,
                    "noise_rate_steps": case,
                    "ratio": ratio([a for (a, _), _ in pairs], [b for _, (b, _) in pairs]),
                    "ours": round(our_value, 5),
                    "theirs": round(their_value, 5),
                    "ours_over_theirs": round(our_value / their_value, 6),
                    "dp_accounting": version("dp-accounting"),
                },
            )


if __name__ == "__main__":
    main()
