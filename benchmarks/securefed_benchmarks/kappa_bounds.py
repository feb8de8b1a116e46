"""How far each rule was led astray, beside the most that is proved: measured kappa and its bound.

Honest rows: standard normal, half of them about another point, or one far out; `--draws` of each. Attacks: a fixed
list, and IPM and ALIE at the strength that hurts the very rule most. The worst is printed with its bound, whose it
is, and the floor that no rule can beat.

    python -m securefed_benchmarks.kappa_bounds --n 17 --f 4 --d 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch

from securefed_attacks import BYZANTINE
from securefed_defenses import AGGREGATORS, ARC, NNM, Median, Pipeline, TrimmedMean
from securefed_defenses.evidence import Kappa, kappa


def rules(f: int) -> dict[str, Any]:
    """Name -> rule for f liars."""
    told = ("krum", "multi_krum", "bulyan", "mda", "trimmed_mean", "mea_med", "caf", "dnc")
    return {
        "mean": AGGREGATORS["mean"](),
        "median": AGGREGATORS["median"](),
        "geometric_median": AGGREGATORS["geometric_median"](max_iter=2000),
        **{name: AGGREGATORS[name](f=f) for name in told},
        "nnm + trimmed_mean": Pipeline((NNM(f=f),), TrimmedMean(f=f)),
        "nnm + krum": Pipeline((NNM(f=f),), AGGREGATORS["krum"](f=f)),
        "arc + median": Pipeline((ARC(f=f),), Median()),
        "arc + nnm + trimmed_mean": Pipeline((ARC(f=f), NNM(f=f)), TrimmedMean(f=f)),
    }


def crowds(h: int, d: int, draws: int) -> Iterator[torch.Tensor]:
    """Honest rows (h, d)."""
    for seed in range(draws):
        g = torch.Generator().manual_seed(seed)
        ball = torch.randn(h, d, generator=g)
        yield ball
        camps = ball.clone()
        camps[: h // 2] += 2 * torch.randn(1, d, generator=g)
        yield camps
        apart = ball.clone()
        apart[0] *= 10
        yield apart + 0.5


def attacks(rule: Any) -> dict[str, Any]:
    """Name -> attack, the searched ones against this rule."""
    fixed: dict[str, Any] = {
        "sign_flip": BYZANTINE["sign_flip"](),
        "ipm(0.5)": BYZANTINE["ipm"](tau=0.5),
        "ipm(10)": BYZANTINE["ipm"](tau=10.0),
        "alie(1.5)": BYZANTINE["alie"](tau=1.5),
        "mimic": BYZANTINE["mimic"](target=0),
        "min_max": BYZANTINE["min_max"](),
        "min_sum": BYZANTINE["min_sum"](),
    }
    searched = {
        f"optimal {name}": BYZANTINE["optimal"](attack=BYZANTINE[name](), aggregator=rule)
        for name in ("ipm", "alie")
    }
    return {**fixed, **searched}


def worst(rule: Any, h: int, f: int, d: int, draws: int) -> tuple[Kappa, str]:
    """The largest measurement and the attack that made it."""
    found: list[tuple[Kappa, str]] = []
    for honest in crowds(h, d, draws):
        for name, attack in attacks(rule).items():
            found.append((kappa(rule, honest, attack(honest, f)), name))
    return max(found, key=lambda one: one[0].measured)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--n", type=int, default=17)
    parser.add_argument("--f", type=int, default=4)
    parser.add_argument("--d", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    n, f = args.n, args.f
    sys.stdout.write(
        f"n={n} f={f} d={args.d}; no rule's bound is below f / (n - 2f) = {f / (n - 2 * f):.3f}\n\n"
    )
    sys.stdout.write("| rule | worst measured | by | bound | whose |\n| --- | --- | --- | --- | --- |\n")
    for name, rule in rules(f).items():
        if hasattr(rule, "least") and n < rule.least(f):
            sys.stdout.write(f"| {name} | needs n >= {rule.least(f)} | | | |\n")
            continue
        one, by = worst(rule, n - f, f, args.d, args.draws)
        limit = "none known" if one.bound is None else f"{one.bound:.2f}"
        sys.stdout.write(f"| {name} | {one.measured:.3f} | {by} | {limit} | {one.source or ''} |\n")


if __name__ == "__main__":
    main()
