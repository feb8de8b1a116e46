"""The section on mitigation: changes of what is sent, cheapest first, until the findings are gone. Before and after.

A trial here is an experiment on this update. It is no guarantee: only an accountant's epsilon is one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from securefed_attacks.audit.belonging import Belonging, Membership
from securefed_attacks.audit.changes import Change, possible_changes
from securefed_attacks.audit.columns import Column
from securefed_attacks.audit.reconstruction import Reconstruction
from securefed_attacks.audit.report import Trial
from securefed_attacks.audit.sections import Given, rebuild_one
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.membership import CalibratedLoss, Evidence, Loss, MembershipAttack, UpdateCosine
from securefed_attacks.statistics import auc_interval
from securefed_attacks.update_cosine import update_cosine

ASKED: tuple[MembershipAttack, ...] = (Loss(), CalibratedLoss(), UpdateCosine())


def mitigate(given: Given, rebuilt: Sequence[Reconstruction], found: Belonging | None) -> list[Trial]:
    """Changes of the first view that leaks, cheapest first, each kind of leak until one is enough.

    A leak here is a reconstruction called LEAKS, or a membership attack whose AUC is surely above chance.
    """
    captured, made = given.shown
    first = next((c for c in made if c.update is not None and c.shows_update), None)
    if first is None or not isinstance(given.target, Target) or not _leaks(first, rebuilt, found):
        return []
    changes = list(possible_changes(given, captured, first, made))
    losses = _Losses(given, first)
    return [
        *_against_reconstruction(given, first, rebuilt, changes, losses),
        *_against_membership(given, first, found, changes, losses),
    ]


class _Losses:
    """Every candidate's loss with an update applied, asked of the model once for each update."""

    def __init__(self, given: Given, first: Column) -> None:
        assert first.update is not None
        self.given, self.unchanged = given, first.update
        self.before = given.shown[0].before.tensors
        self._asked: dict[int, tuple[Tensors, NDArray[np.float64]]] = {}

    def of(self, update: Tensors) -> NDArray[np.float64]:
        """(n,) nats."""
        assert isinstance(self.given.target, Target)
        if id(update) not in self._asked:
            state = {**self.before, **{n: self.before[n] + u for n, u in update.items()}}
            self._asked[id(update)] = update, self.given.target.score(state).loss
        return self._asked[id(update)][1]

    def cost(self, change: Change) -> tuple[float | None, float | None]:
        """Non-members' mean loss with the update applied, unchanged and changed."""
        rows = np.asarray([i for i in self.given.others if i not in change.spent], np.int64)
        if not self.given.has_loss or not len(rows):
            return None, None
        one, two = (float(self.of(u)[rows].mean()) for u in (self.unchanged, change.update))
        return one, two


def _leaks(first: Column, rebuilt: Sequence[Reconstruction], found: Belonging | None) -> bool:
    """Whether there is anything to change: nothing is trained for a trial that is not needed."""
    return any(r.leaks for r in rebuilt if r.view == first.name) or _best(first, found) is not None


def _best(first: Column, found: Belonging | None) -> Membership | None:
    """The best attack without shadows on this view, where it is surely above chance."""
    asked = {a.name for a in ASKED}
    known = [r for r in found.results if r.view == first.name and r.attack in asked] if found else []
    best = max(known, key=lambda r: r.auc.value, default=None)
    return best if best is not None and best.auc.low > 0.5 else None


def _against_reconstruction(
    given: Given,
    first: Column,
    rebuilt: Sequence[Reconstruction],
    changes: Sequence[Change],
    losses: _Losses,
) -> Iterator[Trial]:
    here = next((r for r in rebuilt if r.view == first.name and r.leaks), None)
    if here is None:
        return
    for change in changes:
        if not given.clock.allows(0.0, f"mitigation: {change.name}"):
            return
        given.clock.tell(f"mitigation: {change.name}")
        after = rebuild_one(given, change.update, change.spent)
        hits = 0 if after is None else after.used.ours.hits
        enough = after is None or not after.leaks
        named = float(here.used.ours.hits), float(hits)
        yield Trial(change.name, first.name, "tokens named", *named, *losses.cost(change), enough)
        if enough:
            return


def _against_membership(
    given: Given, first: Column, found: Belonging | None, changes: Sequence[Change], losses: _Losses
) -> Iterator[Trial]:
    """The three attacks that need no shadows; whichever is best on the changed update counts."""
    best = _best(first, found)
    if best is None or given.rows is None or given.rows.member is None:
        return
    assert isinstance(given.target, Target)
    before = given.shown[0].before.tensors
    began = time.monotonic()
    reference = given.target.score(before).loss
    each = time.monotonic() - began
    tried = [c for c in changes if given.clock.allows(each, f"mitigation: {c.name}")]
    cosines = _cosines(given, before, [c.update for c in tried], best.attack == UpdateCosine.name)
    for k, change in enumerate(tried):
        given.clock.tell(f"mitigation: {change.name}")
        cosine = cosines[k] if cosines else None
        evidence = Evidence(loss=losses.of(change.update), reference=reference, cosine=cosine)
        judged = ~np.isin(np.arange(len(given.rows)), change.spent)
        scores = [a(evidence)[judged] for a in ASKED if not a.missing(evidence)]
        after = max((auc_interval(s, given.rows.member[judged]) for s in scores), key=lambda i: i.value)
        enough = after.low <= 0.5
        aucs = best.auc.value, after.value
        yield Trial(change.name, first.name, "best AUC", *aucs, *losses.cost(change), enough)
        if enough:
            return


def _cosines(
    given: Given, before: Tensors, updates: Sequence[Tensors], wanted: bool
) -> list[NDArray[np.float64]] | None:
    """Each update's cosines (1, n), from one pass over the records; None where it was not asked for or does not fit."""
    assert isinstance(given.target, Target)
    names = given.target.trainable(given.shown[0].names)
    if not wanted or not updates or not given.clock.allows(given.clock.spent / 4, "mitigation: gradients"):
        return None
    flat = torch.stack(
        [torch.cat([u.get(n, torch.zeros_like(before[n])).reshape(-1) for n in names]) for u in updates]
    )
    gradients = (
        torch.cat([g[n].reshape(-1) for n in names])
        for g in given.target.gradients(before, names, np.arange(len(given.target)))
    )
    return [row[None] for row in update_cosine(gradients, flat)]
