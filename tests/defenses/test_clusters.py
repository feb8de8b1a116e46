"""FLAME's and SignGuard's clusters are those of the libraries their papers used."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.rows import as_rows
from securefed_defenses.flame import FLAME, majority_cluster, median_length
from securefed_defenses.sign_guard import largest_cluster, sign_shares


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(4, 20), split=st.floats(0, 1))
def test_flame_s_majority_is_hdbscan_s_only_cluster(seed: int, n: int, split: float) -> None:
    from sklearn.cluster import HDBSCAN

    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 3))
    points[: int(split * n)] += 3
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit(between)
    assert majority_cluster(torch.from_numpy(between)) == np.flatnonzero(found.labels_ == 0).tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(6, 20))
def test_sign_guard_s_cluster_is_mean_shift_s_where_there_are_two_groups(seed: int, n: int) -> None:
    from sklearn.cluster import MeanShift

    rng = np.random.default_rng(seed)
    points = 0.05 * rng.standard_normal((n, 3))
    points[: n // 3] += 1
    found = MeanShift(bandwidth=0.5).fit(points)
    largest = np.bincount(found.labels_).argmax()
    assert largest_cluster(torch.from_numpy(points)) == np.flatnonzero(found.labels_ == largest).tolist()


def test_sign_shares_count_positive_zero_and_negative_coordinates() -> None:
    rows = torch.tensor([[1.0, 0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert sign_shares(as_rows(rows)).tolist() == [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]


def test_flame_clips_to_the_median_of_all_rows_and_adds_noise_of_its_share() -> None:
    """Not to the median of the accepted rows: the paper takes it over all."""
    direction = torch.zeros(20_000)
    direction[0] = 1.0
    rows = torch.stack([direction * c for c in (1.0, 2.0, 3.0)] + [-8 * direction, -9 * direction])
    torch.testing.assert_close(FLAME()(rows)[0], torch.tensor((1 + 2 + 3) / 3))
    assert float(median_length((rows @ rows.T).double())) == 3.0
    noisy = FLAME(noise_multiplier=0.5)(rows, generator=torch.Generator().manual_seed(0))
    spread = float((noisy - FLAME()(rows)).std())
    assert abs(spread - 1.5) < 0.04  # five standard errors of 1.5 / sqrt(2 x 20,000)
