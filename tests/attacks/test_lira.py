"""LiRA finds members where models overfit, and nobody where they do not; stacked training is separate training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from securefed_attacks.lira import calibrated, confidence, halves, lira
from securefed_attacks.shadows import ShadowTraining, train_shadows
from securefed_attacks.statistics import auc, auc_interval


def records(n: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes in 20 dimensions with labels that are partly noise: there is something to memorize."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 20, generator=generator)
    y = (x[:, 0] + noise * torch.randn(n, generator=generator) > 0).long()
    return x, y


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))


OVERFIT = ShadowTraining(epochs=60, batch_size=16, learning_rate=0.1)


@pytest.fixture(scope="module")
def attacked() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(target confidences, shadow confidences, shadow membership, target membership): the first shadow is attacked."""
    x, y = records(200, 0)
    included = halves(16, 200, np.random.default_rng(0))
    # every row must hold equally many: move the surplus between rows, keeping columns in balance where possible
    included = np.stack([_balanced(row, 100, k) for k, row in enumerate(included)])
    models = train_shadows(net, x, y, included, OVERFIT)
    scores = confidence(models.logits(x), y)
    return scores[0], scores[1:], included[1:], included[0]


def _balanced(row: np.ndarray, size: int, seed: int) -> np.ndarray:
    rng, row = np.random.default_rng([seed, 1]), row.copy()
    surplus = int(row.sum()) - size
    chosen = rng.permutation(np.flatnonzero(row if surplus > 0 else ~row))[: abs(surplus)]
    row[chosen] = surplus < 0
    return row


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["record", "global"])
def test_members_of_an_overfitted_model_are_found(attacked: tuple, mode: str, variance: str) -> None:
    target, shadows, included, members = attacked
    found = auc_interval(lira(target, shadows, included, mode=mode, variance=variance), members)  # type: ignore[arg-type]  # strings of the parametrization
    assert found.low > 0.6


def test_lira_beats_one_threshold_for_all(attacked: tuple) -> None:
    target, shadows, included, members = attacked
    assert auc(lira(target, shadows, included), members) > auc(target, members)
    assert auc(calibrated(target, shadows, included), members) > auc(target, members)


def test_nobody_is_found_where_membership_is_a_coin(attacked: tuple) -> None:
    """The same scores against memberships that the target never had: the attack must fail."""
    target, shadows, included, _ = attacked
    coins = np.random.default_rng(5).random(len(target)) < 0.5
    found = auc_interval(lira(target, shadows, included), coins)
    assert found.low < 0.5 < found.high


def test_a_model_that_does_not_overfit_gives_nobody_away() -> None:
    x, y = records(200, 1)
    included = np.stack(
        [_balanced(row, 100, k) for k, row in enumerate(halves(8, 200, np.random.default_rng(1)))]
    )
    models = train_shadows(net, x, y, included, ShadowTraining(epochs=1, batch_size=100, learning_rate=0.01))
    scores = confidence(models.logits(x), y)
    found = auc_interval(lira(scores[0], scores[1:], included[1:]), included[0])
    assert found.low < 0.55


def test_stacked_training_is_separate_training() -> None:
    x, y = records(60, 2)
    included = np.stack(
        [_balanced(row, 30, k) for k, row in enumerate(halves(4, 60, np.random.default_rng(2)))]
    )
    training = ShadowTraining(epochs=3, batch_size=8, learning_rate=0.1)
    together = train_shadows(net, x, y, included, training)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(training.seed)
        alone = [net() for _ in range(4)]
    rng = np.random.default_rng([training.seed, 0x5AD0])
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in alone]
    for _ in range(3):
        order = rng.random((4, 30)).argsort(1)
        for k, model in enumerate(alone):
            mine = np.flatnonzero(included[k])[order[k]]
            for i in range(0, 30, 8):
                rows = mine[i : i + 8]
                optimizers[k].zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizers[k].step()
    expected = torch.stack([m(x) for m in alone]).detach()
    torch.testing.assert_close(together.logits(x), expected, rtol=1e-4, atol=1e-5)


def test_the_ratio_is_that_of_two_gaussians() -> None:
    rng = np.random.default_rng(3)
    shadows, included = rng.normal(0, 1, (10, 5)), np.tile([[True], [False]], (5, 5))
    target = rng.normal(0, 1, 5)
    found = lira(target, shadows, included, variance="record")
    for i in range(5):
        inside, outside = shadows[0::2, i], shadows[1::2, i]
        expected = stats.norm.logpdf(target[i], inside.mean(), inside.std(ddof=1)) - stats.norm.logpdf(
            target[i], outside.mean(), outside.std(ddof=1)
        )
        assert found[i] == pytest.approx(expected)


def test_the_confidence_keeps_its_digits_where_the_model_is_sure() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    found = confidence(logits, torch.tensor([0, 2]))
    assert found[0] == pytest.approx(60 - math.log(2))
    p = math.exp(2) / (1 + math.e + math.exp(2))
    assert found[1] == pytest.approx(math.log(p / (1 - p)))


def test_each_record_is_in_half_of_the_shadows() -> None:
    assert (halves(6, 50, np.random.default_rng(0)).sum(0) == 3).all()
    with pytest.raises(ValueError, match="in pairs"):
        halves(3, 10, np.random.default_rng(0))


def test_what_cannot_be_attacked_is_refused() -> None:
    good = np.zeros((4, 3))
    half = np.tile([[True], [False]], (2, 3))
    with pytest.raises(ValueError, match="needs target"):
        lira(np.zeros(2), good, half)
    with pytest.raises(ValueError, match="diverged"):
        lira(np.full(3, np.nan), good, half)
    with pytest.raises(ValueError, match="in of only 0 shadows"):
        lira(np.zeros(3), good, np.zeros((4, 3), bool))
    x, y = records(10, 0)
    with pytest.raises(ValueError, match="equally many"):
        train_shadows(net, x, y, np.array([[True] * 10, [True] * 5 + [False] * 5]), OVERFIT)
    with pytest.raises(ValueError, match="Dropout"):
        train_shadows(
            lambda: nn.Sequential(nn.Linear(20, 2), nn.Dropout(0.5)), x, y, np.ones((2, 10), bool), OVERFIT
        )
    with pytest.raises(ValueError, match="shadow training needs"):
        ShadowTraining(epochs=0)
