"""The sections of an audit, each made from what was handed over, and the words for what was not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from securefed_attacks.audit import belonging
from securefed_attacks.audit.base import NoTarget
from securefed_attacks.audit.belonging import Belonging
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.clock import Clock
from securefed_attacks.audit.columns import Column, control_columns
from securefed_attacks.audit.evidence import Measured, measure
from securefed_attacks.audit.exposure import Exposure, expose, prove
from securefed_attacks.audit.labels import Labels, count_labels
from securefed_attacks.audit.reading import read_updates, reader_of
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.reconstruction import Reconstruction, compare
from securefed_attacks.audit.replay import Replay
from securefed_attacks.audit.report import AuditReport
from securefed_attacks.audit.shift import measure_shift
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.audit.verdict import Finding
from securefed_attacks.transformer_reader import Reader

Rounds = list[tuple[Captured, list[Column]]]
WRONG_STREAM = 0x3B0
"""Separates the noise on the control from the noise on what it is a control of."""
LABEL_PROBE = 8
"""Records that are timed before all non-members are asked for their mean prediction."""
SPAN_SHARE = 0.4
"""Of the time that is left, the part that looking for tokens may take: membership must not starve behind it."""
CLEAR_AUC = 0.6
"""An AUC surely above this is worth a warning even where the verdict, which asks about few false alarms, is not LEAKS."""


@dataclass(frozen=True, eq=False)
class Given:
    """What was handed over, read and checked.

    Attributes:
        rounds: each round's update and its views. names: what they are called. beside: other clients' updates of
            the first one. sampled: how a run's candidates were drawn. groups: what its group sums determine together.
    """

    recipe: Recipe
    rows: Candidates | None = field(repr=False)
    rounds: Rounds = field(repr=False)
    target: Target | NoTarget
    clock: Clock
    claimed: float | None = None
    fpr: float = 0.01
    shadows: int = 16
    seed: int = 0
    show_text: bool = False
    sampled: str = ""
    groups: str = ""
    beside: Sequence[Captured] = ()
    names: Sequence[str] = ()

    @cached_property
    def shown(self) -> tuple[Captured, list[Column]]:
        """The first round whose update shows what the first layer was fed, at best in its own space; else the first."""
        reader = reader_of(self.target, {}) if isinstance(self.target, Target) else ""
        if isinstance(reader, str):
            return self.rounds[0]
        seen = [(r, reader.observed(0, r[0].update, r[0].before.tensors)) for r in self.rounds]
        shows = [r for r, o in seen if o.direct] or [r for r, o in seen if o.through]
        return next(iter(shows), self.rounds[0])

    @cached_property
    def reader(self) -> Reader | str:
        """The model that reads tokens as it was when that round began, or why there is none."""
        if not isinstance(self.target, Target):
            return self.target.lacks
        return reader_of(self.target, self.shown[0].before.tensors)

    @property
    def longest(self) -> int:
        """Tokens of the longest member."""
        tokens = self.target.encoded.tokens if isinstance(self.target, Target) else None
        return max((len((tokens or ())[i]) for i in self.members), default=self.recipe.max_length)

    @property
    def members(self) -> Sequence[int]:
        """Rows of the members."""
        return [] if self.rows is None else [int(i) for i in self.rows.members]

    @property
    def others(self) -> Sequence[int]:
        """Rows of the non-members."""
        return [] if self.rows is None else [int(i) for i in self.rows.others]

    @property
    def has_loss(self) -> bool:
        """Whether the candidates have a loss under this model."""
        t = self.target
        return (
            isinstance(t, Target) and len(t) > 0 and (t.kind == "causal-lm" or t.encoded.labels is not None)
        )


def nothing_moved(given: Given) -> AuditReport:
    """The report on an update of zeros."""
    why = "the two states are equal in every tensor: nothing was learned between them, or the wrong files were handed over"
    return AuditReport(
        findings=(Finding("UNDERPOWERED", "input", "", why),),
        facts=facts(given),
        missing=("two states between which something was trained",),
        seconds=given.clock.spent,
    )


def expose_round(given: Given) -> Exposure | None:
    """The leakage budget of the round that is read; None without a model that reads tokens."""
    if not isinstance(given.target, Target) or given.target.body is None:
        return None
    given.clock.tell("counting unknowns and equations")
    reader, captured = given.reader, given.shown[0]
    if isinstance(reader, str):
        return Exposure((), captured.lora, None, None, 0, None, reader)
    partial = given.rows is not None and given.rows.partial
    return expose(given.target, reader, captured, given.recipe, given.members, partial)


def rebuild(given: Given, exposure: Exposure | None) -> tuple[list[Reconstruction], Exposure | None]:
    """Tokens and texts from every view of one round, beside the controls, and the budget held against them."""
    reader, target = given.reader, given.target
    if exposure is None or not exposure.readers or not given.members:
        return [], exposure
    assert isinstance(target, Target)
    assert not isinstance(reader, str)
    captured, made = given.shown
    updates = {c.name: c.update for c in made if c.update is not None and c.shows_update}
    clock = given.clock.part(SPAN_SHARE)
    before, longest = captured.before.tensors, given.longest
    wrong = _wrong_updates(given, captured)
    part = clock.part(0.6 if wrong else 1.0)
    read = read_updates(target, reader, before, updates, longest, part, ordered=tuple(updates))
    beside = read_updates(target, reader, before, wrong, longest, clock)
    results = compare(target, read, beside, given.members, given.others)
    first = next(iter(read.values()), None)
    if first is not None:
        exposure = prove(exposure, target, first.bag, given.members, given.others)
    return results, exposure


def rebuild_one(given: Given, update: Tensors, spent: Sequence[int] = ()) -> Reconstruction | None:
    """The same attack on one changed update, beside the baseline; None where no token can be looked for in it.

    Args:
        spent: rows of non-members that the change was trained on; the baseline must not read them.
    """
    reader, target = given.reader, given.target
    assert isinstance(target, Target)
    if isinstance(reader, str):
        return None
    before = given.shown[0].before.tensors
    read = read_updates(
        target, reader, before, {"changed": update}, given.longest, given.clock.part(SPAN_SHARE)
    )
    others = [i for i in given.others if i not in set(spent)]
    return next(iter(compare(target, read, {}, given.members, others)), None)


def _wrong_updates(given: Given, captured: Captured) -> dict[str, Tensors]:
    """The recipe on as many non-members, as each view shows it; empty where it cannot be repeated or has no time."""
    assert isinstance(given.target, Target)
    if not given.has_loss or not given.others or given.recipe.observed in ("sum", "final"):
        return {}
    replay = Replay(
        given.target, captured.before.tensors, given.target.trainable(captured.names), given.recipe
    )
    rows = np.asarray(strangers(given)[: max(1, len(given.members))], np.int64)
    if not len(rows):
        return {}
    if replay.missing() or not given.clock.allows(replay.seconds(rows), "the wrong-update control"):
        return {}
    given.clock.tell("training the wrong-update control on non-members")
    generator = torch.Generator().manual_seed(given.seed + WRONG_STREAM)
    wrong = replay.update(rows, given.seed)
    return control_columns(captured, wrong, given.recipe, given.beside, generator)


def strangers(given: Given) -> list[int]:
    """Non-members that are not, word for word, members too: training on those is no control."""
    texts = None if given.rows is None else given.rows.texts
    inside = {texts[i] for i in given.members} if texts else set()
    return [i for i in given.others if not texts or texts[i] not in inside]


def read_labels(given: Given) -> Labels | None:
    """Class shares from the last layer; None without classes."""
    if not given.has_loss or not isinstance(given.target, Target):
        return None
    captured = given.rounds[0][0]
    if captured.lora and not any(n.endswith("bias") for n in captured.names):
        return Labels(why_not="the last layer's bias is not in the update")
    few = np.asarray(given.others[:LABEL_PROBE], np.int64)
    began = time.monotonic()
    given.target.score(captured.before.tensors, few)
    each = (time.monotonic() - began) / max(1, len(few))
    if not given.clock.allows(2 * each * len(given.others), "labels"):
        return Labels(why_not="the time budget; see what was left out")
    return count_labels(
        given.target, captured, given.recipe, np.asarray(given.members), np.asarray(given.others)
    )


def ask_membership(given: Given) -> tuple[Measured | None, Belonging | None]:
    """Every membership attack on every view; (None, None) without losses or without both groups."""
    rows = given.rows
    if rows is None or rows.member is None or not given.has_loss or not isinstance(given.target, Target):
        return None, None
    if not given.members or not given.others:
        return None, None
    given.clock.tell("are members and non-members from one distribution?")
    shift = measure_shift(rows)
    power = belonging.smallest_detectable(len(given.members), len(given.others), given.fpr, 1)
    shadows = given.shadows if power is not None and shift.auc is not None else 0
    measured = measure(given.target, given.rounds, given.recipe, given.clock, shadows, given.seed)
    not_made = dict(measured.not_made)
    if given.shadows and not shadows:
        not_made["LiRA"] = "no shadows are trained for records too few to carry a verdict"
    return measured, belonging.judge(measured.evidence, rows, given.fpr, shift, not_made)


def gaps(
    given: Given, findings: Sequence[Finding], exposure: Exposure | None, not_made: Mapping[str, str]
) -> list[Finding]:
    """A finding for each section that could not be made at all: UNDERPOWERED, with what is missing."""
    found = []
    if not any(f.section == "membership" for f in findings):
        found.append(Finding("UNDERPOWERED", "membership", "", _why_no_membership(given)))
    if exposure is not None and exposure.readers and not any(f.section == "reconstruction" for f in findings):
        why = "candidates that are known to be members are needed: tokens that are found are compared with theirs"
        found.append(Finding("UNDERPOWERED", "reconstruction", "", why))
    late = [
        Finding("UNDERPOWERED", "membership", "", f"{attack} was not played: {why}")
        for attack, why in not_made.items()
        if "time budget" in why
    ]
    return [*found, *_not_reached(given, findings), *late]


def _not_reached(given: Given, findings: Sequence[Finding]) -> list[Finding]:
    """A finding for each view that an attack was played on others of and not on it: the time did not hold it."""
    made = [c for c in given.rounds[0][1] if c.update is not None]
    found = []
    for section, views in (
        ("reconstruction", [c.name for c in made if c.shows_update]),
        ("membership", [c.name for c in made]),
    ):
        judged = {f.view for f in findings if f.section == section} - {""}
        found += [
            Finding("UNDERPOWERED", section, view, "not judged: the time budget; see what was left out")
            for view in views
            if judged and view not in judged
        ]
    return found


def _why_no_membership(given: Given) -> str:
    rows = given.rows
    if rows is None:
        return "no candidate records; hand over members and non-members (candidates=, --candidates)"
    if rows.member is None:
        return "nobody says which candidates are members; add the column, or is_member="
    if not given.members or not given.others:
        return belonging.too_few(len(given.members), len(given.others), given.fpr)
    if isinstance(given.target, NoTarget):
        return f"without {given.target.lacks} no record has a loss"
    return (
        "the candidates have no loss under this model: labels are missing, or the model has no head (base=)"
    )


def missing(given: Given) -> tuple[str, ...]:
    """What to hand over for a fuller audit."""
    found = []
    if isinstance(given.target, NoTarget):
        found.append(given.target.lacks)
    if given.rows is None:
        found.append("candidate records with membership (candidates)")
    lacks = given.recipe.to_replay()
    if lacks:
        found.append(
            f"recipe: {', '.join(lacks)} (for the leakage budget, the wrong-update control and shadows)"
        )
    return tuple(found)


def warnings(given: Given, found: Belonging | None) -> tuple[str, ...]:
    """What makes the numbers mean something else than they seem to."""
    told = []
    if given.rows is not None and given.rows.partial and given.rows.texts is not None:
        told.append(
            "the members are a sample of what was trained on: tokens of the others are counted as false"
        )
    above = [] if found is None else [r for r in found.results if r.auc.low > CLEAR_AUC and not r.leaks]
    if above and found is not None and not any(r.leaks for r in found.results):
        best = max(above, key=lambda r: r.auc.value)
        told.append(
            f"members and non-members are told apart on the whole ({best.attack}, {best.view}: AUC {best.auc}), "
            "though no single member with few false alarms: more records may show a leak"
        )
    if found is not None and found.shift is not None:
        if found.shift.shifted:
            told.append(
                f"members and non-members can be told apart without the model (AUC {found.shift.auc}): "
                "the membership numbers measure that as well"
            )
        if found.shift.duplicates:
            told.append(
                f"{found.shift.duplicates} non-members are word for word also members; they count as both"
            )
    return tuple(told)


def facts(given: Given) -> Mapping[str, str]:
    """What was handed over, in words."""
    captured, recipe = given.rounds[0][0], given.recipe
    known = {
        "Before": captured.before.source,
        "After": captured.after.source,
        "Update": f"{captured.size:,} numbers in {len(captured.names)} tensors moved, {captured.unmoved} tensors did not",
        "Rounds": str(len(given.rounds)) if len(given.rounds) > 1 else "",
        "Candidates": ""
        if given.rows is None
        else f"{len(given.rows)}: {len(given.members)} members, {len(given.others)} non-members"
        + (f"; {given.sampled}" if given.sampled else ""),
        "Recipe": _recipe(recipe),
        "Captured as": recipe.observed,
        "Group sums": given.groups,
    }
    return {k: v for k, v in known.items() if v}


def _recipe(recipe: Recipe) -> str:
    parts = [
        recipe.optimizer or "optimizer not named",
        f"{recipe.steps} local steps" if recipe.steps else "steps not named",
        f"rate {recipe.learning_rate:g}" if recipe.learning_rate else "rate not named",
        f"batch {recipe.batch_size}" if recipe.batch_size else "batch not named",
    ]
    return ", ".join(parts)


def texts(given: Given) -> dict[int, list[str]]:
    """The members' tokens by row, only where they were asked for."""
    if not given.show_text or not isinstance(given.target, Target) or given.target.encoded.tokens is None:
        return {}
    tokenizer, tokens = given.target.tokenizer, given.target.encoded.tokens
    special = set(tokenizer.all_special_ids)
    return {
        row: [tokenizer.decode([int(t)]) for t in tokens[row] if int(t) not in special]
        for row in given.members
    }
