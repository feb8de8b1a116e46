"""Events: ranges, JSON round trips, merging."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.budget import Budget, fits
from securefed.privacy.events import (
    CentralGaussian,
    NonPrivate,
    SampledGaussian,
    SharedGaussian,
    from_json,
    merge,
    repeat,
    to_json,
)
from securefed.privacy.words import CENTRAL, SHARED, describe, held_against

gaussians = st.builds(
    SampledGaussian,
    st.floats(0, 100),
    st.floats(0, 1, exclude_min=True, allow_subnormal=False),
    st.integers(0, 10**6),
)


@given(gaussians)
def test_json_reads_back_equal(event: SampledGaussian) -> None:
    assert from_json(to_json(event)) == event


def test_non_private_reads_back() -> None:
    assert from_json(to_json(NonPrivate())) == NonPrivate()


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "skellam"},
        {"version": 2},
        {"steps": -1},
        {"steps": None},
        {"steps": 2.5},
        {"extra": 1},
        {"noise_multiplier": "1"},
        {"sample_rate": 0},
    ],
)
def test_an_event_that_cannot_be_read_is_an_error_and_never_a_zero(damage: dict[str, object]) -> None:
    tree = json.loads(to_json(SampledGaussian(1.0, 0.1, 5))) | damage
    with pytest.raises(PrivacyError):
        from_json(json.dumps(tree))


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", '{"version": 1, "kind": "sampled-gaussian"}', '{"version": 1, "kind": []}']
)
def test_garbled_json_is_an_error(text: str) -> None:
    with pytest.raises(PrivacyError):
        from_json(text)


@pytest.mark.parametrize(
    ("noise_multiplier", "sample_rate", "steps"),
    [
        (-1, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1, 0, 1),
        (1, 1.1, 1),
        (1, math.nan, 1),
        (1, 0.1, -1),
        (1, 0.1, True),
    ],
)
def test_ranges_are_checked(noise_multiplier: float, sample_rate: float, steps: int) -> None:
    with pytest.raises(PrivacyError):
        SampledGaussian(noise_multiplier, sample_rate, steps)


@given(st.lists(gaussians, max_size=6), st.randoms())
def test_merging_keeps_steps_and_forgets_order(events: list[SampledGaussian], random: object) -> None:
    shuffled = sorted(events, key=lambda _: random.random())  # type: ignore[attr-defined]
    merged = merge(events)
    assert merge(shuffled) == merged == merge(merged)
    assert sum(e.steps for e in merged if isinstance(e, SampledGaussian)) == sum(e.steps for e in events)


def test_merging_adds_equal_mechanisms_and_keeps_exposure() -> None:
    events = [
        SampledGaussian(1, 0.1, 2),
        NonPrivate(),
        SampledGaussian(2, 0.1, 0),
        SampledGaussian(1.0, 0.1, 3),
        NonPrivate(),
    ]
    assert merge(events) == (NonPrivate(), SampledGaussian(1.0, 0.1, 5))
    assert repeat(SampledGaussian(1, 0.1, 2), 3) == SampledGaussian(1, 0.1, 6)


def test_whose_noise_it_was_changes_the_words_and_not_the_number() -> None:
    own, shared, central = (kind(1.2, 0.1, 7) for kind in (SampledGaussian, SharedGaussian, CentralGaussian))
    assert len({own, shared, central}) == 3
    assert {type(from_json(to_json(e))) for e in (own, shared, central)} == {
        SampledGaussian,
        SharedGaussian,
        CentralGaussian,
    }
    assert len({epsilon_of([e], 1e-5, a) for e in (own, shared, central) for a in ("pld",)}) == 1
    assert [held_against([e]) for e in (own, shared, central)] == [None, SHARED, CENTRAL]
    assert held_against([shared, central]) == CENTRAL, "the weaker one"
    assert "shares" in describe(shared)
    assert "by the server" in describe(central)
    mixed = merge([own, shared, central, shared])
    assert [e.steps for e in mixed if isinstance(e, SharedGaussian)] == [14]
    assert epsilon_of(mixed, 1e-5) == pytest.approx(epsilon_of([repeat(own, 4)], 1e-5), rel=1e-3)


def test_a_budget_adds_equal_noise_up_whoever_added_it() -> None:
    budget = Budget(epsilon=epsilon_of([SampledGaussian(1.2, 0.1, 10)], 1e-5), delta=1e-5)
    before = [SharedGaussian(1.2, 0.1, 6), CentralGaussian(1.2, 0.1, 3)]
    assert fits(before, SharedGaussian(1.2, 0.1, 1), budget.epsilon, budget)
    assert not fits(before, SharedGaussian(1.2, 0.1, 2), budget.epsilon, budget)
