"""What could be sent instead of an update: the changes that mitigation tries, cheapest first.

Cheap is what costs no accuracy: a secure sum, a layer that is not sent, a larger batch. Clipping with noise comes
last, least noise first, and is the only one that an accountant can turn into a guarantee.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.columns import Column, with_noise
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.replay import Replay
from securefed_attacks.audit.sections import Given, strangers
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target

NOISES = (0.01, 0.1, 1.0)
"""Deviation of each coordinate's noise over the clipping norm (the recipe's, or the update's own), smallest first."""
PEERS = 10
"""Clients of the secure sum that is tried where no other client's update was handed over."""
LARGER = 4
"""Times the batch size that is tried."""


@dataclass(frozen=True, eq=False)
class Change:
    """Something else to send.

    Attributes:
        name: what was changed. update: what is sent instead. spent: rows of non-members that it was trained on:
            they are no non-members of it.
    """

    name: str
    update: Tensors = field(repr=False)
    spent: tuple[int, ...] = ()


def possible_changes(
    given: Given, captured: Captured, first: Column, made: Sequence[Column]
) -> Iterator[Change]:
    """All that can be tried on this view with what was handed over, cheapest first."""
    assert first.update is not None
    total = next((c for c in made if c.name == "sum" and c.update is not None), None)
    if total is not None and total is not first and total.update is not None:
        yield Change(f"secure sum of {total.clients} clients", total.update)
    elif first.clients == 1:
        yield from _simulated_sum(given, captured, first)
    readers = () if isinstance(given.reader, str) else given.reader.shown(0, first.update)
    rest = {n: u for n, u in first.update.items() if not n.startswith(tuple(f"{r}." for r in readers))}
    if readers and rest and len(rest) < len(first.update):
        yield Change("leave the first layer's projections out", rest)
    if first.clients == 1:
        yield from _larger_batch(given, captured)
    norm = min(given.recipe.max_grad_norm or first.norm, first.norm)
    clipped = {n: u * (norm / first.norm) for n, u in first.update.items()}
    for noise in NOISES:
        generator = torch.Generator().manual_seed(given.seed + 7)
        name = f"clip to norm {norm:.3g}, and noise of {noise:g} times that"
        yield Change(name, with_noise(clipped, noise * norm, generator))


def _simulated_sum(given: Given, captured: Captured, first: Column) -> Iterator[Change]:
    """The mean with other clients who trained as this one did, each on as many non-members; half of those are spent."""
    assert first.update is not None
    rows, size = strangers(given), max(1, len(given.members))
    fodder = rows[len(rows) // 2 :]
    peers = min(PEERS - 1, len(fodder) // size)
    replay = _replay(given, captured, given.recipe)
    if peers < 2 or replay is None:
        return
    spent = fodder[: peers * size]
    shards = [np.asarray(spent[k * size : (k + 1) * size], np.int64) for k in range(peers)]
    if not given.clock.allows(
        peers * replay.seconds(shards[0]), f"mitigation: secure sum of {peers + 1} clients"
    ):
        return
    given.clock.tell(f"training {peers} other clients for a secure sum")
    updates = [first.update, *replay.updates(shards, [given.seed + 11 + k for k in range(peers)])]
    mean = {n: sum((u[n] for u in updates if n in u), torch.zeros(())) / len(updates) for n in first.update}
    yield Change(f"secure sum of {peers + 1} clients", mean, tuple(spent))


def _larger_batch(given: Given, captured: Captured) -> Iterator[Change]:
    size = given.recipe.batch_size
    larger = min(LARGER * (size or 0), len(given.members))
    if size is None or larger <= size:
        return
    replay = _replay(given, captured, replace(given.recipe, batch_size=larger))
    rows = np.asarray(given.members, np.int64)
    if replay is None or not given.clock.allows(replay.seconds(rows), "mitigation: a larger batch"):
        return
    yield Change(f"batches of {larger} in place of {size}", replay.update(rows, given.seed))


def _replay(given: Given, captured: Captured, recipe: Recipe) -> Replay | None:
    """A client's training under this recipe, where one client's own update is at hand and it can be repeated."""
    if not given.has_loss or not isinstance(given.target, Target):
        return None
    if recipe.observed not in ("update", "clipped"):
        return None
    names = given.target.trainable(captured.names)
    replay = Replay(given.target, captured.before.tensors, names, recipe)
    return None if replay.missing() else replay
