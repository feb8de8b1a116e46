"""Noisy votes: their sensitivity by trying every change, the paper's bound, and the noise of a job."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed.privacy.votes import vote_release


def test_no_change_of_a_clients_votes_moves_the_counts_further_than_is_charged() -> None:
    """Every pair of vote tables on 3 records of 3 classes, and every table against none."""
    tables = [np.eye(3)[list(v)].ravel() for v in itertools.product(range(3), repeat=3)]
    replaced = max(float(np.linalg.norm(a - b)) for a in tables for b in tables)
    gone = max(float(np.linalg.norm(a)) for a in tables)
    assert 10 / replaced == pytest.approx(vote_release(10.0, 3, "example").noise_multiplier)
    assert 10 / gone == pytest.approx(vote_release(10.0, 3, "client").noise_multiplier)


@pytest.mark.parametrize(("deviation", "records"), [(40.0, 100), (100.0, 1000), (200.0, 3000)])
def test_it_is_within_the_papers_own_bound(deviation: float, records: int) -> None:
    """Papernot et al. 2018, proposition 8: GNMax is (a, a / s^2)-RDP; turned into (epsilon, delta) over all orders a."""
    delta = 1e-6
    orders = np.arange(1.01, 400, 0.01)
    paper = float(np.min(records * orders / deviation**2 + math.log(1 / delta) / (orders - 1)))
    ours = epsilon_of([vote_release(deviation, records, "example")], delta)
    assert 0.7 * paper < ours <= paper


def test_many_small_releases_are_one_large_one() -> None:
    once = epsilon_of([vote_release(30.0, 50, "client")], 1e-5)
    assert once == pytest.approx(epsilon_of([SampledGaussian(30.0, 1.0, 50)], 1e-5), rel=1e-2)


def test_what_bounds_nothing_is_refused() -> None:
    for deviation, records in ((0.0, 1), (math.nan, 1), (1.0, 0)):
        with pytest.raises(PrivacyError, match="deviation > 0"):
            vote_release(deviation, records, "client")
    with pytest.raises(PrivacyError, match="unit is"):
        vote_release(1.0, 1, "record")  # type: ignore[arg-type]  # what a typing error would be
