"""The rotation: orthogonal, undone exactly enough, flat, and public."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as dense

from securefed.errors import PrivacyError
from securefed.privacy.rotation import hadamard, rotate, span, unrotate

SEED = b"a public seed"


@pytest.mark.parametrize("size", [1, 2, 4, 16, 32, 64, 512, 4096])
def test_the_transform_is_the_dense_matrix(size: int) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    wanted = dense(size) @ x.astype(float) / math.sqrt(size)
    hadamard(x)
    assert np.abs(x - wanted).max() < 1e-5


def test_a_transform_larger_than_a_panel_is_the_product_of_its_halves() -> None:
    """H_(2m) (a, b) = (H a + H b, H a - H b) / sqrt 2, at a size where the columns are panelled."""
    x = np.random.default_rng(0).standard_normal(2**18).astype(np.float32)
    a, b, whole = x[: 2**17].copy(), x[2**17 :].copy(), x.copy()
    hadamard(a)
    hadamard(b)
    hadamard(whole)
    assert np.abs(whole - np.concatenate([a + b, a - b]) / math.sqrt(2)).max() < 1e-5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.binary(min_size=8, max_size=40))
def test_rotating_keeps_the_norm_and_is_undone(dimension: int, seed: bytes) -> None:
    x = np.random.default_rng(dimension).standard_normal(dimension).astype(np.float32)
    y = x.copy()
    rotate(y, seed)
    assert np.linalg.norm(y.astype(float)) == pytest.approx(np.linalg.norm(x.astype(float)), rel=1e-6)
    unrotate(y, seed)
    assert np.abs(y - x).max() < 1e-5


def test_another_seed_is_another_rotation_and_does_not_undo_the_first() -> None:
    x = np.ones(300, np.float32)
    a, b = x.copy(), x.copy()
    rotate(a, SEED)
    rotate(b, SEED + b"!")
    assert np.abs(a - b).max() > 0.1
    unrotate(a, SEED + b"!")
    assert np.abs(a - x).max() > 0.1


def test_the_sum_of_rotated_vectors_is_the_rotated_sum() -> None:
    rows = np.random.default_rng(1).standard_normal((5, 777)).astype(np.float32)
    total = rows.sum(0)
    for row in rows:
        rotate(row, SEED)
    rotate(total, SEED)
    assert np.abs(rows.sum(0) - total).max() < 1e-5


@pytest.mark.parametrize("dimension", [1000, 1024, 1535, 1025])
def test_a_coordinate_is_sub_gaussian_with_variance_one_over_the_span(dimension: int) -> None:
    """The worst inputs: one heavy coordinate anywhere, or all equal. The bound holds for the larger part.

    P(some |coordinate| > t) <= 2 d exp(-m t^2 / 2): t for 1e-6 over each case's seeds.
    """
    limit = math.sqrt(2 * math.log(2 * dimension / 1e-6) / span(dimension))
    flat = np.full(dimension, 1 / math.sqrt(dimension), np.float32)
    spikes = [np.eye(1, dimension, k, dtype=np.float32)[0] for k in (0, dimension // 3, dimension - 1)]
    for x in (flat, *spikes):
        for number in range(20):
            y = x.copy()
            rotate(y, SEED + bytes([number]))
            assert np.abs(y).max() <= limit
    assert np.abs(spikes[0]).max() > limit  # without a rotation it is not flat


def test_no_coordinate_is_left_out_when_the_length_is_no_power_of_two() -> None:
    y = np.eye(1, 1500, 1499, dtype=np.float32)[0]
    rotate(y, SEED)
    assert (y[-1024:] != 0).all()


@pytest.mark.parametrize(
    "bad", [np.ones(4), np.ones((2, 2), np.float32), np.ones(0, np.float32), np.ones(8, np.float32)[::2]]
)
def test_other_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(PrivacyError, match="float32"):
        rotate(bad, SEED)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(PrivacyError, match="seed"):
        rotate(np.ones(4, np.float32), b"1234567")


def test_ten_million_coordinates_take_under_a_second() -> None:
    x = np.ones(10_000_000, np.float32)
    start = time.process_time()
    rotate(x, SEED)
    assert time.process_time() - start < 1  # measured here: 0.11 s
