"""Scores against scikit-learn and by hand; baselines that are what their names say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.config import load_config
from securefed.data.records import Examples
from securefed.errors import DataError
from securefed.training.baselines import baselines
from securefed.training.metrics import Predictions, evaluate
from tests.securefed.training.setups import bert, images, logistic, sentences, texts


def predictions(predicted: list[int], labels: list[int]) -> Predictions:
    n = len(labels)
    return Predictions(
        np.full(n, 0.5), np.ones(n, np.int64), np.array(predicted, np.int64), np.array(labels, np.int64)
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_scores_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    predicted, labels = [p for p, _ in pairs], [y for _, y in pairs]
    found = predictions(predicted, labels).score(2)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    present = sorted(set(labels))
    recalls = recall_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found.f1 == pytest.approx(f1_score(labels, predicted, zero_division=0))


def test_language_model_loss_is_per_token_and_perplexity_its_exponential() -> None:
    none = np.zeros(0, np.int64)
    found = Predictions(np.array([1.0, 3.0]), np.array([3, 1]), none, none).score(0)
    assert found.loss == pytest.approx((3 * 1.0 + 1 * 3.0) / 4)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    assert found.accuracy is None


def test_a_union_is_scored_as_if_predicted_at_once() -> None:
    one, two = predictions([0, 1], [0, 0]), predictions([1], [1])
    assert one.joined([two]).score(2) == predictions([0, 1, 1], [0, 0, 1]).score(2)


def test_nothing_to_score_is_said() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no record"):
        Predictions(np.zeros(0), none, none, none).score(2)


def test_evaluation_leaves_the_models_mode_and_counts_every_record(tmp_path: Path) -> None:
    model = bert(tmp_path)
    for mode in (True, False):
        model.module.train(mode)
        found = evaluate(model, texts(model, 11), physical_tokens=32, physical_batch=3, classes=2)
        assert found.n == 11
        assert model.module.training is mode


def test_text_baselines_beat_the_majority_where_words_tell(tmp_path: Path) -> None:
    words = {0: "bad awful poor", 1: "good great fine"}
    labels = np.arange(60) % 3 % 2
    made = Examples(texts=tuple(f"{words[int(y)]} item {i % 5}" for i, y in enumerate(labels)), labels=labels)
    model = bert(tmp_path)
    config = load_config({"train": {"steps": 1}, "model": {"name": "x"}})
    encoded = model.encode(made, 16)
    found = baselines(made, made, model, [encoded], [encoded], config, None)
    assert set(found) == {"majority_class", "tf_idf", "frozen_probe"}
    assert found["majority_class"].accuracy == pytest.approx(2 / 3)
    assert found["tf_idf"].accuracy == 1.0


def test_image_baselines_are_majority_and_pixels() -> None:
    data, model = images(60), logistic()
    made = Examples(images=data.images, labels=data.labels)
    found = baselines(made, made, model, [data], [data], load_config({"train": {"steps": 1}}), None)
    assert set(found) == {"majority_class", "pixels"}


def test_sentences_of_the_tests_have_both_classes() -> None:
    labels = sentences(4).labels
    assert labels is not None
    assert set(labels.tolist()) == {0, 1}
