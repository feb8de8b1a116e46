"""Every rule against its slow version from the paper, on random rows of any shape and f up to its limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.rows import as_rows
from securefed_defenses import (
    ARC,
    CAF,
    MDA,
    NNM,
    Bulyan,
    CenteredClipping,
    Clip,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    MeaMed,
    Median,
    MoNNA,
    MultiKrum,
    NormBound,
    Pipeline,
    TrimmedMean,
)
from securefed_defenses.given import Given
from tests.defenses import oracles

Case = tuple[Callable[[int], Any], Callable[[np.ndarray[Any, Any], int], Any], Callable[[int], int]]
HALF, KRUM, BULYAN = (lambda n: (n - 1) // 2), (lambda n: (n - 3) // 2), (lambda n: (n - 3) // 4)

CASES: dict[str, Case] = {
    "median": (lambda f: Median(), lambda x, f: oracles.median(x), HALF),
    "trimmed_mean": (TrimmedMean, oracles.trimmed_mean, HALF),
    "mea_med": (MeaMed, lambda x, f: oracles.mean_around_median(x, len(x) - f), HALF),
    "krum": (Krum, oracles.krum, KRUM),
    "multi_krum": (MultiKrum, lambda x, f: oracles.multi_krum(x, f, len(x) - f), KRUM),
    "multi_krum, m=2": (lambda f: MultiKrum(f, m=2), lambda x, f: oracles.multi_krum(x, f, 2), KRUM),
    "bulyan": (Bulyan, oracles.bulyan, BULYAN),
    "mda": (MDA, oracles.mda, HALF),
    "monna": (lambda f: MoNNA(f, trusted=1), lambda x, f: oracles.monna(x, f, 1), HALF),
    "caf": (CAF, oracles.caf, HALF),
    "dnc": (lambda f: DnC(f, filter=1.5), lambda x, f: oracles.dnc(x, f, 1.5), lambda n: (n - 1) // 2),
    "centered_clipping": (
        lambda f: CenteredClipping(radius=1.0),
        lambda x, f: oracles.centered_clipping(x, 1.0, 3, np.zeros(x.shape[1]), np.ones(len(x))),
        HALF,
    ),
    "norm_bound": (lambda f: NormBound(1.5), lambda x, f: oracles.clip(x, 1.5).mean(0), HALF),
    "fools_gold": (
        lambda f: FoolsGold(),
        lambda x, f: np.average(x, axis=0, weights=oracles.fools_gold_weights(x)),
        HALF,
    ),
    "fl_trust": (
        lambda f: FLTrust(root_update=torch.linspace(0.1, 1, 6)),
        lambda x, f: oracles.fl_trust(x, np.linspace(0.1, 1, 6, dtype=np.float32).astype(float)),
        HALF,
    ),
    "nnm": (NNM, oracles.nnm, HALF),
    "clip": (lambda f: Clip(1.5), lambda x, f: oracles.clip(x, 1.5), HALF),
    "arc": (ARC, oracles.arc, HALF),
    "arc, nnm, trimmed mean": (
        lambda f: Pipeline((ARC(f), NNM(f)), TrimmedMean(f)),
        lambda x, f: oracles.trimmed_mean(oracles.nnm(oracles.arc(x, f), f), f),
        HALF,
    ),
    "nnm, krum": (
        lambda f: Pipeline((NNM(f),), Krum(f)),
        lambda x, f: oracles.krum(oracles.nnm(x, f), f),
        lambda n: max(0, min(1, (n - 3) // 2)),
    ),
}


def rows(seed: int, n: int, f: int, offset: float = 0.0) -> np.ndarray[Any, Any]:
    """A crowd at (2, 2, ...), a shared offset, and f rows elsewhere."""
    rng = np.random.default_rng(seed)
    x = 2 + rng.standard_normal((n, 6))
    x[:f] += 4 * rng.standard_normal(6)
    return x + offset


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(5, 12), share=st.floats(0, 1))
def test_the_rule_is_its_paper(name: str, seed: int, n: int, share: float) -> None:
    build, oracle, limit = CASES[name]
    f = round(share * max(0, limit(n)))
    if name == "dnc" and int(1.5 * f) >= n:
        f = 0
    x = rows(seed, n, f)
    found = build(f)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), oracle(x, f), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_float32_gives_the_same_to_its_precision(name: str) -> None:
    build, oracle, _ = CASES[name]
    x = rows(7, 11, 2).astype(np.float32)
    found = build(2)(torch.from_numpy(x))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), oracle(x.astype(float), 2), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["krum", "multi_krum", "bulyan", "mda", "monna", "nnm", "caf", "dnc", "mea_med"]
)
def test_weights_are_treated_as_well_as_updates(name: str) -> None:
    """n = 30 rows of weights that differ by 1e-5, in float32, where the usual distances are noise."""
    build, _, limit = CASES[name]
    g = torch.Generator().manual_seed(0)
    base = 0.05 * torch.randn(1, 20_000, generator=g)
    steps = 1e-5 * torch.randn(30, 20_000, generator=g)
    steps[:5] += 2e-5
    weights = base + steps
    f = min(5, limit(30))
    exact = build(f)(weights.double() - base.double()) + base.double()
    found = build(f)(weights).double()
    assert (found - exact).norm() < 1e-2 * steps[5:].norm(dim=1).mean()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 9),
    scale=st.sampled_from([1.0, 1e-4, 1e-12]),
    equal=st.booleans(),
)
def test_the_geometric_median_has_the_smallest_sum_of_distances(
    seed: int, n: int, scale: float, equal: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = scale * (rng.standard_normal((n, 3)) + 5 * (rng.random((n, 1)) < 0.2))
    weights = np.ones(n) if equal else rng.random(n) + 0.01
    rule = GeometricMedian(max_iter=5000, tol=1e-10)
    given = Given(as_rows(torch.from_numpy(x)), torch.from_numpy(weights / weights.sum()))
    found = rule.play(given, None)[0].numpy()
    slow = oracles.distance_sum(oracles.geometric_median(x, weights), x, weights)
    assert oracles.distance_sum(found, x, weights) <= slow * (1 + 1e-8) + 1e-300


def test_a_geometric_median_that_is_a_row_is_found_exactly() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert GeometricMedian()(x).tolist() == [0.0, 0.0]


def test_a_geometric_median_that_ran_out_of_steps_says_so(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    GeometricMedian(max_iter=1, tol=1e-9)(x)
    assert "raise max_iter" in caplog.text
