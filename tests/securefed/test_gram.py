"""Inner products and distances keep their digits wherever the rows lie and whatever a liar sends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import securefed.gram as module
from securefed.gram import centred_gram, gram, rows_about, squared_distances
from securefed.rows import as_rows

seeds = st.integers(0, 2**31)


def direct(rows: torch.Tensor) -> torch.Tensor:
    """Each difference taken in float64, squared and summed."""
    wide = rows.double()
    return torch.stack([(wide - row).square().sum(1) for row in wide])


def worst_relative_error(rows: torch.Tensor, first: int = 0) -> float:
    """Over all pairs of different rows from `first` on."""
    found, true = squared_distances(centred_gram(rows))[first:, first:], direct(rows)[first:, first:]
    apart = ~torch.eye(len(true), dtype=torch.bool)
    return float(((found - true).abs() / true)[apart].max())


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.integers(1, 8), d=st.integers(1, 40))
def test_the_gram_matrix_is_that_of_the_definition(seed: int, n: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64)
    centre = torch.randn(d, generator=g, dtype=torch.float64)
    torch.testing.assert_close(gram(rows), rows @ rows.T)
    torch.testing.assert_close(gram(rows, centre), (rows - centre) @ (rows - centre).T)
    torch.testing.assert_close(squared_distances(centred_gram(rows)), direct(rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-15, 1e-25, 1e15])
def test_distances_between_updates_are_exact_at_any_scale(scale: float) -> None:
    rows = scale * torch.randn(30, 20_000, generator=torch.Generator().manual_seed(0))
    assert worst_relative_error(rows) < 2e-6


def test_distances_between_weights_are_as_exact_as_between_updates() -> None:
    """n = 30 rows of weights 0.05 that differ by 1e-5: the matrix form of the usual distance has errors of 1500 %."""
    g = torch.Generator().manual_seed(0)
    weights = 0.05 * torch.randn(1, 50_000, generator=g) + 1e-5 * torch.randn(30, 50_000, generator=g)
    assert worst_relative_error(weights) < 2e-6
    naive = torch.cdist(weights, weights, compute_mode="use_mm_for_euclid_dist").double().square()
    apart = ~torch.eye(30, dtype=torch.bool)
    assert float(((naive - direct(weights)).abs() / direct(weights))[apart].max()) > 1


@pytest.mark.parametrize("lie", [1e3, 1e12, 1e25, 3e38])
@pytest.mark.parametrize("centre", [0.0, 50.0])
def test_a_minority_cannot_drown_the_distances_between_the_others(lie: float, centre: float) -> None:
    g = torch.Generator().manual_seed(1)
    rows = centre + torch.randn(15, 5000, generator=g)
    rows[:7] = lie * torch.randn(7, 5000, generator=g).clamp(-1, 1)
    assert worst_relative_error(rows, first=7) < 5e-6


def test_a_liar_that_looks_central_on_the_sampled_columns_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three rows equal the honest centre wherever a guess would look, and are huge elsewhere."""
    g = torch.Generator().manual_seed(2)
    rows = 1e3 + torch.randn(9, 40_000, generator=g)
    sampled = module._sampled(as_rows(torch.arange(40_000.0)[None])).long().flatten()
    liars = torch.full((3, 40_000), 1e9)
    liars[:, sampled] = rows[3:, sampled].mean(0)
    rows[:3] = liars
    assert worst_relative_error(rows, first=3) < 5e-6
    monkeypatch.setattr(module, "_better_centre", lambda found, centre: centre)  # the guard removed
    assert worst_relative_error(rows, first=3) > 0.1


def test_a_row_that_is_not_finite_shows_on_the_diagonal_and_nowhere_else() -> None:
    rows = torch.randn(6, 3000, generator=torch.Generator().manual_seed(3))
    rows[4, 1234] = torch.nan
    rows[5, 7] = torch.inf
    for found in (gram(rows), centred_gram(rows)):
        assert torch.isfinite(found.diagonal()).tolist() == [True] * 4 + [False] * 2
        assert torch.isfinite(found[:4, :4]).all()


def test_float64_rows_are_not_rounded_to_float32() -> None:
    rows = 1.0 + 1e-12 * torch.randn(5, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert worst_relative_error(rows) < 1e-2  # 1e-16 / 1e-12, squared and summed
    rows = torch.randn(5, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert worst_relative_error(rows) < 1e-12


def test_equal_rows_are_at_distance_zero() -> None:
    row = torch.randn(1, 5000, generator=torch.Generator().manual_seed(5))
    assert squared_distances(centred_gram(row.repeat(4, 1))).max() <= 1e-6 * row.square().sum()


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_the_gram_of_mixed_rows_follows_from_the_gram_of_the_rows(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 30, generator=g, dtype=torch.float64)
    mix = torch.randn(3, 5, generator=g, dtype=torch.float64)
    torch.testing.assert_close(rows_about(gram(rows), mix), gram(mix @ rows), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_gives_the_same_distances() -> None:
    rows = 0.05 + 1e-5 * torch.randn(30, 100_000, generator=torch.Generator().manual_seed(6))
    there = squared_distances(centred_gram(rows.cuda()))
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), direct(rows), rtol=1e-5, atol=0)
