"""Membership from updates over rounds: a record's alignment with one client, beside its alignment with all others.

Zhu et al., "FedMIA: an effective membership inference attack exploiting the all for one principle in federated
learning", CVPR 2025, arXiv 2402.06289: updates of other clients show how a record that was not trained on aligns, so they
stand in for shadow models; per round a Gaussian is fitted to them, and the rounds' log probabilities are added up.

Adversary: sees every client's update of several rounds (a server without secure sums). Under a secure sum only the total is
left, no client stands beside another, and the score has nothing to compare.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
FEWEST = 3
"""Other clients below which a spread says nothing."""


def alignment(gradients: torch.Tensor, updates: torch.Tensor) -> Floats:
    """Cosine of each record's loss *descent* with each client's update, (c, n).

    Args:
        gradients: (n, d), of the loss of one record each, at the round's first model, in evaluation mode.
        updates: (c, d), new minus old, of one round.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    if gradients.ndim != 2 or updates.ndim != 2 or gradients.shape[1] != updates.shape[1]:
        raise ValueError(
            f"needs gradients (n, d) and updates (c, d); got {tuple(gradients.shape)}, {tuple(updates.shape)}"
        )
    cosines = _unit(updates) @ -_unit(gradients).T
    if not bool(cosines.isfinite().all()):
        raise ValueError("a gradient or an update holds a value that is not finite")
    found: Floats = cosines.cpu().numpy()
    return found


def fedmia(aligned: Floats, client: int) -> Floats:
    """A score for each record, (n,): higher where this client's updates treat it unlike the others' do.

    Args:
        aligned: (rounds, c, n), `alignment` of each round, clients in the same order. client: whose data is asked about.

    Raises:
        ValueError: another shape, no such client, or fewer than three others.
    """
    if aligned.ndim != 3 or not 0 <= client < aligned.shape[1]:
        raise ValueError(
            f"needs (rounds, clients, records) and one of its clients; got {aligned.shape}, {client}"
        )
    others = np.delete(aligned, client, 1)
    if others.shape[1] < FEWEST:
        raise ValueError(
            f"fedmia compares with at least {FEWEST} other clients, got {others.shape[1]}; under a secure sum there are none"
        )
    mean, spread = others.mean(1), np.maximum(others.std(1, ddof=1), 1e-12)
    per_round = stats.norm.logcdf(aligned[:, client], mean, spread)
    score: Floats = per_round.sum(0)
    return score


def _unit(rows: torch.Tensor) -> torch.Tensor:
    wide = rows.detach().double()
    lengths: torch.Tensor = wide.norm(dim=1, keepdim=True)
    return wide / lengths.clamp_min(1e-300)
