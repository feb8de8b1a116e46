"""Shadow models for LiRA: the round's local training repeated on random halves of the candidates.

They are trained all at once where that can be (`Replay.together`), else one after another; as many as the time holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.clock import Clock
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.replay import Replay
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.lira import halves

Floats = NDArray[np.float64]
FEWEST = 4
"""Two in and two out of each record: fewer have no spread."""
SHARE = 0.7
"""Of the time that is left, the part that shadows may take."""


def cast_shadows(
    target: Target, captured: Captured, recipe: Recipe, clock: Clock, count: int, seed: int, rounds: int
) -> tuple[Floats, NDArray[np.bool_]] | str:
    """(confidences (s, n), which records each was trained on), or the reason why there are none."""
    replay = Replay(target, captured.before.tensors, target.trainable(captured.names), recipe)
    lacks = replay.missing()
    if rounds > 1:
        return "shadows repeat one round, and several were handed over"
    if lacks:
        return f"shadows need {', '.join(lacks)}"
    if recipe.observed in ("sum", "final"):
        return "shadows repeat a single client's training, and a sum or a final model was captured"
    if count < FEWEST:
        return "no shadows were asked for"
    affordable = _affordable(target, replay, clock, count)
    if affordable < FEWEST:
        return f"the time budget does not hold {FEWEST} shadows"
    included = halves(affordable, len(target), np.random.default_rng([seed, 0x5AD0]))
    found = []
    for update in _updates(replay, included, seed, clock):
        state = {**captured.before.tensors, **{n: captured.before.tensors[n] + u for n, u in update.items()}}
        found.append(target.score(state).confidence)
    return np.stack(found), included


def _affordable(target: Target, replay: Replay, clock: Clock, count: int) -> int:
    """As many pairs as fit; what they take is estimated one by one, an upper bound where they train together."""
    began = time.monotonic()
    target.score(replay.before)
    each = replay.seconds(np.arange(len(target))) + time.monotonic() - began
    if clock.left == float("inf"):
        return count
    fit = max(0, int(SHARE * clock.left / max(each, 1e-9)) // 2 * 2)
    if fit < FEWEST:
        clock.allows(FEWEST * each / SHARE, f"LiRA with at least {FEWEST} shadows")
    elif fit < count:
        clock.left_out.append(f"LiRA has {fit} of {count} shadows, about {each:.1f} s each")
    return min(count, fit)


def _updates(replay: Replay, included: NDArray[np.bool_], seed: int, clock: Clock) -> Iterator[Tensors]:
    rows, count = [np.flatnonzero(row) for row in included], len(included)
    clock.tell(f"training {count} shadows")
    for k, update in enumerate(replay.updates(rows, [seed + k for k in range(count)])):
        clock.tell(f"shadow {k + 1} of {count}")
        yield update
