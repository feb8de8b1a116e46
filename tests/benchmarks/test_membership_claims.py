"""The bench of attacks on a final model: who is in which half, which references are few, and how scores are judged."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from securefed_benchmarks import membership_claims as bench


def test_random_halves_are_halves_drawn_by_each_model() -> None:
    halves = bench.random_halves(5, 40, 0)
    assert halves.sum(1).tolist() == [20] * 5
    assert len({row.tobytes() for row in halves}) == 5


def test_a_target_is_never_its_own_shadow() -> None:
    values = np.arange(12.0).reshape(4, 3)
    models = bench.Trained(values, values[:, :2], values > 5, (1.0, 0.5), 0.0)
    rest = models.without(1)
    np.testing.assert_array_equal(rest.pool, values[[0, 2, 3]])
    np.testing.assert_array_equal(rest.included, (values > 5)[[0, 2, 3]])


def test_few_references_had_each_record_as_often_as_not() -> None:
    included = bench.random_halves(12, 30, 1)
    choose, inside = bench._balanced_few(included)
    assert inside.shape == (bench.FEW, 30)
    assert (inside.sum(0) == bench.FEW // 2).all()
    np.testing.assert_array_equal(choose(included.astype(float)) > 0, inside)


def test_scores_of_members_alone_above_all_others_are_judged_perfect_and_noise_is_chance() -> None:
    members = np.arange(4000) < 2000
    perfect = bench.judged(members.astype(float), members)
    assert perfect["auc"] == 1.0
    assert perfect["tpr_at_0.001"][0] == 100.0
    chance = bench.judged(np.random.default_rng(0).random(4000), members)
    assert abs(chance["auc"] - 0.5) < 0.04
    assert chance["tpr_at_0.01"][1] <= 1.0 <= chance["tpr_at_0.01"][2] + 1


def test_each_targets_own_rate_is_told_beside_that_of_all() -> None:
    included = np.tile(np.arange(200) < 100, (2, 1))
    perfect, useless = included[0].astype(float), np.zeros(200)
    assert bench.by_target([perfect, useless], included) == [50.0, 70.7, 0.0, 100.0]


def test_every_attack_is_played_and_lira_sees_what_one_threshold_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels drawn at random, so that each net learns its own half by heart."""
    for name, value in {"POOL": 60, "POPULATION": 20, "HIDDEN": 32, "BATCH": 10, "RATE": 0.2}.items():
        monkeypatch.setattr(bench, name, value)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(80, 784, generator=generator), torch.randint(0, 10, (80,), generator=generator)
    monkeypatch.setattr(bench, "_images", lambda count: (drawn[0][:count], drawn[1][:count]))
    monkeypatch.setattr(bench, "trained", partial(bench.trained, models=25, epochs=20))
    *rows, last = bench.attacks(0, targets=3)
    found = {row["attack"]: row["auc"] for row in rows}
    assert len(found) == 8
    assert found["LiRA online"] > 0.8
    assert last["accuracy_in"] > last["accuracy_out"] + 0.2
