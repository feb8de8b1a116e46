"""The model that is handed out: the last iterate, or an exponential average of the last ones.

Polyak and Juditsky 1992 for stochastic approximation; under DP it costs nothing, because it is computed
from models that have been released already. Noise of single rounds averages out; a falling learning rate
does the same, so use one or the other.
"""

from __future__ import annotations

import numpy as np

from securefed.algorithms.plan import RoundPlan
from securefed.types import Vector


def averaged(average: Vector | None, vector: Vector, plan: RoundPlan, decay: float) -> Vector | None:
    """decay x average + (1 - decay) x vector, float32 (d,); None where nothing is averaged (decay 0).

    It starts again with each stage (centre, head alone, adapter): an iterate from before an adapter moved
    says nothing about where it is now.

    Args:
        average: after the round before, None at the start. vector: the model after this round.
        plan: this round's. decay: in [0, 1), the weight of the past.
    """
    if decay == 0:
        return None
    if average is None or plan.progress == 0 or plan.anchors:
        return vector
    return (np.float32(decay) * average + np.float32(1 - decay) * vector).astype(np.float32)
