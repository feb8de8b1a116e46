"""The section before any attack: how many unknowns an update holds, and how many combinations of them it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.leakage_budget import LeakageBudget, Observed, lora_budget


@dataclass(frozen=True)
class Exposure:
    """What follows from counting.

    Attributes:
        readers: modules in the update that read single tokens, in the state's names. low_rank: they are LoRA.
        tokens: different tokens in the members' records; None where they are not known.
        rank: of the readers' factors, or their width where all weights moved. budget: the prediction; None
            where something is missing, and `reason` says what.
    """

    readers: tuple[str, ...]
    low_rank: bool
    tokens: int | None
    rank: int
    budget: LeakageBudget | None
    reason: str


def expose(target: Target, captured: Captured, recipe: Recipe, tokens: int | None) -> Exposure:
    """The prediction for one round's update, before it is attacked."""
    readers = token_readers(target, captured.names)
    if not readers:
        why = (
            "no module in the update reads single tokens (none is in the first block), so its span names none"
        )
        return Exposure((), captured.lora, tokens, 0, None, why)
    low = f"{readers[0]}.lora_A" in captured.before.tensors
    rank = (
        int(captured.before.tensors[f"{readers[0]}.lora_A"].shape[0])
        if low
        else int(target.own[target.weight_of(readers[0])].shape[-1])
    )
    lacks = [
        what
        for what, gone in (
            ("the optimizer (recipe.optimizer)", recipe.optimizer is None),
            ("the number of local steps (recipe.steps)", recipe.steps is None),
            ("which candidates are members", tokens is None),
        )
        if gone
    ]
    if lacks:
        return Exposure(readers, low, tokens, rank, None, f"not counted without {' and '.join(lacks)}")
    assert recipe.optimizer is not None
    assert recipe.steps is not None
    assert tokens is not None
    budget = (
        _lora(captured, readers, rank, tokens, recipe) if low else _full(rank, tokens, recipe, len(readers))
    )
    return Exposure(readers, low, tokens, rank, budget, budget.reason)


def _lora(
    captured: Captured, readers: Sequence[str], rank: int, tokens: int, recipe: Recipe
) -> LeakageBudget:
    assert recipe.steps is not None
    assert recipe.optimizer is not None
    observed: Observed = "gradient" if recipe.steps == 1 else "delta"
    fresh = all(not bool(captured.before.tensors[f"{m}.lora_B"].any()) for m in readers)
    return lora_budget(
        rank=rank,
        modules=len(readers),
        tokens=max(1, tokens),
        observed=observed,
        optimizer=recipe.optimizer,
        steps=recipe.steps,
        b_is_zero=fresh,
    )


def _full(width: int, tokens: int, recipe: Recipe, modules: int) -> LeakageBudget:
    """All weights: a gradient's rows span up to `width` dimensions of the inputs, which move with the embeddings."""
    if not recipe.plain:
        return LeakageBudget(
            tokens,
            width,
            "ranking",
            f"{recipe.optimizer} rescales single entries: true tokens still come first",
        )
    if tokens < width:
        return LeakageBudget(
            tokens,
            width,
            "exact",
            f"all weights of {modules} first projections moved: {tokens} tokens span fewer than {width} dimensions",
        )
    return LeakageBudget(
        tokens, width, "nothing", f"{tokens} tokens fill all {width} dimensions of the first projections"
    )


def token_readers(target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """Modules whose weights moved and whose input depends on one token (and its position) alone.

    Asked of the model itself: two sequences that share their last token are run, and a module whose input
    there is the same in both does not see the others. No list of architectures is needed.
    """
    if target.body is None or target.tokenizer is None:
        return ()
    modules = dict.fromkeys(_module(n) for n in names if _module(n))
    found = {m: submodule(target, m) for m in modules}
    layers = {m: layer for m, layer in found.items() if layer is not None}
    if not layers:
        return ()
    seen = _inputs(target.body, layers)
    first = next(iter(seen), None)
    if first is None:
        return ()
    one, two = seen[first][0, -1], seen[first][1, -1]
    if not torch.allclose(one, two, rtol=1e-4, atol=1e-6):
        return ()
    return tuple(
        m for m, x in seen.items() if x.shape == seen[first].shape and torch.allclose(x, seen[first])
    )


def _module(name: str) -> str:
    for suffix in (".lora_A", ".lora_B", ".weight"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return ""


def submodule(target: Target, module: str) -> nn.Module | None:
    own = target.resolve(f"{module}.weight")
    if own is None:
        return None
    layer = target.parent(own)
    linear = isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    return layer if linear else None


def _inputs(body: nn.Module, layers: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What each layer was fed, in the order in which they were reached."""
    seen: dict[str, torch.Tensor] = {}
    last = max(3, _vocabulary(body) - 1)
    ids = torch.tensor([[1, 2 % last, 3 % last], [2 % last, 1, 3 % last]])
    handles = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, x[0].detach().clone()))
        for name, layer in layers.items()
    ]
    call: Any = body
    try:
        with torch.no_grad():
            call(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return {n: x for n, x in seen.items() if x.ndim == 3}


def _vocabulary(body: nn.Module) -> int:
    found: Any = body
    return int(found.get_input_embeddings().weight.shape[0])


def distinct_tokens(target: Target, rows: Sequence[int]) -> set[int]:
    """The tokens of these candidates, without the tokenizer's own marks."""
    if target.encoded.tokens is None or target.tokenizer is None:
        return set()
    special = set(target.tokenizer.all_special_ids)
    return {int(t) for i in rows for t in target.encoded.tokens[i]} - special


def first_matrices(
    update: Tensors, readers: Sequence[str], low_rank: bool
) -> tuple[list[torch.Tensor], str | None]:
    """The matrices whose rows are combinations of the readers' inputs, and the reader through whose A they are seen.

    Where A did not move (the first step of a fresh adapter), B shows the inputs through A; then the second
    value names the module whose A to look through.
    """
    if not low_rank:
        return [update[f"{m}.weight"] for m in readers if f"{m}.weight" in update], None
    moved = [update[f"{m}.lora_A"] for m in readers if f"{m}.lora_A" in update]
    if moved:
        return moved, None
    through = next((m for m in readers if f"{m}.lora_B" in update), None)
    return ([update[f"{through}.lora_B"]] if through else []), through
