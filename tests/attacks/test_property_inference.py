"""Shadow updates teach to see a property that nobody trains for, and nothing where there is none to see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from securefed.types import View
from securefed_attacks.property_inference import PropertyInference, shadow_updates, sorted_neurons
from securefed_attacks.statistics import auc, auc_interval

SIZE = 20 * 16 + 16 + 16 * 2 + 2


def update(has: bool, rng: np.random.Generator, shift: float = 2.0, noise: float = 0.0) -> np.ndarray:
    """One client of 64 records whose label is the sign of input 0; with the property, input 7 is shifted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.from_numpy(rng.normal(size=(64, 20)).astype(np.float32))
    y = (x[:, 0] > 0).long()
    x[:, 7] += shift * has
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    step = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        step.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]  # torch's stub
        step.step()
    change = (nn.utils.parameters_to_vector(net.parameters()).detach() - before).numpy()
    return (change + noise * rng.normal(size=change.shape)).astype(np.float32)


def fitted(train: Callable[[bool, np.random.Generator], np.ndarray] = update) -> PropertyInference:
    return PropertyInference.fitted(*shadow_updates(train, 60, np.random.default_rng(1)))


def victims(
    train: Callable[[bool, np.random.Generator], np.ndarray] = update,
) -> tuple[np.ndarray, np.ndarray]:
    return shadow_updates(train, 60, np.random.default_rng(2))


def test_the_property_is_read_from_updates_never_seen_before() -> None:
    attack = fitted()
    rows, has = victims()
    assert auc_interval(attack.score(rows), has).low > 0.9
    assert auc(attack.held_out, np.arange(60) % 2 == 0) > 0.9, "and it knows beforehand how good it is"


def test_nothing_is_read_where_the_property_leaves_no_trace() -> None:
    def blind(has: bool, rng: np.random.Generator) -> np.ndarray:
        return update(has, rng, shift=0.0)

    rows, has = victims(blind)
    found = auc_interval(fitted(blind).score(rows), has)
    assert found.low < 0.5 < found.high


def test_noise_on_updates_ends_it() -> None:
    def noisy(has: bool, rng: np.random.Generator) -> np.ndarray:
        return update(has, rng, noise=1.0)

    rows, has = victims(noisy)
    found = auc_interval(fitted(noisy).score(rows), has)
    assert found.low < 0.5 < found.high


def test_under_a_secure_sum_one_clients_property_drowns() -> None:
    attack, rng = fitted(), np.random.default_rng(3)
    before = np.zeros(SIZE, np.float32)
    seen: dict[str, list[float]] = {"updates": [], "sum": []}
    has = np.arange(30) % 2 == 0
    for mine in has:
        others = {c: update(bool(rng.random() < 0.5), rng) for c in range(1, 20)}
        updates = {0: update(bool(mine), rng), **others}
        total = np.stack(list(updates.values())).astype(np.float64).sum(0)
        ids = tuple(range(20))
        open_ = View("server", 0, "updates", ids, "", before, None, updates, total, 20)
        summed = View("server", 0, "sum", ids, "", before, None, {}, total, 20)
        for view in (open_, summed):
            seen[view.reveals].append(float(attack([view], 0)[0]))
    assert auc(np.array(seen["updates"]), has) > 0.9
    hidden = auc_interval(np.array(seen["sum"]), has)
    assert hidden.low < 0.5 < hidden.high


def test_the_held_out_scores_are_those_of_fitting_without_each() -> None:
    rng = np.random.default_rng(0)
    rows, has = rng.normal(size=(20, 30)).astype(np.float32), np.arange(20) % 2 == 0
    attack = PropertyInference.fitted(rows, has)
    wide = rows.astype(np.float64)
    unit = (wide - wide.mean(0)) / wide.std(0)
    kernel = unit @ unit.T
    weight = kernel.diagonal().mean()
    for i in range(20):
        kept = np.arange(20) != i
        dual = np.linalg.solve(
            kernel[np.ix_(kept, kept)] + weight * np.eye(19), np.where(has, 1.0, -1.0)[kept]
        )
        assert attack.held_out[i] == pytest.approx(kernel[i, kept] @ dual)


def test_sorting_neurons_undoes_a_permutation_and_keeps_the_net() -> None:
    rng = np.random.default_rng(0)
    w, b, v = (rng.normal(size=s).astype(np.float32) for s in ((6, 4), (6,), (3, 6)))
    order = rng.permutation(6)
    for one, other in zip(
        sorted_neurons(w, b, v), sorted_neurons(w[order], b[order], v[:, order]), strict=True
    ):
        assert np.array_equal(one, other)
    x = rng.normal(size=4).astype(np.float32)
    w2, b2, v2 = sorted_neurons(w, b, v)
    assert np.allclose(v @ np.tanh(w @ x + b), v2 @ np.tanh(w2 @ x + b2), atol=1e-5)


def test_what_teaches_nothing_is_refused() -> None:
    rows = np.zeros((10, 3), np.float32)
    with pytest.raises(ValueError, match="at least 4"):
        PropertyInference.fitted(rows, np.arange(10) < 3)
    with pytest.raises(ValueError, match="needs finite shadows"):
        PropertyInference.fitted(rows, np.arange(9) < 5)
    with pytest.raises(ValueError, match="needs finite shadows"):
        PropertyInference.fitted(np.full((10, 3), np.nan, np.float32), np.arange(10) < 5)
