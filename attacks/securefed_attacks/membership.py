"""Membership attacks on what a round shows: loss, calibrated loss, update cosine, likelihood ratio.

Each is a frozen dataclass that maps `Evidence`, what was measured on the candidates with models in
evaluation mode, to one score per record, higher for "member". Adversary: whoever saw the update (the
server) or the model after it (everybody, for `Loss` and `LiRA`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from securefed_attacks.lira import lira

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one view shows of n candidate records; None where the view does not show it.

    Attributes:
        loss: (n,), under the attacked model. reference: (n,), under a model that had not seen this round.
        cosine: (r, n), of each record's gradient with minus the update, one row a round.
        confidence: (n,), `lira.confidence` under the attacked model. shadows: (s, n), the same under
            shadow models. included: (s, n), which records a shadow was trained on.
    """

    loss: Floats | None = field(default=None, repr=False)
    reference: Floats | None = field(default=None, repr=False)
    cosine: Floats | None = field(default=None, repr=False)
    confidence: Floats | None = field(default=None, repr=False)
    shadows: Floats | None = field(default=None, repr=False)
    included: NDArray[np.bool_] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MembershipAttack(ABC):
    """Evidence -> scores (n,). `needs` names the fields it reads."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def missing(self, evidence: Evidence) -> tuple[str, ...]:
        """The fields it needs that this evidence lacks; empty where it can be played."""
        return tuple(n for n in self.needs if getattr(evidence, n) is None)

    def __call__(self, evidence: Evidence) -> Floats:
        """A score for each record, float64 (n,).

        Raises:
            ValueError: the evidence lacks what the attack needs.
        """
        lacks = self.missing(evidence)
        if lacks:
            raise ValueError(f"{self.name} needs {', '.join(lacks)}; this view does not show it")
        return self.score(evidence)

    @abstractmethod
    def score(self, evidence: Evidence) -> Floats:
        """The scores, with everything in `needs` given."""


@dataclass(frozen=True)
class Loss(MembershipAttack):
    """A model fits what it has seen: minus the loss (Yeom et al. 2018, section 3.2)."""

    name: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("loss",)

    def score(self, evidence: Evidence) -> Floats:
        assert evidence.loss is not None
        return -evidence.loss


@dataclass(frozen=True)
class CalibratedLoss(MembershipAttack):
    """How much the loss fell: what is easy for every model says nothing (Watson et al. 2022, difficulty calibration).

    The reference is the model that the round began from, which the server knows; it costs no shadow.
    """

    name: ClassVar[str] = "calibrated loss"
    needs: ClassVar[tuple[str, ...]] = ("loss", "reference")

    def score(self, evidence: Evidence) -> Floats:
        assert evidence.loss is not None
        assert evidence.reference is not None
        return evidence.reference - evidence.loss


@dataclass(frozen=True)
class UpdateCosine(MembershipAttack):
    """Cosine of a record's gradient with the step that was taken, averaged over rounds.

    The update is minus a sum of members' gradients, so a member's own is in it (the passive signal of Nasr,
    Shokri and Houmansadr 2019, reduced to one number a round). `securefed_attacks.update_cosine` has the
    cosines.
    """

    name: ClassVar[str] = "update cosine"
    needs: ClassVar[tuple[str, ...]] = ("cosine",)

    def score(self, evidence: Evidence) -> Floats:
        assert evidence.cosine is not None
        mean: Floats = np.atleast_2d(evidence.cosine).mean(0)
        return mean


@dataclass(frozen=True)
class LiRAOnline(MembershipAttack):
    """Likelihood ratio with shadows that did and did not train on the record (Carlini et al. 2022, Algorithm 1)."""

    name: ClassVar[str] = "LiRA online"
    needs: ClassVar[tuple[str, ...]] = ("confidence", "shadows", "included")

    def score(self, evidence: Evidence) -> Floats:
        assert evidence.confidence is not None
        assert evidence.shadows is not None
        assert evidence.included is not None
        return lira(evidence.confidence, evidence.shadows, evidence.included, mode="online")


@dataclass(frozen=True)
class LiRAOffline(MembershipAttack):
    """Only shadows that did not train on the record: what an adversary has who trained them beforehand (section VI-C)."""

    name: ClassVar[str] = "LiRA offline"
    needs: ClassVar[tuple[str, ...]] = ("confidence", "shadows", "included")

    def score(self, evidence: Evidence) -> Floats:
        assert evidence.confidence is not None
        assert evidence.shadows is not None
        assert evidence.included is not None
        return lira(evidence.confidence, evidence.shadows, evidence.included, mode="offline")
