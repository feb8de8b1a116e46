"""The same membership attack on a view of weights and on one of answers: what each tells, and what overlap would tell."""

from __future__ import annotations

import numpy as np
import pytest

from securefed.protect.masking.protection import Masking
from securefed_attacks.answer_membership import copy_from_answers, model_in_update, record_losses
from securefed_attacks.statistics import auc
from securefed_benchmarks.answers_vs_weights import (
    COPY,
    TRAIN,
    Victim,
    from_answers,
    from_weights,
    seen,
    table,
    victim,
)


@pytest.fixture(scope="module")
def v() -> Victim:
    return victim()


def test_weights_give_members_away_and_answers_on_other_records_far_less(v: Victim) -> None:
    """An AUC of 120 candidates errs by about 0.05."""
    weights = auc(from_weights(v, seen(v.trained - v.start, v.start)), v.is_member)
    answers = auc(from_answers(v, seen(table(v, v.public), v.start), v.public), v.is_member)
    assert weights > 0.85
    assert answers < weights - 0.1


def test_answers_on_the_members_themselves_tell_as_much_as_weights(v: Victim) -> None:
    """What the refusal of overlapping public sets is for."""
    scores = from_answers(v, seen(table(v, v.overlapping), v.start), v.overlapping)
    assert auc(scores, v.is_member) > 0.8


def test_on_a_model_that_has_seen_nothing_the_attack_guesses(v: Victim) -> None:
    losses = record_losses(v.model, v.start, v.model.encode(v.candidates, 2), TRAIN)
    assert abs(auc(-losses, v.is_member) - 0.5) < 0.16, "three deviations"


def test_under_a_secure_sum_nothing_of_one_client_is_left_to_attack(v: Victim) -> None:
    view = seen(table(v, v.public), v.start, Masking(value_range=128.0))
    data = v.model.encode(v.public, 2)
    with pytest.raises(ValueError, match="shows nothing of client 1 alone"):
        copy_from_answers(view, 1, v.model, data, v.start, COPY, steps=1)
    with pytest.raises(ValueError, match="shows nothing of client 1 alone"):
        model_in_update(view, 1, v.model)


def test_views_of_another_size_and_candidates_without_labels_are_refused(v: Victim) -> None:
    view = seen(table(v, v.public), v.start)
    with pytest.raises(ValueError, match="the view shows"):
        model_in_update(view, 1, v.model)
    few = v.model.encode(v.public.take(np.arange(9)), 2)
    with pytest.raises(ValueError, match="give the public records of this run"):
        copy_from_answers(view, 1, v.model, few, v.start, COPY, steps=1)
