"""Canaries and the verdict over them: bounds hold on mechanisms that spend what they claim, faults are refuted,
and an audit that could not have refuted a claim says so."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch.utils.data import DataLoader, TensorDataset

from securefed import Ledger, make_private
from securefed.crypto.entropy import Stream
from securefed_attacks.canaries import (
    Dirac,
    DPAudit,
    Isotropic,
    draw_canaries,
    family_confidence,
    one_run_audit,
    pooled,
)
from securefed_attacks.canary_records import LOUD, RecordAudit, canary_dataset, canary_loss, canary_model
from securefed_attacks.epsilon_bounds import best_guesses, one_run_ceiling, one_run_epsilon_of_scores
from securefed_attacks.gaussian_bounds import (
    gaussian_ceiling,
    gaussian_delta,
    gaussian_epsilon,
    one_run_epsilon_gaussian,
    one_run_mu,
    refutes,
)
from securefed_attacks.many_runs import many_runs_audit
from tests.entropy import SeededEntropy

DELTA = 1e-5
MU = {1.0: 0.268, 2.0: 0.501, 4.0: 0.924, 8.0: 1.666}
"""Epsilon at delta 1e-5 -> mu of the Gaussian mechanism that spends it."""


def gaussian(generator: np.random.Generator, m: int, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """(scores, coins) of a Gaussian mechanism with Dirac canaries: exactly mu-GDP in each coin."""
    coins = generator.random(m) < 0.5
    return coins * mu + generator.standard_normal(m), coins


# ---------------------------------------------------------------------------------------------- canaries


@pytest.mark.parametrize("kind", ["dirac", "isotropic"])
def test_every_direction_has_norm_one_and_scores_itself(kind: Any) -> None:
    canaries = draw_canaries(20, 500, np.random.default_rng(0), kind)
    assert isinstance(canaries, Dirac if kind == "dirac" else Isotropic)
    assert (canaries.m, canaries.d) == (20, 500)
    for j in range(20):
        assert np.linalg.norm(canaries.direction(j)) == pytest.approx(1, abs=1e-6)
        scores = canaries.scores(canaries.direction(j))
        assert scores[j] == pytest.approx(1, abs=1e-6)
        assert np.abs(np.delete(scores, j)).max() < 0.3
        expected = 3.0 if canaries.included[j] else 0.0
        assert np.linalg.norm(canaries.contribution(j, 3.0)) == pytest.approx(expected, abs=1e-5)


def test_coins_are_fair_and_each_its_own() -> None:
    coins = draw_canaries(4000, 4000, np.random.default_rng(1)).included
    assert 0.46 < coins.mean() < 0.54  # five deviations
    assert abs(np.corrcoef(coins[:-1], coins[1:])[0, 1]) < 0.08


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw_canaries(0, 5, np.random.default_rng(0)), "m >= 1"),
        (lambda: draw_canaries(6, 5, np.random.default_rng(0)), "m <= d"),
        (lambda: draw_canaries(2, 5, np.random.default_rng(0)).scores(np.zeros(4)), "finite vector"),
        (lambda: draw_canaries(2, 2, np.random.default_rng(0)).scores([1, math.nan]), "finite vector"),
        (lambda: one_run_audit([1.0], [1], delta=1e-5, claimed=-1.0), "0 or more"),
        (lambda: one_run_audit([1.0], [1], delta=1e-5, claimed=math.nan), "0 or more"),
        (lambda: one_run_audit([1.0, math.nan], [1, 0], delta=1e-5, claimed=1.0), "a number"),
        (lambda: one_run_audit([1.0, 2.0], [1], delta=1e-5, claimed=1.0), "one coin and one score"),
        (lambda: one_run_audit([1.0], [1], delta=1.0, claimed=1.0), "delta lies in"),
        (lambda: one_run_audit([1.0], [1], delta=0.1, claimed=1.0, confidence=1.0), "strictly between"),
        (lambda: family_confidence(0.95, 0), "at least one"),
        (lambda: many_runs_audit([1.0, 2], [0.0] * 4, delta=0, claimed=1.0), "present: needs finite"),
        (lambda: many_runs_audit([1.0] * 4, [math.inf] * 4, delta=0, claimed=1.0), "absent: needs finite"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


# ----------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("claimed", "bound", "ceiling", "verdict"),
    [
        (2.0, 2.1, 5.0, "FAIL"),
        (2.0, 2.0, 5.0, "NO EVIDENCE"),
        (5.0, 2.0, 5.0, "UNDERPOWERED"),
        (math.inf, 5.0, 5.0, "UNDERPOWERED"),
        (0.0, 0.0, 3.0, "NO EVIDENCE"),
    ],
)
def test_the_verdict_is_as_designed(claimed: float, bound: float, ceiling: float, verdict: str) -> None:
    audit = DPAudit(claimed, bound, ceiling, 100, 50, 40, DELTA, 0.95)
    assert audit.verdict == verdict
    assert str(audit).startswith(verdict)
    assert ("cannot refute" in str(audit)) == (verdict == "UNDERPOWERED")


def test_an_audit_of_too_few_canaries_cannot_refute_a_claim_that_is_grossly_wrong() -> None:
    scores, coins = gaussian(np.random.default_rng(0), 100, 50.0)  # everything is told
    audit = one_run_audit(scores, coins, delta=DELTA, claimed=5.0)
    assert audit.correct == audit.guesses
    assert audit.bound <= audit.ceiling < 5.0
    assert audit.verdict == "UNDERPOWERED"


@pytest.mark.parametrize("assumes", ["nothing", "gaussian"])
def test_with_every_guess_right_the_bound_comes_near_the_ceiling_and_never_above(assumes: Any) -> None:
    coins = np.arange(1000) % 2 == 0  # as many in as out, so that all can be guessed
    audit = one_run_audit(coins.astype(float), coins, delta=DELTA, claimed=1.0, assumes=assumes)
    assert audit.bound == pytest.approx(audit.ceiling)
    assert audit.guesses == audit.correct == 1000


def test_the_audit_bounds_what_the_scores_bound() -> None:
    scores, coins = gaussian(np.random.default_rng(3), 400, 1.0)
    audit = one_run_audit(scores, coins, delta=DELTA, claimed=3.0, confidence=0.9)
    assert audit.bound == one_run_epsilon_of_scores(scores, coins, DELTA, 0.9)
    assert audit.ceiling == one_run_ceiling(400, DELTA, 0.9, tests=8)


@pytest.mark.parametrize(("epsilon", "figure"), [(2.0, 0.67), (4.0, 1.47), (8.0, 2.63)])
def test_one_run_of_a_thousand_canaries_shows_the_known_part_of_epsilon(
    epsilon: float, figure: float
) -> None:
    """The mechanism itself; the benchmark plays it through `make_private`. Twelve runs: a deviation of 0.07."""
    generator = np.random.default_rng(4)
    bounds = [
        one_run_audit(*gaussian(generator, 1000, MU[epsilon]), delta=DELTA, claimed=epsilon).bound
        for _ in range(12)
    ]
    assert np.mean(bounds) == pytest.approx(figure, abs=0.3)
    assert max(bounds) < epsilon


@pytest.mark.parametrize("assumes", ["nothing", "gaussian"])
def test_noise_ten_times_too_small_is_refuted_every_time(assumes: Any) -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        scores, coins = gaussian(generator, 1000, 10 * MU[2.0])
        assert one_run_audit(scores, coins, delta=DELTA, claimed=2.0, assumes=assumes).verdict == "FAIL"


@pytest.mark.parametrize("assumes", ["nothing", "gaussian"])
def test_true_claims_fail_seldom_even_for_the_best_of_eight_shares(assumes: Any) -> None:
    """The theorems leave room on a Gaussian: none of 50 bounds at 95 % is above the truth."""
    generator = np.random.default_rng(6)
    for mu in (0.268, 1.666):
        claimed = gaussian_epsilon(mu, DELTA)
        fails = [
            one_run_audit(*gaussian(generator, 200, mu), delta=DELTA, claimed=claimed, assumes=assumes)
            for _ in range(25)
        ]
        assert sum(a.verdict == "FAIL" for a in fails) == 0


def test_independent_runs_make_one_larger_audit() -> None:
    generator = np.random.default_rng(7)
    runs = [gaussian(generator, 100, 2.5) for _ in range(10)]
    shifted = [(5 * k + s * (k + 1), c) for k, (s, c) in enumerate(runs)]  # each on a scale of its own
    alone = one_run_audit(*runs[0], delta=DELTA, claimed=1.0)
    together = one_run_audit(*pooled(shifted), delta=DELTA, claimed=1.0)
    assert together.m == 1000
    assert together.bound > alone.bound
    assert together.ceiling > alone.ceiling


def test_a_family_of_bounds_holds_together() -> None:
    assert family_confidence(0.95, 10) == pytest.approx(0.995)
    generator = np.random.default_rng(8)
    level, wrong = family_confidence(0.95, 10), 0
    for _ in range(
        300
    ):  # randomized response spends exactly epsilon = 1, so 1.5 of 300 bounds may be above it
        coins = generator.random(100) < 0.5
        answers = coins ^ (generator.random(100) > 1 / (1 + math.exp(-1)))
        audit = one_run_audit(answers, coins, delta=0.0, claimed=1.0, confidence=level, shares=(1.0,))
        wrong += audit.verdict == "FAIL"
    assert wrong <= 5


# ------------------------------------------------------------------------------------- the Gaussian bound


def test_epsilon_and_delta_of_a_gaussian_are_those_of_its_trade_off() -> None:
    for mu in (0.3, 1.0, 2.5):
        for epsilon in (0.0, 0.5, 2.0):
            thresholds = np.linspace(-8, 8, 4001)
            gains = stats.norm.sf(thresholds - mu) - math.exp(epsilon) * stats.norm.sf(thresholds)
            assert gaussian_delta(mu, epsilon) == pytest.approx(gains.max(), abs=1e-5)
        assert gaussian_delta(mu, gaussian_epsilon(mu, DELTA)) == pytest.approx(DELTA, rel=1e-3)
    assert gaussian_epsilon(0.0, DELTA) == gaussian_epsilon(1e-6, DELTA) == 0.0


@pytest.mark.parametrize(
    ("mu", "correct", "guesses", "m"),
    [(0.5, 8, 10, 10), (1.0, 9, 10, 10), (1.0, 5, 6, 12), (0.3, 14, 16, 20), (2.0, 10, 10, 10)],
)
def test_the_forced_mass_is_the_optimum_of_the_linear_program(
    mu: float, correct: int, guesses: int, m: int
) -> None:
    """The largest tail that all tangents of the trade-off curve allow, by a solver that knows no recursion."""
    x = np.linspace(1e-6, 1 - 1e-6, 400)
    curve = stats.norm.cdf(mu + stats.norm.ppf(x))
    slope = stats.norm.pdf(mu + stats.norm.ppf(x)) / stats.norm.pdf(stats.norm.ppf(x))
    w = np.arange(guesses + 1)
    rows, limits = [], []
    for i in range(1, guesses + 1):
        right, wrong = np.where(w >= i, w / m, 0), np.where(w >= i - 1, (guesses - w) / m, 0)
        rows += [right - k * wrong for k in slope]
        limits += list(curve - slope * x)
    ones = np.ones((1, guesses + 1))
    best = optimize.linprog(-1.0 * (w >= correct), rows, limits, ones, [1.0])
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if refutes(mu, correct, guesses, m, middle) else (middle, high)
    assert low == pytest.approx(-best.fun, rel=5e-4)


def test_the_gaussian_bound_sees_more_than_the_general_one_and_never_too_much() -> None:
    generator = np.random.default_rng(9)
    for mu in (0.924, 1.666):
        scores, coins = gaussian(generator, 1000, mu)
        counts = best_guesses(scores, coins, 0.2)
        found = one_run_mu(*counts, 1000)
        assert 0.4 * mu < found < mu
        general = one_run_audit(scores, coins, delta=DELTA, claimed=9.0).bound
        assert general < one_run_epsilon_gaussian(*counts, 1000, DELTA) < gaussian_epsilon(mu, DELTA)


def test_guesses_by_chance_bound_no_gaussian() -> None:
    assert one_run_mu(500, 1000, 1000) == one_run_mu(0, 0, 10) == 0.0
    assert gaussian_ceiling(1000, DELTA) > gaussian_ceiling(100, DELTA) > one_run_ceiling(100, DELTA)


# ---------------------------------------------------------------------------------------------- many runs


@pytest.mark.parametrize("threshold", [None, 2.5])
def test_many_runs_bound_a_true_claim_from_below_and_refute_a_false_one(threshold: float | None) -> None:
    generator = np.random.default_rng(10)
    fails = {1.0: 0, 3.0: 0}
    for _ in range(20):
        for factor in fails:
            present = generator.standard_normal(2000) + factor * MU[2.0]
            audit = many_runs_audit(
                present, generator.standard_normal(2000), delta=DELTA, claimed=2.0, threshold=threshold
            )
            fails[factor] += audit.verdict == "FAIL"
    assert fails[1.0] <= 2  # of 20 at 95 %; what is left is slack
    assert fails[3.0] >= 10


def test_a_threshold_chosen_and_bounded_on_the_same_runs_would_promise_too_much() -> None:
    """Why half of the runs are given away: with one candidate each, the best of all fails far too often."""
    generator = np.random.default_rng(11)
    fails = {"halves": 0, "same": 0}
    options: dict[str, Any] = {"delta": 0.0, "claimed": 0.0, "confidence": 0.6}
    for _ in range(30):
        present, absent = generator.standard_normal((2, 40))  # nothing is told: epsilon is 0
        fails["halves"] += many_runs_audit(present, absent, **options).bound > 0
        every = np.concatenate([present, absent])
        same = (many_runs_audit(present, absent, **options, threshold=t).bound for t in every)
        fails["same"] += max(same) > 0
    assert fails["halves"] <= 12  # of 30 at 60 %
    assert fails["same"] > 12


def test_the_ceiling_of_few_runs_says_that_they_are_few() -> None:
    audit = many_runs_audit([1.0] * 20, [0.0] * 20, delta=DELTA, claimed=4.0, threshold=0.5)
    assert audit.bound == audit.ceiling < 4.0
    assert audit.verdict == "UNDERPOWERED"


# ------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("kind", ["dirac", "isotropic"])
def test_a_canary_records_clipped_gradient_is_its_direction_whatever_the_weights(kind: Any) -> None:
    canaries = draw_canaries(6, 40, np.random.default_rng(12), kind)
    model, data = canary_model(40), canary_dataset(canaries)
    with torch.no_grad():
        model.weight += 0.01 * torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    for j, (x, y) in enumerate(data):
        model.zero_grad()
        canary_loss(model(x[None]), y[None]).backward()  # type: ignore[no-untyped-call]
        assert model.weight.grad is not None
        descent = -model.weight.grad.double().numpy().ravel()
        if canaries.included[j]:
            assert np.linalg.norm(descent) > LOUD / 10
            np.testing.assert_allclose(descent / np.linalg.norm(descent), canaries.direction(j), atol=1e-5)
        else:
            assert not descent.any()


class HandMade:
    """DP-SGD by definition, one record at a time: clip, sum, noise; an oracle with nothing of the library in it."""

    def __init__(self, noise_multiplier: float, seed: int, clip: float = 1.0) -> None:
        self.noise_multiplier, self.clip = noise_multiplier, clip
        self.generator = np.random.default_rng(seed)

    def __call__(self, model: torch.nn.Module, data: TensorDataset) -> float:
        (weight,) = model.parameters()
        total = np.zeros(weight.numel())
        for x, y in data:
            model.zero_grad()
            canary_loss(model(x[None]), y[None]).backward()  # type: ignore[no-untyped-call]
            assert weight.grad is not None
            gradient = weight.grad.double().numpy().ravel()
            total += gradient * min(1.0, self.clip / max(float(np.linalg.norm(gradient)), 1e-30))
        total += self.noise_multiplier * self.generator.standard_normal(total.size)
        with torch.no_grad():
            weight -= torch.from_numpy(1e-3 * total).reshape(weight.shape).float()
        return 2.0


def test_an_audit_of_training_code_refutes_noise_that_is_a_tenth_and_a_clip_that_is_off() -> None:
    canaries = draw_canaries(300, 300, np.random.default_rng(13))
    audit = RecordAudit(DELTA)
    assert audit(HandMade(2.0, 0), canaries).verdict == "NO EVIDENCE"
    assert audit(HandMade(0.2, 0), canaries).verdict == "FAIL"
    assert audit(HandMade(2.0, 0, clip=20.0), canaries).verdict == "FAIL"


def test_an_audit_of_make_private_is_a_loop_as_people_write_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def train(model: torch.nn.Module, data: TensorDataset) -> float:
        with make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=1e-3),
            DataLoader(data, batch_size=len(data), shuffle=True),
            noise_multiplier=3.0,
            delta=DELTA,
            max_grad_norm=1.0,
            steps=3,
            ledger=ledger,
            data_id="canaries",
            entropy=SeededEntropy(0),
        ) as private:
            for x, y in itertools.chain(private.loader, private.loader, private.loader):
                private.optimizer.zero_grad()
                canary_loss(private.model(x), y).backward()  # type: ignore[no-untyped-call]
                private.optimizer.step()
        return private.epsilon()

    audit = RecordAudit(DELTA)
    canaries = draw_canaries(300, 300, np.random.default_rng(14))
    assert audit(train, canaries, blank=math.nan).verdict == "NO EVIDENCE"
    normal = Stream.normal
    with patch.object(Stream, "normal", lambda self, n: normal(self, n) / 10):
        assert audit(train, canaries, blank=math.nan).verdict == "FAIL"
