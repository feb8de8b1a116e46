"""The section on reconstruction: tokens and texts read out of each view, beside controls that must not do as well.

The no-update baseline guesses the tokens most frequent in non-members' records. The wrong-update control
runs the same attack on the same view of an update that these records had no part in. What either would have
guessed is no leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from securefed_attacks.audit.exposure import distinct_tokens, marks
from securefed_attacks.audit.reading import Reading
from securefed_attacks.audit.target import Target
from securefed_attacks.audit.verdict import Finding, Verdict

RECOVERED = 0.5
"""A record counts as reconstructed from this share of its distinct tokens on."""
CHANCE = 0.01
"""Over all views and both ways to name tokens: the chance that guesses no better than the controls' are called a leak."""
WAYS = 2
"""Tokens are named in two ways: found exactly, and nearest."""


@dataclass(frozen=True)
class Guess:
    """Some tokens held against the truth."""

    hits: int
    guesses: int

    @property
    def precision(self) -> float | None:
        """Share of the guesses that are true; None without a guess."""
        return self.hits / self.guesses if self.guesses else None


@dataclass(frozen=True)
class Named:
    """One way to name tokens, beside what the controls reach with as many guesses.

    Attributes:
        ours: what was named. prior, wrong: the controls; None where one could not be made.
        recovered: members' records with half their tokens or more named. by_controls: the most that a control's
            guesses recover. p_value: Fisher's, that a control's guesses are as good; None without any.
    """

    ours: Guess
    prior: Guess | None
    wrong: Guess | None
    recovered: int
    by_controls: int
    p_value: float | None

    @property
    def controls(self) -> tuple[Guess, ...]:
        """Those that were made."""
        return tuple(c for c in (self.prior, self.wrong) if c is not None)

    def leaks(self, level: float) -> bool:
        """Whether more is named, and more records recovered, than the controls do."""
        return self.p_value is not None and self.p_value < level and self.recovered > self.by_controls


@dataclass(frozen=True)
class Reconstruction:
    """One view.

    Attributes:
        exact: tokens called found. nearest: the t nearest, t the number of true tokens.
        tokens: true ones. records: members' records. whole: those that were read from end to end, in order.
        texts: texts proved, true or not. rank: of the span. saturated: the update cannot tell tokens apart.
        level: chance allowed to each of this audit's tests. needed: of the nearest, hits from which it would
            have been a leak; None where all of them would not have been.
        hits: for each member, row number and which of its tokens were named, in order. Private; see `page`.
        wholes: rows of the members read whole. Private in the same way.
    """

    view: str
    exact: Named
    nearest: Named
    tokens: int
    records: int
    whole: int
    texts: int
    rank: int
    saturated: bool
    level: float
    needed: int | None
    hits: tuple[tuple[int, tuple[bool, ...]], ...] = field(default=(), repr=False)
    wholes: tuple[int, ...] = field(default=(), repr=False)

    @property
    def used(self) -> Named:
        """The way that says more: the exact one, unless it found nothing or only the ranking leaks."""
        better = self.nearest.leaks(self.level) and not self.exact.leaks(self.level)
        return self.nearest if better or not self.exact.ours.guesses else self.exact

    @property
    def leaks(self) -> bool:
        """Whether either way names what the controls do not."""
        return self.used.leaks(self.level)


def compare(
    target: Target,
    read: Mapping[str, Reading],
    wrong: Mapping[str, Reading],
    members: Sequence[int],
    others: Sequence[int],
) -> list[Reconstruction]:
    """Every view's reading held against the members' tokens and against the controls.

    Args:
        wrong: view -> what the same view of the wrong update says; a view that was not made of it is held
            against the nearest one before it.
    """
    held = _Judge(target, members, _prior(target, others), CHANCE / (WAYS * max(1, len(read))))
    results, beside = [], next(iter(wrong.values()), None)
    for view, found in read.items():
        beside = wrong.get(view, beside)
        results.append(held(view, found, beside))
    return results


class _Judge:
    """Holds readings against one truth."""

    def __init__(self, target: Target, members: Sequence[int], prior: Sequence[int], level: float) -> None:
        self.target, self.members, self.prior, self.level = target, members, prior, level
        self.truth = distinct_tokens(target, members)
        self.own = [distinct_tokens(target, [row]) for row in members]

    def __call__(self, view: str, found: Reading, wrong: Reading | None) -> Reconstruction:
        nearest = self._named(found.ranking[: len(self.truth)], wrong)
        exact = self._named(found.found, wrong)
        wholes = tuple(row for row in self.members if _is_whole(self.target, row, found))
        draft = Reconstruction(
            view,
            exact,
            nearest,
            len(self.truth),
            len(self.members),
            len(wholes),
            len(found.order.texts),
            found.bag.rank,
            found.bag.saturated,
            self.level,
            _needed(len(self.truth), nearest.controls, self.level),
            wholes=wholes,
        )
        chosen = found.found if draft.used is exact else found.ranking[: len(self.truth)]
        hits = tuple(_hits(self.target, row, set(chosen)) for row in self.members)
        return replace(draft, hits=hits)

    def _named(self, tokens: Sequence[int], wrong: Reading | None) -> Named:
        by_prior = self.prior[: len(tokens)] if self.prior else None
        by_wrong = None if wrong is None else wrong.ranking[: len(tokens)]
        prior, other = (None if g is None else self._guess(g) for g in (by_prior, by_wrong))
        ours = self._guess(tokens)
        p = max((_p_value(ours, c) for c in (prior, other) if c is not None), default=None)
        most = max((self._recovered(g) for g in (by_prior, by_wrong) if g is not None), default=0)
        return Named(ours, prior, other, self._recovered(tokens), most, p)

    def _guess(self, tokens: Sequence[int]) -> Guess:
        """As many guesses as there are tokens: a control that runs out of them is not padded with misses."""
        return Guess(len(self.truth & set(tokens)), len(tokens))

    def _recovered(self, tokens: Sequence[int]) -> int:
        named = set(tokens)
        return sum(bool(own) and len(own & named) >= RECOVERED * len(own) for own in self.own)


def _prior(target: Target, others: Sequence[int]) -> list[int]:
    """Tokens of non-members, most frequent first, then the vocabulary in its order; empty without non-members.

    Without the rest a control would run out of guesses, and look worse than it is. Usual vocabularies are in
    the order of their words' frequency, or near it.
    """
    if not others or target.body is None:
        return []
    special, tokens = marks(target), target.encoded.tokens or ()
    counts = Counter(int(t) for i in others for t in tokens[i] if int(t) not in special)
    body: Any = target.body
    rest = (t for t in range(int(body.get_input_embeddings().weight.shape[0])) if t not in special)
    return list(dict.fromkeys([*(t for t, _ in counts.most_common()), *rest]))


def _hits(target: Target, row: int, named: set[int]) -> tuple[int, tuple[bool, ...]]:
    assert target.encoded.tokens is not None
    special = marks(target)
    return int(row), tuple(int(t) in named for t in target.encoded.tokens[row] if int(t) not in special)


def _is_whole(target: Target, row: int, found: Reading) -> bool:
    """Whether a text that was proved is this record; a language model's last token leaves no trace."""
    assert target.encoded.tokens is not None
    own = tuple(target.encoded.tokens[row].tolist())
    ends = {own, own[:-1]} if target.kind == "causal-lm" else {own}
    return len(own) > 1 and any(text in ends for text in found.order.texts)


def _p_value(ours: Guess, control: Guess) -> float:
    """Fisher's exact test, one-sided: that hits this much more frequent than the control's are chance."""
    from scipy import stats

    table = [[ours.hits, ours.guesses - ours.hits], [control.hits, control.guesses - control.hits]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def _needed(tokens: int, controls: Sequence[Guess], level: float) -> int | None:
    """The fewest hits of so many guesses that these controls would not explain; None where no number is enough."""
    if not controls:
        return None

    def explained(hits: int) -> bool:
        return max(_p_value(Guess(hits, tokens), c) for c in controls) >= level

    low, high = 0, tokens + 1
    while low < high:
        middle = (low + high) // 2
        if middle <= tokens and explained(middle):
            low = middle + 1
        else:
            high = middle
    return low if low <= tokens else None


def judge(results: Sequence[Reconstruction]) -> list[Finding]:
    """A finding for each view."""
    return [Finding(verdict, "reconstruction", r.view, said) for r in results for verdict, said in [_said(r)]]


def _said(r: Reconstruction) -> tuple[Verdict, str]:
    used = r.used
    how = "found exactly" if used is r.exact else "among the nearest"
    whole = f"; {r.whole} of {r.records} records read whole and in order" if r.whole else ""
    said = f"{used.ours.hits} of {r.tokens} tokens {how}, {used.ours.guesses - used.ours.hits} false{whole}"
    controls = ", ".join(
        f"{name} {c.hits} of {c.guesses}"
        for name, c in (("no-update baseline", used.prior), ("wrong-update control", used.wrong))
        if c is not None
    )
    if not used.controls:
        lacks = "non-members for a baseline, or a recipe for a wrong update"
        return "UNDERPOWERED", f"{said}; no control could be made: needs {lacks}"
    if r.leaks:
        return (
            "LEAKS",
            f"{said} ({controls}); {used.recovered} of {r.records} records with half their tokens or more",
        )
    if r.needed is None:
        few = f"even all {r.tokens} tokens could not be told from these controls; hand over more members, or longer ones"
        return "UNDERPOWERED", f"{said} ({controls}); {few}"
    return (
        "NO EVIDENCE",
        f"{said} ({controls}); no better than the controls, {r.needed} of {r.tokens} would have been",
    )
