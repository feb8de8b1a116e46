"""The section before any attack: how many unknowns an update holds, and how many combinations of them it shows.

Afterwards the prediction is held against what was read from the update itself (`prove`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.target import Target
from securefed_attacks.budget_proof import BudgetProof, prove_budget
from securefed_attacks.leakage_budget import LeakageBudget, lora_budget
from securefed_attacks.span_tokens import TokenBag
from securefed_attacks.transformer_reader import Observed, Reader


@dataclass(frozen=True)
class Exposure:
    """What follows from counting.

    Attributes:
        readers: projections of the first attention layer that the update is about. low_rank: they are LoRA.
        tokens: different tokens in the members' records. inputs: different inputs that they are to the first
            layer, the tokenizer's marks included: tokens, or tokens at positions. Both None where not known.
        rank: of the readers' factors, or their width where all weights moved. budget: the prediction; None
            where something is missing, and `reason` says what. proof: the prediction against the update.
    """

    readers: tuple[str, ...]
    low_rank: bool
    tokens: int | None
    inputs: int | None
    rank: int
    budget: LeakageBudget | None
    reason: str
    proof: BudgetProof | None = None


def expose(
    target: Target,
    reader: Reader,
    captured: Captured,
    recipe: Recipe,
    members: Sequence[int],
    partial: bool = False,
) -> Exposure:
    """The prediction for one round's update, before it is attacked; `partial`: not all members are at hand."""
    readers, low = reader.shown(0, captured.names), captured.lora
    tokens = len(distinct_tokens(target, members)) if members else None
    inputs = len(distinct_inputs(target, reader, members)) if members else None
    seen = reader.observed(0, captured.update, captured.before.tensors)
    if not seen.direct and not seen.through:
        why = (
            "nothing of the first attention layer's projections is in the update, so its span names no token"
        )
        return Exposure((), low, tokens, inputs, 0, None, why)
    rank = _rank(seen, low)
    lacks = [
        what
        for what, gone in (
            ("the optimizer (recipe.optimizer)", recipe.optimizer is None),
            ("the number of local steps (recipe.steps)", recipe.steps is None),
            ("which candidates are members", inputs is None),
            ("all of the members: these are a sample", partial),
        )
        if gone
    ]
    if lacks:
        why = f"not counted without {' and '.join(lacks)}"
        return Exposure(readers, low, tokens, inputs, rank, None, why)
    assert inputs is not None
    budget = _lora(seen, rank, inputs, recipe) if low else _full(rank, inputs, recipe, len(seen.direct))
    return Exposure(readers, low, tokens, inputs, rank, budget, budget.reason)


def _rank(seen: Observed, low: bool) -> int:
    if not seen.direct:
        return int(seen.through[0][1].shape[0])
    return int(seen.direct[0].shape[0 if low else 1])


def _lora(seen: Observed, rank: int, inputs: int, recipe: Recipe) -> LeakageBudget:
    """Where A did not move (a fresh adapter's first step, FFA, B's turn of RoLoRA), B shows the inputs through A."""
    assert recipe.steps is not None
    assert recipe.optimizer is not None
    return lora_budget(
        rank=rank,
        modules=max(1, len(seen.direct)),
        tokens=max(1, inputs),
        observed="delta" if seen.direct else "gradient",
        optimizer=recipe.optimizer,
        steps=recipe.steps if seen.direct else 1,
        b_is_zero=not seen.direct,
    )


def _full(width: int, inputs: int, recipe: Recipe, modules: int) -> LeakageBudget:
    """All weights: a gradient's rows span up to `width` dimensions of the inputs, which move with the embeddings."""
    if not recipe.plain:
        said = f"{recipe.optimizer} rescales single entries: true tokens still come first"
        return LeakageBudget(inputs, width, "ranking", said)
    if inputs < width:
        said = f"all weights of {modules} first projections moved: {inputs} inputs span fewer than {width} dimensions"
        return LeakageBudget(inputs, width, "exact", said)
    said = f"{inputs} inputs fill all {width} dimensions of the first projections"
    return LeakageBudget(inputs, width, "nothing", said)


def prove(
    exposure: Exposure, target: Target, bag: TokenBag, members: Sequence[int], others: Sequence[int]
) -> Exposure:
    """The exposure with its prediction held against the tokens read; unchanged where nothing can be compared."""
    truth = _all_tokens(target, members)
    control = _all_tokens(target, others[: len(members)]) - truth
    if exposure.budget is None or not truth or not control:
        return exposure
    return replace(exposure, proof=prove_budget(exposure.budget, bag, truth, control, texts=len(members)))


def distinct_tokens(target: Target, rows: Sequence[int]) -> set[int]:
    """The tokens of these candidates, without the tokenizer's own marks."""
    return _all_tokens(target, rows) - marks(target)


def distinct_inputs(target: Target, reader: Reader, rows: Sequence[int]) -> set[tuple[int, int]]:
    """(position, token) of these candidates as the first layer tells them apart; position 0 where it has none.

    A language model's last token has no loss on it and no later token that attends to it, so it leaves no trace.
    """
    tokens, end = target.encoded.tokens or (), -1 if target.kind == "causal-lm" else None
    return {(p if reader.positional else 0, int(t)) for i in rows for p, t in enumerate(tokens[i][:end])}


def marks(target: Target) -> set[int]:
    """The tokenizer's own marks: they are in every record and tell nothing."""
    return set() if target.tokenizer is None else set(target.tokenizer.all_special_ids)


def _all_tokens(target: Target, rows: Sequence[int]) -> set[int]:
    tokens = target.encoded.tokens or ()
    return {int(t) for i in rows for t in tokens[i]}
