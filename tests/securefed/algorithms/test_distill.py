"""Tables and what the ensemble says: bounds, weighted means, votes, and tables of the wrong size."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from securefed.algorithms.distill import Distill, confidence, softmax
from securefed.config import Config, load_config
from securefed.errors import DivergedError, ModelError, ProtocolError

M, K = 4, 3
JOB: dict[str, Any] = {
    "algorithm": "distill",
    "data": {"name": "digits", "clients": 6, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 1},
    "distill": {"records": M, "clip": 2.0, "temperature": 2.0},
}
LOGITS = arrays(np.float32, (M, K), elements=st.floats(-100, 100, width=32))


@functools.cache
def job(**changes: Any) -> Config:
    return load_config(JOB, {k.replace("__", "."): v for k, v in changes.items()})


@given(LOGITS)
def test_a_row_of_logits_is_centred_and_within_its_clip(logits: np.ndarray) -> None:
    rows = Distill().table(job(), logits).reshape(M, K).astype(np.float64)
    assert (np.linalg.norm(rows, axis=1) <= 2.0).all()
    np.testing.assert_allclose(rows.sum(1), 0, atol=1e-5)


@given(LOGITS)
def test_centring_leaves_what_a_client_says_unchanged(logits: np.ndarray) -> None:
    rows = Distill().table(job(distill__clip=1e6), logits).reshape(M, K)
    np.testing.assert_allclose(softmax(rows), softmax(logits), atol=1e-4)


@pytest.mark.parametrize("send", ["logits", "probabilities", "votes"])
@given(LOGITS)
def test_at_client_level_a_whole_table_is_within_the_norm_that_is_noised(
    send: str, logits: np.ndarray
) -> None:
    """The sensitivity is max_grad_norm, reached by votes: the bound is not slack."""
    config = job(
        privacy__unit="client",
        privacy__noise_multiplier=1.0,
        privacy__delta=1e-2,
        privacy__max_grad_norm=0.7,
        distill__send=send,
    )
    norm = np.linalg.norm(Distill().table(config, logits).astype(np.float64))
    assert norm <= 0.7 * (1 + 1e-6)
    if send == "votes":
        assert norm == pytest.approx(0.7, rel=1e-6)


def test_what_is_scaled_for_noise_comes_back_in_its_own_units() -> None:
    logits = np.random.default_rng(0).normal(size=(M, K)).astype(np.float32)
    client = {"privacy__unit": "client", "privacy__noise_multiplier": 1.0, "privacy__delta": 1e-2}
    told = [Distill().consensus(c, Distill().table(c, logits), K) for c in (job(), job(**client))]
    np.testing.assert_allclose(told[0], told[1], atol=1e-6)


def test_votes_go_to_the_class_with_most_of_them() -> None:
    config = job(distill__send="votes")
    tables = [np.eye(K, dtype=np.float32)[list(v)] for v in ((0, 1, 2, 0), (0, 1, 1, 2), (1, 1, 2, 2))]
    mean = np.mean([Distill().table(config, t) for t in tables], axis=0, dtype=np.float32)
    assert Distill().consensus(config, mean, K).argmax(1).tolist() == [0, 1, 2, 2]


@given(st.integers(0, 2**32 - 1))
def test_the_sum_of_weighted_answers_over_the_sum_of_weights_is_the_weighted_mean(seed: int) -> None:
    """Against the obvious loop; the sum is what a secure sum gives."""
    config = job(distill__confidence=True, distill__send="probabilities")
    logits = np.random.default_rng(seed).normal(size=(5, M, K), scale=3).astype(np.float32)
    mean = np.mean([Distill().table(config, one) for one in logits], axis=0, dtype=np.float32)
    for i in range(M):
        sure = [float(confidence(one)[i]) for one in logits]
        answers = [softmax(one / np.float32(2.0))[i] for one in logits]
        expected = sum(s * a for s, a in zip(sure, answers, strict=True)) / sum(sure)
        np.testing.assert_allclose(Distill().consensus(config, mean, K)[i], expected, atol=1e-4)


def test_a_sure_client_weighs_more_than_one_that_guesses() -> None:
    sure, guess = confidence(np.array([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]], np.float32))
    assert sure > 0.99
    assert 0.001 <= guess < 0.1


def test_noisy_probabilities_are_rows_that_sum_to_one_whatever_the_noise() -> None:
    config = job(distill__send="probabilities")
    mean = np.array([[-1, -2, -3], [0.5, -1, 0.5], [0, 0, 0], [9, 1, 0]], np.float32).reshape(-1)
    told = Distill().consensus(config, mean, K)
    np.testing.assert_allclose(told.sum(1), 1, rtol=1e-6)
    assert (told >= 0).all()
    np.testing.assert_allclose(told[0], 1 / 3)


@pytest.mark.parametrize("shape", [(M + 1, K), (M, 1), (M * K,)])
def test_a_table_of_the_wrong_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="both sides must read the same public set"):
        Distill().table(job(), np.zeros(shape, np.float32))


def test_a_table_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DivergedError, match="no longer finite"):
        Distill().table(job(), np.full((M, K), np.nan, np.float32))


def test_an_aggregate_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ModelError, match="shape"):
        Distill().consensus(job(), np.zeros(M * K + 1, np.float32), K)
