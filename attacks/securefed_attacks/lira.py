"""Membership by likelihood ratio: how a model treats a record beside how shadow models treated it in and out.

Carlini, Chien, Nasr, Song, Terzis and Tramer 2022, "Membership Inference Attacks From First Principles"
(arXiv 2112.03570), Algorithm 1 (online) and section VI-C (offline). Adversary: sees the final model, or any
model of a run, and can train shadows on data of the same distribution.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
FEWEST = 2
"""Shadows on each side of a record below which a spread cannot be estimated for that record."""


def confidence(logits: torch.Tensor, labels: torch.Tensor) -> Floats:
    """log p_y - log(1 - p_y) of the true label, (..., n): nearly Gaussian over models, unlike the loss (section VI-A).

    Args:
        logits: (..., n, k), of models in evaluation mode. labels: (n,), the same for all leading axes.

    Computed as z_y - logsumexp of the other logits, which loses no digits where p_y is close to one.
    """
    wide = logits.detach().to(torch.float64)
    index = labels.to(wide.device).expand(wide.shape[:-1]).unsqueeze(-1)
    true = wide.gather(-1, index).squeeze(-1)
    others = wide.scatter(-1, index, -math.inf).logsumexp(-1)
    found: Floats = (true - others).cpu().numpy()
    return found


def lira(
    target: Floats,
    shadows: Floats,
    included: Bools,
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["record", "global", "auto"] = "auto",
) -> Floats:
    """A score for each record, (n,): higher where the target model treats it like a member.

    Online: the log likelihood ratio of Gaussians fitted to shadows with and without the record. Offline:
    the probability that a shadow without it would be less confident.

    Args:
        target: (n,), `confidence` of the attacked model. shadows: (s, n), of the shadow models.
        included: (s, n), whether shadow s was trained on record n (not read for records in, offline).
        variance: one spread per record, or one for all records ("auto": for all below 64 shadows, as the
            paper advises).

    Raises:
        ValueError: other shapes, values that are not finite, or a record with fewer than two shadows on a
            side that the mode needs.
    """
    _check(target, shadows, included, mode)
    one_for_all = variance == "global" or (variance == "auto" and len(shadows) < 64)
    out_mean, out_std = _fit(shadows, ~included, one_for_all)
    if mode == "offline":
        return np.asarray(stats.norm.logcdf(target, out_mean, out_std), np.float64)
    in_mean, in_std = _fit(shadows, included, one_for_all)
    ratio: Floats = stats.norm.logpdf(target, in_mean, in_std) - stats.norm.logpdf(target, out_mean, out_std)
    return ratio


def calibrated(target: Floats, shadows: Floats, included: Bools) -> Floats:
    """The target's confidence less the mean of shadows that never saw the record (Watson et al. 2022, difficulty calibration)."""
    _check(target, shadows, included, "offline")
    mean: Floats = _fit(shadows, ~included, True)[0]
    return target - mean


def halves(shadows: int, records: int, generator: np.random.Generator) -> Bools:
    """Which shadow trains on which record, (shadows, records): each record in exactly half of them.

    Raises:
        ValueError: an odd number of shadows.
    """
    if shadows < 2 or shadows % 2:
        raise ValueError(f"shadows come in pairs, in and out; got {shadows}")
    order = generator.random((shadows, records)).argsort(0)
    chosen: Bools = order < shadows // 2
    return chosen


def _fit(shadows: Floats, chosen: Bools, one_for_all: bool) -> tuple[Floats, Floats]:
    """Mean (n,) and standard deviation (n,) of the chosen shadows' values of each record."""
    count = chosen.sum(0)
    mean = np.where(chosen, shadows, 0).sum(0) / count
    squares = np.where(chosen, (shadows - mean) ** 2, 0).sum(0)
    spread = (
        np.full(len(mean), squares.sum() / max(1, int((count - 1).sum())))
        if one_for_all
        else squares / (count - 1)
    )
    # a record on which all shadows agree to the last bit would divide by zero
    return mean, np.sqrt(np.maximum(spread, 1e-12))


def _check(target: Floats, shadows: Floats, included: Bools, mode: str) -> None:
    if shadows.ndim != 2 or included.shape != shadows.shape or target.shape != shadows.shape[1:]:
        raise ValueError(
            f"needs target (n,), shadows (s, n) and included (s, n); got {target.shape}, {shadows.shape}, {included.shape}"
        )
    if not (np.isfinite(target).all() and np.isfinite(shadows).all()):
        raise ValueError("a confidence is not finite; a model that diverged says nothing about membership")
    sides = {"out": ~included, "in": included} if mode == "online" else {"out": ~included}
    for side, chosen in sides.items():
        fewest = int(chosen.sum(0).min())
        if fewest < FEWEST:
            raise ValueError(
                f"a record was {side} of only {fewest} shadows, {FEWEST} are needed; train more, or split by halves()"
            )
