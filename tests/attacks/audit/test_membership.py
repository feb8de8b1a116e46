"""Membership: found where it must be, not found where it must not, and never judged beyond what the data carry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from securefed_attacks.audit import audit
from securefed_attacks.audit.base import open_target
from securefed_attacks.audit.belonging import judge, smallest_detectable
from securefed_attacks.audit.candidates import Candidates, read_candidates
from securefed_attacks.audit.captured import capture
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.replay import Replay
from securefed_attacks.audit.shift import Shift, measure_shift
from securefed_attacks.audit.states import read_state
from securefed_attacks.audit.target import Target
from securefed_attacks.membership import CalibratedLoss, Evidence, LiRAOnline, Loss, UpdateCosine
from securefed_attacks.statistics import Interval, auc, auc_interval
from securefed_attacks.update_cosine import update_cosine
from tests.attacks.audit import scenes

ALIKE = Shift(Interval(0.5, 0.45, 0.55, 0.99))


def findings(report: object, section: str = "membership") -> dict[str, str]:
    return {f.view: f.verdict for f in report.findings if f.section == section}  # type: ignore[attr-defined]


def test_records_learned_by_heart_are_called_a_leak_in_every_view_that_shows_them() -> None:
    scene = scenes.memorized()
    report = audit(scene.before, scene.after, **scene.given())
    assert report.verdict == "LEAKS"
    assert findings(report) == {"raw update": "LEAKS", "final model": "LEAKS"}


def test_an_update_of_other_records_is_no_evidence_and_says_what_could_have_been_seen() -> None:
    scene = scenes.unrelated()
    report = audit(scene.before, scene.after, **scene.given(shadows=4))
    assert set(findings(report).values()) == {"NO EVIDENCE"}
    assert report.membership is not None
    assert report.membership.detectable is not None
    assert all("would have been seen" in f.reason for f in report.findings if f.section == "membership")


def test_noise_before_sending_ends_it() -> None:
    scene = scenes.memorized()
    recipe = {**scenes.RECIPE, "max_grad_norm": 1.0, "noise_multiplier": 1.0}
    report = audit(scene.before, scene.after, **scene.given(recipe=recipe))
    assert findings(report)["raw update"] == "LEAKS"
    assert findings(report)["noised"] == "NO EVIDENCE"


def test_ten_records_carry_no_verdict_however_clear_they_look() -> None:
    scene = scenes.memorized(members=5, others=5)
    report = audit(scene.before, scene.after, **scene.given())
    assert report.verdict == "UNDERPOWERED"
    assert "needs at least 100 non-members, found 5: 95 more" in report.text()


def test_members_too_few_for_the_check_on_a_shift_carry_no_leak() -> None:
    scene = scenes.memorized(members=8)
    report = audit(scene.before, scene.after, **scene.given())
    assert set(findings(report).values()) == {"UNDERPOWERED"}
    assert "too few to see whether they differ" in report.text()


def test_rounds_in_which_nothing_moved_are_passed_over() -> None:
    scene = scenes.memorized()
    states = [scene.before, scene.before, scene.after, scene.after]
    report = audit(states[:-1], states[1:], **scene.given())
    assert findings(report) == {"raw update": "LEAKS", "final model": "LEAKS"}


def test_a_shift_between_the_groups_is_noticed_and_voids_the_verdict() -> None:
    scene = scenes.memorized(members=100)
    x = scene.x.clone()
    x[~torch.from_numpy(scene.member)] += 1.0  # another distribution: the model has nothing to do with it
    report = audit(scene.before, scene.after, **scene.given(candidates=(x, scene.y)))
    assert report.verdict == "UNDERPOWERED"
    assert any("without the model" in w for w in report.warnings)


def test_texts_of_two_topics_are_a_shift_and_texts_of_one_are_not() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(60)])
    one = tuple(" ".join(rng.choice(words, 8)) for _ in range(200))
    two = tuple(" ".join(rng.choice(words[40:], 8)) for _ in range(100)) + one[:100]
    member = np.arange(200) < 100
    assert not measure_shift(Candidates(texts=one, member=member)).shifted
    assert measure_shift(Candidates(texts=two, member=member)).shifted


def test_records_in_both_groups_are_counted() -> None:
    texts = ("a b", "c d", "a b", "e f")
    shift = measure_shift(Candidates(texts=texts, member=np.array([True, True, False, False])))
    assert shift.duplicates == 1
    assert shift.auc is None


@pytest.mark.parametrize(
    ("members", "others", "audits"),
    [
        (100, 100, 60),
        pytest.param(100, 100, 1000, marks=pytest.mark.slow),
        pytest.param(50, 400, 1000, marks=pytest.mark.slow),
    ],
)
def test_scores_of_chance_are_called_a_leak_in_fewer_than_one_of_twenty_audits(
    members: int, others: int, audits: int
) -> None:
    """Audits of nothing, two views and three attacks each; of 1,000 at most 50 may be false alarms."""
    rng = np.random.default_rng(5)
    rows = Candidates(inputs=torch.zeros(members + others, 1), member=np.arange(members + others) < members)
    alarms = 0
    for _ in range(audits):
        evidence = {
            view: Evidence(
                loss=rng.normal(size=len(rows)),
                reference=rng.normal(size=len(rows)),
                cosine=rng.normal(size=(1, len(rows))),
            )
            for view in ("raw update", "sum")
        }
        found = judge(evidence, rows, 0.01, ALIKE, {})
        alarms += any(f.verdict == "LEAKS" for f in found.findings)
    assert alarms <= audits / 20


def test_the_smallest_detectable_rate_is_the_one_from_which_judge_says_leaks() -> None:
    members, others = 60, 200
    detectable = smallest_detectable(members, others, 0.01, 1)
    assert detectable is not None
    rows = Candidates(inputs=torch.zeros(260, 1), member=np.arange(260) < members)
    for hits, said in (
        (round(detectable * members), "LEAKS"),
        (round(detectable * members) - 1, "NO EVIDENCE"),
    ):
        loss = np.linspace(0, 1, 260)
        loss[:hits] = -5 + np.linspace(0, 1, hits)
        loss[hits:members] = 2 + np.linspace(0, 1, members - hits)
        found = judge({"final model": Evidence(loss=loss)}, rows, 0.01, ALIKE, {})
        assert found.findings[0].verdict == said


def test_a_model_in_training_mode_is_attacked_in_evaluation_mode() -> None:
    """With dropout switched on while scoring, an attack measures the dropout: it must not matter how it came."""
    scene = scenes.memorized()
    one, two = (
        audit(scene.before, scene.after, **scene.given(base=model))
        for model in (scenes.net(dropout=0.8).train(), scenes.net(dropout=0.8).eval())
    )
    assert one.membership is not None
    assert two.membership is not None
    assert [r.auc for r in one.membership.results] == [r.auc for r in two.membership.results]


def test_a_model_that_draws_in_evaluation_mode_is_refused() -> None:
    class Draws(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            drawn: torch.Tensor = torch.nn.functional.dropout(super().forward(x), 0.5, training=True)
            return drawn

    scene = scenes.memorized()
    with pytest.raises(ValueError, match="answers differently each time"):
        audit(scene.before, scene.after, **scene.given(base=Draws(*scenes.net())))


# ------------------------------------------------------------------------------------------ update cosine


def one_step(clients: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """(cosines of 2 x size records with the mean of so many clients' gradients, who of them is client 0's)."""
    x, y = scenes.noise(size * (clients + 1), seed)
    model = scenes.net(seed)
    parameters = list(model.parameters())

    def gradient(rows: slice) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    total = sum((gradient(slice(k * size, (k + 1) * size)) for k in range(clients)), torch.zeros(()))
    records = [*range(size), *range(clients * size, (clients + 1) * size)]
    cosine = update_cosine((gradient(slice(i, i + 1)) for i in records), (-total / clients)[None])
    return cosine[0], np.arange(2 * size) < size


def test_update_cosine_tells_one_clients_records_and_is_near_chance_in_a_sum_of_ten() -> None:
    alone = np.concatenate([one_step(1, 32, s)[0] for s in range(12)])
    summed = np.concatenate([one_step(10, 32, s)[0] for s in range(12)])
    member = np.concatenate([one_step(1, 32, 0)[1]] * 12)
    assert auc_interval(alone, member).low > 0.7
    assert auc(summed, member) < auc(alone, member) - 0.15
    assert auc_interval(summed, member).low < 0.62


def test_rounds_add_up() -> None:
    """The same records in every round: their mean over rounds separates better than one round does."""
    rng = np.random.default_rng(3)
    member = np.arange(400) < 200
    cosine = rng.normal(size=(9, 400)) + 0.4 * member
    whole, first = UpdateCosine()(Evidence(cosine=cosine)), UpdateCosine()(Evidence(cosine=cosine[:1]))
    assert auc(whole, member) > auc(first, member) + 0.1


def test_update_cosine_agrees_with_the_obvious_formula_and_refuses_what_does_not_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients, update = torch.randn(5, 7, generator=generator), torch.randn(2, 7, generator=generator)
    expected = -torch.nn.functional.cosine_similarity(update[:, None], gradients[None], dim=-1)
    assert np.allclose(update_cosine(gradients, update), expected, atol=1e-6)
    assert update_cosine([torch.zeros(7)], update).tolist() == [[0.0], [0.0]]
    assert update_cosine([], update).shape == (2, 0)
    with pytest.raises(ValueError, match="same tensors"):
        update_cosine([torch.zeros(6)], update)
    with pytest.raises(ValueError, match="finite"):
        update_cosine([torch.full((7,), torch.nan)], update)
    with pytest.raises(ValueError, match="finite matrix"):
        update_cosine(gradients, torch.full((1, 7), torch.inf))


def test_attacks_name_what_they_need() -> None:
    with pytest.raises(ValueError, match="needs reference"):
        CalibratedLoss()(Evidence(loss=np.zeros(3)))
    assert LiRAOnline().missing(Evidence(confidence=np.zeros(3))) == ("shadows", "included")
    assert Loss()(Evidence(loss=np.array([1.0, 0.0]))).tolist() == [-1.0, 0.0]


def test_calibration_finds_a_hard_member_that_the_loss_hides() -> None:
    """Hard records have a large loss before and after; what fell is what was learned."""
    before = np.array([5.0, 5.0, 0.2, 0.2])
    after = np.array([3.0, 5.0, 0.1, 0.2])
    member = np.array([1, 0, 1, 0])
    evidence = Evidence(loss=after, reference=before)
    assert auc(CalibratedLoss()(evidence), member) == 1.0
    assert auc(Loss()(evidence), member) < 1.0


# ------------------------------------------------------------------------------------------------ shadows


def replayed(recipe: dict[str, object]) -> tuple[Replay, scenes.Scene]:
    scene = scenes.memorized(steps=60)
    pair = capture(read_state(scene.before, "before"), read_state(scene.after, "after"))
    rows = read_candidates((scene.x, scene.y), scene.member)
    target = open_target(scene.model, pair, rows, Recipe.of(recipe))
    assert isinstance(target, Target)
    return Replay(target, pair.before.tensors, target.trainable(pair.names), Recipe.of(recipe)), scene


@pytest.mark.parametrize(
    "more", [{}, {"momentum": 0.9}, {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}]
)
def test_shadows_trained_together_are_those_trained_one_by_one(more: dict[str, object]) -> None:
    replay, _ = replayed({**scenes.RECIPE, "steps": 9, **more})
    rows = [np.arange(30), np.arange(25, 90), np.arange(100, 140)]
    together = replay.together(rows, [5, 6, 7])
    assert together is not None
    for k, update in enumerate(together):
        alone = replay.update(rows[k], 5 + k)
        assert all(torch.allclose(update[n], alone[n], atol=1e-5) for n in alone)


def test_what_cannot_be_trained_together_is_trained_one_by_one() -> None:
    replay, _ = replayed(scenes.RECIPE)
    assert replay.together([np.arange(5), np.arange(60)], [0, 1]) is None, "a batch that is not full"


def test_lira_is_played_and_finds_what_was_learned_by_heart() -> None:
    scene = scenes.memorized()
    recipe = {**scenes.RECIPE, "steps": 400}
    report = audit(scene.before, scene.after, **scene.given(shadows=8, recipe=recipe))
    assert report.membership is not None
    played = {r.attack: r for r in report.membership.results if r.view == "final model"}
    assert played["LiRA online"].auc.low > 0.8
