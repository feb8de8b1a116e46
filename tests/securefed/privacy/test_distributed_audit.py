"""The distributed path audited end to end: two worlds, a threshold, a lower bound on epsilon.

The adversary knows everything but the canary client's presence and the honest noise: the seed, the other
client's update, the ring. Its statistic is the decoded sum's component along the canary. With N runs in
each world and a confidence of 99.99 %, the false-positive and true-positive rates of a fixed threshold
bound epsilon from below: log((tpr - delta) / fpr).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from securefed.privacy import samplers
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.design import Cohort, calibrate
from securefed.privacy.distributed import DistributedMechanism, DistributedSkellam
from tests.entropy import SeededEntropy

DELTA, RUNS, DIMENSION = 1e-5, 800, 16
CANARY = np.eye(1, DIMENSION, 3, dtype=np.float32)[0]
OTHER = np.full(DIMENSION, -0.2, np.float32)


def scores(mechanism: DistributedMechanism, canary: np.ndarray, world: int) -> np.ndarray:
    out = []
    for run in range(RUNS):
        seed = b"public seed" + run.to_bytes(4, "big")
        at = mechanism.at_round(seed)
        entropy = SeededEntropy(world)
        total = at.encode(canary, entropy.stream("a", run)) + at.encode(OTHER, entropy.stream("b", run))
        out.append(float(at.decode(total, survivors=2) @ CANARY))
    return np.array(out)


def lower_bound(without: np.ndarray, present: np.ndarray, threshold: float) -> float:
    """Clopper and Pearson's bounds at 5e-5 each side: false with probability 1e-4 over seeds."""
    false, true = int((without > threshold).sum()), int((present > threshold).sum())
    most_false = float(beta.ppf(1 - 5e-5, false + 1, RUNS - false))
    least_true = float(beta.ppf(5e-5, true, RUNS - true + 1)) if true else 0.0
    return math.log(max((least_true - DELTA) / most_false, 1e-9))


def test_an_audit_stays_below_the_claim_and_catches_gross_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort(dimension=DIMENSION, clip=1.0, clients=2, min_survivors=2, bits=20)
    mechanism = calibrate(DistributedSkellam, cohort, epsilon=2.0, delta=DELTA, rounds=1)
    claim = epsilon_of([mechanism.event()], DELTA)
    zero = np.zeros(DIMENSION, np.float32)
    deviation = mechanism.noise_std

    nothing = scores(mechanism, zero, 0)
    assert -1 < lower_bound(nothing, scores(mechanism, CANARY, 1), 0.5) < claim
    far = 5 * deviation
    assert lower_bound(nothing, scores(mechanism, CANARY * 20, 2), far) < claim  # a long canary is clipped

    with monkeypatch.context() as fault:  # the clip is left out
        fault.setattr(DistributedSkellam, "_rounded", unclipped)
        assert lower_bound(nothing, scores(mechanism, CANARY * 20, 3), far) > claim
    with monkeypatch.context() as fault:  # a tenth of the noise
        draw = samplers.Sampler.draw
        fault.setattr(samplers.Sampler, "draw", lambda self, n, stream: draw(self, n, stream) // 10)
        assert lower_bound(scores(mechanism, zero, 4), scores(mechanism, CANARY, 5), 0.5) > claim


def unclipped(self: Any, vector: np.ndarray, stream: Any) -> np.ndarray:
    """The fault: the client rotates and rounds what it has."""
    from securefed.privacy.rotation import rotate

    work = vector.copy()
    rotate(work, self.seed)
    return np.rint(work * np.float32(self.levels / self.clip)).astype(np.int64)
