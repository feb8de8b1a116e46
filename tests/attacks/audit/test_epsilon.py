"""The claim: refuted where it is false, kept where it may be true, and no bound without coins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from securefed_attacks.audit import audit
from securefed_attacks.audit.belonging import judge as judge_membership
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.columns import covered
from securefed_attacks.audit.epsilon import bound_epsilon, judge
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.shift import Shift
from securefed_attacks.audit.verdict import VERDICTS, Finding, at_least, strongest
from securefed_attacks.membership import Evidence
from securefed_attacks.statistics import Interval
from tests.attacks.audit import scenes


def verdict(n: int, claimed: float, coins: bool = True, separation: float = 0.0, seed: int = 0) -> Finding:
    rng = np.random.default_rng(seed)
    rows = Candidates(inputs=torch.zeros(n, 1), member=rng.random(n) < 0.5, coins=coins)
    assert rows.member is not None
    evidence = {"raw update": Evidence(loss=rng.normal(size=n) - separation * rows.member)}
    results = judge_membership(evidence, rows, 0.01, Shift(None), {}).results
    (found,) = judge(bound_epsilon(results, rows, claimed, 1e-5, {"raw update"}))
    return found


def test_a_claim_that_the_scores_refute_fails() -> None:
    assert verdict(400, 1.0, separation=20.0).verdict == "FAIL"


def test_a_claim_that_holds_is_not_refuted_and_the_ceiling_is_told() -> None:
    found = verdict(1000, 2.0)
    assert found.verdict == "NO EVIDENCE"
    assert "could have been seen" in found.reason


def test_too_few_coins_for_the_claim_are_underpowered_whatever_the_scores() -> None:
    found = verdict(60, 4.0, separation=20.0)
    assert found.verdict == "UNDERPOWERED"
    assert "at least" in found.reason
    hopeless = verdict(60, 12.0, separation=20.0)
    assert hopeless.verdict == "UNDERPOWERED"
    assert "20,000 of them would not do" in hopeless.reason


def test_without_coins_no_bound_is_claimed() -> None:
    found = verdict(400, 1.0, coins=False, separation=20.0)
    assert found.verdict == "UNDERPOWERED"
    assert "fair coin" in found.reason


@pytest.mark.parametrize("share", [0.17, 0.83])
def test_memberships_that_no_fair_coin_gives_refute_nothing(share: float) -> None:
    """Guessing the larger group would be right far more often than half: a bound from it says nothing."""
    rng = np.random.default_rng(0)
    rows = Candidates(inputs=torch.zeros(400, 1), member=np.arange(400) < share * 400, coins=True)
    results = judge_membership(
        {"raw update": Evidence(loss=rng.normal(size=400))}, rows, 0.01, Shift(None), {}
    )
    found = bound_epsilon(results.results, rows, 0.5, 1e-5, {"raw update"})
    assert found.bound is None
    (said,) = judge(found)
    assert said.verdict == "UNDERPOWERED"
    assert "a fair coin" in found.unfair


def test_groups_that_differ_without_the_model_were_not_drawn_by_coins() -> None:
    rng = np.random.default_rng(1)
    rows = Candidates(inputs=torch.zeros(400, 1), member=rng.random(400) < 0.5, coins=True)
    results = judge_membership(
        {"raw update": Evidence(loss=rng.normal(size=400))}, rows, 0.01, Shift(None), {}
    )
    shift = Shift(Interval(0.9, 0.85, 0.95, 0.99))
    assert bound_epsilon(results.results, rows, 0.5, 1e-5, {"raw update"}, shift).bound is None
    assert bound_epsilon(results.results, rows, 0.5, 1e-5, {"raw update"}, Shift(None)).bound is not None


def test_true_claims_fail_in_fewer_than_one_of_twenty_audits() -> None:
    """Scores without information under a claim of 0.2: a FAIL would be false; 20 audits, expected below 1."""
    assert sum(verdict(300, 0.2, seed=s).verdict == "FAIL" for s in range(20)) <= 1


def test_a_view_before_the_noise_does_not_speak_for_the_claim() -> None:
    recipe = Recipe(max_grad_norm=1.0, noise_multiplier=1.0)
    assert [covered(v, recipe) for v in ("raw update", "clipped", "noised", "final model")] == [
        False,
        False,
        True,
        False,
    ]
    assert covered("raw update", Recipe())


def test_a_model_that_learned_by_heart_refutes_epsilon_one_end_to_end() -> None:
    x, y = scenes.noise(200, 0)
    coins = np.random.default_rng(0).random(200) < 0.5
    model = scenes.net()
    chosen = torch.from_numpy(np.flatnonzero(coins))
    after = scenes.train(model, x[chosen], y[chosen], 700)
    report = audit(
        model.state_dict(),
        after,
        base=model,
        candidates=(x, y),
        is_member=coins,
        coins=True,
        claimed_epsilon=1.0,
        shadows=0,
    )
    assert report.verdict == "FAIL"
    assert report.is_at_least("LEAKS")


@pytest.mark.parametrize("worst", VERDICTS)
def test_the_strongest_verdict_is_that_of_the_whole(worst: str) -> None:
    weaker = VERDICTS[VERDICTS.index(worst) :]  # type: ignore[arg-type]
    assert strongest([Finding(v, "x", "", "") for v in reversed(weaker)]) == worst
    assert [at_least(worst, v) for v in VERDICTS] == [VERDICTS.index(worst) <= k for k in range(4)]  # type: ignore[arg-type]


def test_a_word_that_is_no_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="no verdict 'SAFE'"):
        at_least("FAIL", "SAFE")
    assert at_least("NO EVIDENCE", "no-evidence")
