"""Kappa and the breakdown fraction measure what their definitions say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from securefed_defenses import CAF, NNM, Bucketing, Krum, Mean, Median, Pipeline, TrimmedMean
from securefed_defenses.evidence import breakdown_fraction, kappa, published_bound


def far(honest: torch.Tensor, f: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return honest.mean(0) + torch.full((f, honest.shape[1]), 1e6, dtype=honest.dtype)


def nan(honest: torch.Tensor, f: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.full((f, honest.shape[1]), torch.nan, dtype=honest.dtype)


def rows(n: int = 11) -> torch.Tensor:
    return torch.randn(n, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_kappa_of_a_worked_example() -> None:
    """Honest 0 and 2: mean 1, variance 1. With a lie at 7 the mean is 3, at squared distance 4."""
    found = kappa(Mean(), torch.tensor([[0.0], [2.0]]), torch.tensor([[7.0]]))
    assert (found.measured, found.bound, found.floor, found.n, found.f) == (4.0, None, 1.0, 3, 1)


def test_honest_rows_that_are_all_equal_have_kappa_zero_or_infinity() -> None:
    same = torch.ones(3, 2)
    assert kappa(Median(), same, torch.zeros(1, 2)).measured == 0.0
    assert kappa(Mean(), same, torch.zeros(1, 2)).measured == math.inf


@pytest.mark.parametrize(
    ("rule", "bound"),
    [
        (TrimmedMean(f=2), 6 * (2 / 7) * (1 + 2 / 7)),
        (TrimmedMean(f=1), None),  # told of fewer liars than there are
        (TrimmedMean(f=3), None),
        (Median(), 4 * (9 / 7) ** 2),
        (Pipeline((NNM(f=2),), Median()), 8 * 2 / 9 * (4 * (9 / 7) ** 2 + 1)),
        (Pipeline((NNM(f=1),), Median()), None),
        (Krum(f=2), None),
        (CAF(f=2), None),
        (Mean(), None),
    ],
)
def test_the_published_bounds_are_those_of_the_table(rule: Any, bound: float | None) -> None:
    assert published_bound(rule, 11, 2) == (None if bound is None else pytest.approx(bound))
    assert published_bound(rule, 4, 2) is None


@pytest.mark.parametrize(
    ("rule_of_f", "tolerated", "refused"),
    [
        (lambda f: Mean(), 0, False),
        (lambda f: Median(), 5, False),
        (lambda f: TrimmedMean(f=2), 2, False),
        (lambda f: TrimmedMean(f=f), 5, True),
        (lambda f: Krum(f=f), 4, True),
        (lambda f: Pipeline((NNM(f=f),), TrimmedMean(f=f)), 5, True),
    ],
)
def test_bisection_finds_where_each_rule_breaks(rule_of_f: Any, tolerated: int, refused: bool) -> None:
    found = breakdown_fraction(rule_of_f, far, rows())
    assert (found.tolerated, found.refused) == (tolerated, refused)
    assert found.fraction == tolerated / 11
    one_by_one = [kappa_stands(rule_of_f, f) for f in range(1, 11)]
    assert all(one_by_one[:tolerated])
    assert not one_by_one[tolerated]


def kappa_stands(rule_of_f: Any, f: int) -> bool:
    honest = rows()[: 11 - f]
    try:
        return kappa(rule_of_f(f), honest, far(honest, f)).measured <= 100
    except ValueError:
        return False


def test_lies_that_are_no_numbers_are_refused_or_dropped() -> None:
    assert breakdown_fraction(lambda f: TrimmedMean(f=f), nan, rows()).tolerated == 0
    dropped = breakdown_fraction(lambda f: TrimmedMean(f=f, on_nonfinite="drop"), nan, rows())
    assert (dropped.tolerated, dropped.refused) == (5, True)


def test_random_rules_get_the_generator() -> None:
    line = Pipeline((Bucketing(s=2),), Median())
    with pytest.raises(ValueError, match="generator"):
        kappa(line, rows(), far(rows(), 1))
    assert kappa(line, rows(), far(rows(), 1), torch.Generator()).measured < 10
