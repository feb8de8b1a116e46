"""Canaries whose whole contribution is a direction that the auditor chose, and the verdict over them.

Each is in or out by a fair coin that the auditor keeps. Whoever sees what a mechanism released projects it on the
canaries' directions, guesses the coins from that, and a DP claim bounds how many guesses can be right.
Gradient-space canaries: Nasr et al. 2023 (arXiv 2302.07956); the bound from one run: Steinke, Nasr
and Jagielski 2023 (arXiv 2305.08846), Theorem 5.2.

Adversary: sees everything released, knows all records and clients but the coins. A bound found so speaks of
the mechanism as it ran, and is below its epsilon with the stated confidence; that it is small is no proof.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefed_attacks.epsilon_bounds import SHARES, best_guesses, one_run_ceiling, one_run_epsilon
from securefed_attacks.gaussian_bounds import gaussian_ceiling, one_run_epsilon_gaussian

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Verdict = Literal["FAIL", "UNDERPOWERED", "NO EVIDENCE"]
Assumed = Literal["nothing", "gaussian"]
"""What a bound takes for granted about the mechanism: nothing, or that its noise is Gaussian at sample rate 1."""


class Canaries(ABC):
    """m unit directions in d coordinates, and which of them take part.

    Attributes:
        d: coordinates of what is released. included: bool (m,), the coins; a secret until the guesses are made.
    """

    d: int
    included: Bools

    @property
    def m(self) -> int:
        """How many canaries there are, in or out."""
        return len(self.included)

    @abstractmethod
    def direction(self, canary: int) -> NDArray[np.float32]:
        """A canary's unit vector, float32 (d,)."""

    @abstractmethod
    def scores(self, released: ArrayLike) -> Floats:
        """How far what was released points in each canary's direction, (m,); any positive scale will do.

        Args:
            released: (d,), the sum over all releases of what a canary adds its direction to (new minus old).
        """

    def contribution(self, canary: int, norm: float) -> NDArray[np.float32]:
        """What the canary sends, float32 (d,): its direction times norm, or zero if its coin said out."""
        return self.direction(canary) * np.float32(norm if self.included[canary] else 0)


@dataclass(frozen=True, eq=False)
class Dirac(Canaries):
    """Canary j is coordinate j alone, so no canary disturbs another; needs m <= d."""

    d: int
    included: Bools = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.included) <= self.d:
            raise ValueError(
                f"Dirac canaries need 1 <= m <= d, got m={len(self.included)} and d={self.d}; draw random directions"
            )

    def direction(self, canary: int) -> NDArray[np.float32]:
        """The unit vector of coordinate `canary`."""
        out = np.zeros(self.d, np.float32)
        out[canary] = 1
        return out

    def scores(self, released: ArrayLike) -> Floats:
        """The first m coordinates."""
        return _released(released, self.d)[: self.m]


@dataclass(frozen=True, eq=False)
class Isotropic(Canaries):
    """Directions uniform on the sphere, float32 (m, d), held in memory; they disturb each other by about sqrt(m / d)."""

    directions: NDArray[np.float32] = field(repr=False)
    included: Bools = field(repr=False)

    @property
    def d(self) -> int:  # type: ignore[override]  # read only, as on a frozen dataclass
        """Coordinates of what is released."""
        return int(self.directions.shape[1])

    def direction(self, canary: int) -> NDArray[np.float32]:
        """Row `canary`."""
        row: NDArray[np.float32] = self.directions[canary]
        return row

    def scores(self, released: ArrayLike) -> Floats:
        """Inner products with all directions."""
        found: Floats = self.directions @ _released(released, self.d)
        return found


def draw_canaries(
    m: int, d: int, generator: np.random.Generator, kind: Literal["dirac", "isotropic"] = "dirac"
) -> Canaries:
    """m canaries for a release of d coordinates, each in or out by its own fair coin.

    Raises:
        ValueError: no canary, or more Dirac canaries than coordinates.
    """
    if m < 1 or d < 1:
        raise ValueError(f"an audit needs m >= 1 canaries and d >= 1 coordinates, got m={m}, d={d}")
    included = generator.random(m) < 0.5
    if kind == "dirac":
        return Dirac(d, included)
    rows = generator.standard_normal((m, d))
    return Isotropic((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), included)


@dataclass(frozen=True, slots=True)
class DPAudit:
    """A claimed epsilon beside the most that one audited run refutes.

    Attributes:
        claimed: epsilon of the claim, at delta. bound: with `confidence`, the mechanism's epsilon is not below it.
        ceiling: the bound if every guess had been right; a claim at or above it cannot be refuted.
        m: canaries (or runs, where each has one). guesses: how many coins were guessed (r). correct: how many of them rightly.
        delta: of claim and bound. confidence: that the bound holds.
        assumes: "gaussian" where the bound holds for Gaussian mechanisms only.
    """

    claimed: float
    bound: float
    ceiling: float
    m: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    assumes: Assumed = "nothing"

    @property
    def verdict(self) -> Verdict:
        """FAIL: the claim is refuted. UNDERPOWERED: this audit could not have. NO EVIDENCE: it could, and did not."""
        if self.bound > self.claimed:
            return "FAIL"
        return "UNDERPOWERED" if self.ceiling <= self.claimed else "NO EVIDENCE"

    def __str__(self) -> str:
        said = {
            "FAIL": f"the claim is refuted: epsilon is at least {self.bound:.2f}",
            "UNDERPOWERED": "cannot refute the claim, whatever the run had released; use more canaries",
            "NO EVIDENCE": "not refuted, which is no proof",
        }[self.verdict]
        noise = "" if self.assumes == "nothing" else f", taking the noise to be {self.assumes}"
        return (
            f"{self.verdict}: claimed epsilon {self.claimed:.2f}, bound {self.bound:.2f}, ceiling {self.ceiling:.2f} at "
            f"delta {self.delta:g} ({self.confidence:.1%} confidence{noise}): {said}. {self.correct} of {self.guesses} "
            f"guesses right, m = {self.m}"
        )


def one_run_audit(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    claimed: float,
    assumes: Assumed = "nothing",
    shares: Sequence[float] = SHARES,
) -> DPAudit:
    """The verdict over canaries that were scored from one run, or from several whose coins are all independent.

    Args:
        scores: (m,), higher where the canary is believed in. included: (m,), the coins.
        delta: of the claim, in [0, 1). confidence: of the bound, the choice of a share included.
        claimed: epsilon at delta; infinity is never refuted.
        assumes: "gaussian" tests a claim of Gaussian noise at sample rate 1 and refutes more (f-DP variant).
        shares: of the canaries that are guessed, tried one after another; the confidence is divided among them.

    Raises:
        ValueError: scores that are not numbers, one missing, or an argument out of range.
    """
    if not claimed >= 0:
        raise ValueError(f"a claimed epsilon is 0 or more, got {claimed}")
    m, level = np.asarray(scores).size, 1 - (1 - confidence) / len(shares)
    bounding = one_run_epsilon_gaussian if assumes == "gaussian" else one_run_epsilon
    best: tuple[float, int, int] = (-1.0, 0, 0)
    for share in shares:
        correct, guesses = best_guesses(scores, included, share)
        best = max(best, (bounding(correct, guesses, m, delta, level), correct, guesses))
    reaching = gaussian_ceiling if assumes == "gaussian" else one_run_ceiling
    ceiling = reaching(m, delta, confidence, len(shares))
    return DPAudit(claimed, best[0], ceiling, m, best[2], best[1], delta, confidence, assumes)


def pooled(audits: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[Floats, Bools]:
    """(scores, coins) of several independent runs of one mechanism as those of one audit.

    Scores are put on one scale first, run by run (mean 0, variance 1, whatever the coins). All runs together
    are epsilon-DP in each coin, since each coin is in one of them.
    """
    scores = [np.asarray(s, np.float64) for s, _ in audits]
    scaled = [(s - s.mean()) / max(float(s.std()), math.ulp(1.0)) for s in scores]
    return np.concatenate(scaled), np.concatenate([np.asarray(c, np.bool_) for _, c in audits])


def family_confidence(confidence: float, audits: int) -> float:
    """The confidence of each of several audits so that all their bounds hold together (Bonferroni).

    >>> round(family_confidence(0.95, 5), 3)
    0.99
    """
    if audits < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"needs at least one audit and a confidence in (0, 1), got {audits} and {confidence}"
        )
    return 1 - (1 - confidence) / audits


def _released(released: Any, d: int) -> Floats:
    found = np.asarray(released, np.float64)
    if found.shape != (d,) or not np.isfinite(found).all():
        raise ValueError(f"what was released is a finite vector ({d},), got shape {found.shape}")
    return found
