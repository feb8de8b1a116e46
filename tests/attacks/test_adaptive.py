"""The strength search: right against an exhaustive one, never by leaving columns out, and fast."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from securefed.aggregation import Mean
from securefed_attacks import Optimal
from securefed_attacks.base import Line, Seen
from securefed_attacks.byzantine import ALIE, IPM, Mimic, SignFlip
from securefed_attacks.damage import Field, by_call, by_columns, by_weights, scorer
from securefed_attacks.min_max import MinMax
from securefed_defenses import (
    ARC,
    NNM,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DnC,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    Pipeline,
    TrimmedMean,
)
from tests.attacks.test_byzantine import coins, honest

F = 4
RULES: dict[str, Any] = {
    "mean": Mean(),
    "median": Median(),
    "trimmed mean": TrimmedMean(f=F),
    "krum": Krum(f=F),
    "multi-krum": MultiKrum(f=F),
    "geometric median": GeometricMedian(),
    "centered clipping": CenteredClipping(radius=3.0),
    "NNM + trimmed mean": Pipeline(pre=(NNM(f=F),), rule=TrimmedMean(f=F)),
    "NNM + geometric median": Pipeline(pre=(NNM(f=F),), rule=GeometricMedian()),
    "ARC + NNM + krum": Pipeline(pre=(ARC(f=F), NNM(f=F)), rule=Krum(f=F)),
    "bucketing + median": Pipeline(pre=(Bucketing(s=2),), rule=Median()),
    "NNM + mean": Pipeline(pre=(NNM(f=F),), rule=Mean()),
}
LINES: list[Line] = [IPM(), ALIE(tau=1.0), SignFlip(), MinMax()]


def place(attack: Line, rule: Any, goal: Any = "distance") -> Field:
    return Field(attack, Seen(honest(dtype=torch.float64), F), rule, goal, 0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("attack", LINES, ids=lambda a: a.name)
@pytest.mark.parametrize("goal", ["distance", "reverse"])
def test_shortcuts_say_what_the_rule_itself_does(rule: Any, attack: Line, goal: Any) -> None:
    field = place(attack, rule, goal)
    slow = by_call(field)
    for strength in (0.05, 0.7, 2.0, 30.0):
        for make in (by_weights, by_columns):
            quick = make(field)
            if quick is not None:
                assert quick(strength) == pytest.approx(slow(strength), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["krum", "multi-krum", "geometric median", "NNM + geometric median"])
def test_rules_on_inner_products_are_searched_without_touching_a_column(name: str) -> None:
    assert Optimal(ALIE(), RULES[name]).search(honest(), F).cheap


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("attack", LINES[:2], ids=lambda a: a.name)
def test_the_search_finds_what_a_fine_grid_finds(rule: Any, attack: Line) -> None:
    found = Optimal(attack, rule, high=20.0, grid=40, refine=20).search(honest(dtype=torch.float64), F)
    slow = by_call(place(attack, rule))
    best = max(slow(0.01 * 2000 ** (k / 299)) for k in range(300))
    assert found.score >= 0.98 * best  # a rule that switches between rows has narrow peaks


def test_it_beats_every_fixed_strength_it_is_compared_with() -> None:
    rows = honest()
    for rule in (Krum(f=F), RULES["NNM + trimmed mean"]):
        score = by_call(Field(ALIE(), Seen(rows, F), rule, "distance", 0))
        found = Optimal(ALIE(), rule).search(rows, F)
        assert found.score >= max(score(t) for t in (0.29, 1.0, 1.5, 3.0)) * (1 - 1e-3)


def test_against_the_mean_the_answer_is_the_limit_and_a_robust_rule_bounds_it() -> None:
    rows = honest()
    spread = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    assert Optimal(IPM(), Mean()).search(rows, F).strength == 100.0
    assert Optimal(IPM(), Mean()).search(rows, F).score > 20 * spread
    assert Optimal(IPM(), RULES["NNM + geometric median"]).search(rows, F).score < spread


def test_a_shortcut_that_does_not_speak_for_its_rule_is_not_believed() -> None:
    bulyan = Bulyan(f=2)  # its second stage looks at coordinates, its weights only say who is picked
    field = Field(ALIE(), Seen(honest(), 2), bulyan, "distance", 0)
    score, cheap = scorer(field, 1.0)
    assert not cheap
    assert score(1.0) == by_call(field)(1.0)


def test_a_rule_that_draws_is_searched_with_the_same_coins_each_time() -> None:
    rows = honest()
    for rule in (DnC(f=F), RULES["bucketing + median"]):
        attack = Optimal(ALIE(), rule, grid=5, refine=3)
        assert torch.equal(attack(rows, F, coins()), attack(rows, F, coins()))


def test_any_function_of_the_rows_can_be_attacked() -> None:
    found = Optimal(ALIE(), lambda rows: rows.median(0).values).search(honest(), F)
    assert 0.01 <= found.strength <= 100


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attack": Mimic()}, "mimic has no strength"),
        ({"aggregator": 3}, "no rule"),
        ({"low": 2.0, "high": 1.0}, "high"),
        ({"low": 0.0}, "low"),
        ({"grid": -1}, "grid"),
        ({"goal": "fame"}, "goal"),
    ],
)
def test_what_cannot_be_searched_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Optimal(**{"attack": IPM(), "aggregator": Mean(), **fields})


@pytest.mark.slow
@pytest.mark.parametrize("attack", LINES[:2], ids=lambda a: a.name)
def test_a_million_coordinates_take_less_than_twenty_times_one_call(attack: Line) -> None:
    rows = torch.randn(16, 1_000_000, generator=coins()) + 0.1
    rule = RULES["NNM + trimmed mean"]
    searched, called = [], []
    for _ in range(2):
        start = time.process_time()
        rule(torch.cat([rows, attack(rows, F)]))
        called.append(time.process_time() - start)
        start = time.process_time()
        Optimal(attack, rule)(rows, F)
        searched.append(time.process_time() - start)
    assert min(searched) < 20 * min(called)
