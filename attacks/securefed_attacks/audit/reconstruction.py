"""The section on reconstruction: tokens read out of each view, beside two controls that must not do as well.

The no-update baseline guesses the words most frequent in non-members' records. The wrong-update control
runs the same attack on an update that these records had no part in. What both would have guessed is no leak.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from securefed_attacks.audit.clock import Clock
from securefed_attacks.audit.exposure import Exposure, distinct_tokens, first_matrices, submodule
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.audit.verdict import Finding
from securefed_attacks.span import first_inputs, span_check

RECOVERED = 0.5
"""A record counts as reconstructed from this share of its distinct tokens on."""
CHANCE = 0.01
"""Over all views: the chance that guesses no better than the controls' are called a leak (Fisher's exact test)."""


@dataclass(frozen=True)
class Looked:
    """What the span attack says of one update: tokens found exactly, and all tokens ranked."""

    found: tuple[int, ...] = field(repr=False)
    ranking: tuple[int, ...] = field(repr=False)
    rank: int
    saturated: bool


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
class Reconstruction:
    """One view.

    Attributes:
        exact: tokens called found. nearest: the t nearest, t the number of true tokens. prior, wrong: what
            the two controls reach with as many guesses; None where a control could not be made.
        tokens: true ones. records: members' records; recovered: those of whose tokens at least half were named.
        p_value: that the controls' guesses are as good; None without any control.
        hits: for each member, row number and which of its tokens were named, in order. Private; see `page`.
    """

    view: str
    exact: Guess
    nearest: Guess
    prior: Guess | None
    wrong: Guess | None
    tokens: int
    records: int
    recovered: int
    p_value: float | None
    rank: int
    saturated: bool
    hits: tuple[tuple[int, tuple[bool, ...]], ...] = field(default=(), repr=False)


def look(
    target: Target,
    exposure: Exposure,
    before: Tensors,
    updates: Mapping[str, Tensors],
    length: int,
    clock: Clock,
) -> tuple[dict[str, Looked], int]:
    """The span attack on several updates of one round, position by position where the model has positions.

    All updates are held against the same candidates, so those are computed once a position.

    Returns:
        name -> what was found, and the number of positions looked at (0: the model's inputs have none).
    """
    vocabulary = torch.arange(_vocabulary(target))
    special = set(target.tokenizer.all_special_ids)
    positions: list[int | None] = list(range(length)) if _has_positions(target, exposure) else [None]
    best = {n: torch.full((len(vocabulary),), torch.inf, dtype=torch.float64) for n in updates}
    found: dict[str, set[int]] = {n: set() for n in updates}
    ranks, saturated = dict.fromkeys(updates, 0), dict.fromkeys(updates, True)
    done, began = 0, time.monotonic()
    for position in positions:
        if done and not clock.allows((time.monotonic() - began) / done, f"tokens from position {done} on"):
            break
        clock.tell(
            "looking for tokens in the update's span"
            + ("" if position is None else f", position {position + 1} of {length}")
        )
        for name, finding in _at(target, exposure, before, updates, vocabulary, position).items():
            best[name] = torch.minimum(best[name], finding.residual)
            found[name] |= {int(t) for t in finding.found}
            ranks[name] = max(ranks[name], finding.rank)
            saturated[name] &= finding.saturated
        done += 1
    looked = {
        n: Looked(
            tuple(sorted(found[n] - special)),
            tuple(int(t) for t in best[n].argsort() if int(t) not in special),
            ranks[n],
            saturated[n],
        )
        for n in updates
        if bool(best[n].isfinite().any())
    }
    return looked, 0 if positions == [None] else done


def _at(
    target: Target,
    exposure: Exposure,
    before: Tensors,
    updates: Mapping[str, Tensors],
    vocabulary: torch.Tensor,
    position: int | None,
) -> dict[str, Any]:
    layer = submodule(target, exposure.readers[0])
    assert layer is not None
    assert target.body is not None
    inputs = first_inputs(target.body, layer, vocabulary, position)
    seen = {}
    for name, update in updates.items():
        matrices, through = first_matrices(update, exposure.readers, exposure.low_rank)
        if not matrices:
            continue
        candidates = inputs if through is None else inputs @ before[f"{through}.lora_A"].T
        if not exposure.low_rank and type(layer).__name__ == "Conv1D":
            matrices = [m.T for m in matrices]
        seen[name] = span_check(matrices, candidates)
    return seen


def _vocabulary(target: Target) -> int:
    body: Any = target.body
    return int(body.get_input_embeddings().weight.shape[0])


def _has_positions(target: Target, exposure: Exposure) -> bool:
    layer = submodule(target, exposure.readers[0])
    assert layer is not None
    assert target.body is not None
    token = torch.tensor([min(5, _vocabulary(target) - 1)])
    one, two = (first_inputs(target.body, layer, token, p) for p in (0, 1))
    return not torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def compare(
    target: Target,
    looked: Mapping[str, Looked],
    wrong: Looked | None,
    members: Sequence[int],
    others: Sequence[int],
) -> list[Reconstruction]:
    """Every view's finding held against the members' tokens and against the controls."""
    truth = distinct_tokens(target, members)
    prior = _prior(target, others)
    return [_one(target, view, found, wrong, prior, truth, members) for view, found in looked.items()]


def _one(
    target: Target,
    view: str,
    found: Looked,
    wrong: Looked | None,
    prior: Sequence[int],
    truth: set[int],
    members: Sequence[int],
) -> Reconstruction:
    exact = Guess(len(truth & set(found.found)), len(found.found))
    nearest = Guess(len(truth & set(found.ranking[: len(truth)])), len(truth))
    use_exact = bool(found.found)
    count = len(found.found) if use_exact else len(truth)
    named = set(found.found if use_exact else found.ranking[:count])
    by_prior = None if not prior else Guess(len(truth & set(prior[:count])), count)
    by_wrong = None if wrong is None else Guess(len(truth & set(wrong.ranking[:count])), count)
    controls = [c for c in (by_prior, by_wrong) if c is not None]
    hits = tuple(_hits(target, row, named) for row in members)
    return Reconstruction(
        view,
        exact,
        nearest,
        by_prior,
        by_wrong,
        len(truth),
        len(members),
        sum(_recovered(target, row, named) for row in members),
        max((_p_value(exact if use_exact else nearest, c) for c in controls), default=None),
        found.rank,
        found.saturated,
        hits,
    )


def _prior(target: Target, others: Sequence[int]) -> list[int]:
    """Tokens of non-members, most frequent first."""
    if target.encoded.tokens is None:
        return []
    special = set(target.tokenizer.all_special_ids)
    counts = Counter(int(t) for i in others for t in target.encoded.tokens[i] if int(t) not in special)
    return [t for t, _ in counts.most_common()]


def _hits(target: Target, row: int, named: set[int]) -> tuple[int, tuple[bool, ...]]:
    assert target.encoded.tokens is not None
    special = set(target.tokenizer.all_special_ids)
    return int(row), tuple(int(t) in named for t in target.encoded.tokens[row] if int(t) not in special)


def _recovered(target: Target, row: int, named: set[int]) -> bool:
    own = distinct_tokens(target, [row])
    return bool(own) and len(own & named) >= RECOVERED * len(own)


def _p_value(ours: Guess, control: Guess) -> float:
    """Fisher's exact test, one-sided: that hits this much more frequent than the control's are chance."""
    from scipy import stats

    table = [[ours.hits, ours.guesses - ours.hits], [control.hits, control.guesses - control.hits]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def judge(results: Sequence[Reconstruction]) -> list[Finding]:
    """A finding for each view."""
    return [_finding(r, len(results)) for r in results]


def _finding(r: Reconstruction, views: int) -> Finding:
    used = r.exact if r.exact.guesses else r.nearest
    how = "found exactly" if r.exact.guesses else "among the nearest"
    said = f"{used.hits} of {r.tokens} tokens {how}, {used.guesses - used.hits} false"
    controls = ", ".join(
        f"{name} {c.hits} of {c.guesses}"
        for name, c in (("no-update baseline", r.prior), ("wrong-update control", r.wrong))
        if c is not None
    )
    if r.p_value is None:
        lacks = "non-members for a baseline, or a recipe for a wrong update"
        return Finding(
            "UNDERPOWERED", "reconstruction", r.view, f"{said}; no control could be made: needs {lacks}"
        )
    if r.recovered and r.p_value < CHANCE / views:
        return Finding(
            "LEAKS",
            "reconstruction",
            r.view,
            f"{said} ({controls}); {r.recovered} of {r.records} records with half their tokens or more",
        )
    return Finding(
        "NO EVIDENCE", "reconstruction", r.view, f"{said} ({controls}); no better than the controls"
    )
