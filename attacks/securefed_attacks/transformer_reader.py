"""What a transformer's first blocks are fed, and which tensors of an update are combinations of it.

Works on any model of the usual families, adapted by LoRA or not: projections are found by the names the families
give them; whether positions are part of the input, and whether a block looks ahead, is tried and not looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from securefed_attacks.span import _Captured, first_inputs

FAMILIES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
)
"""Attention's projections of its input under the names the families give them."""


@dataclass(frozen=True, eq=False)
class Block:
    """One attention layer: its projections by dotted name, which all read the same input of `width` numbers."""

    projections: Mapping[str, nn.Module]
    width: int

    @property
    def entrance(self) -> nn.Module:
        """A module that is fed the block's input."""
        return next(iter(self.projections.values()))


@dataclass(frozen=True, eq=False)
class Observed:
    """The part of an update that shows one block's inputs x.

    Attributes:
        direct: matrices (m, d) whose rows are combinations of x: of full weights, or of LoRA's A.
        through: (rows (m, r), A (r, d)): combinations of A x, from B where A did not move.
    """

    direct: tuple[torch.Tensor, ...] = field(repr=False)
    through: tuple[tuple[torch.Tensor, torch.Tensor], ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Reader:
    """A model, fed tokens up to the input of its first or second attention layer.

    Attributes:
        model: as it was when the round began. call: what takes input_ids (the encoder of an encoder-decoder).
        blocks: the first two. vocabulary: v. positional: positions are added to the first block's input.
        causal: no input depends on later tokens. offset: the id of position 0.
    """

    model: nn.Module = field(repr=False)
    call: Callable[..., Any] = field(repr=False)
    blocks: tuple[Block, ...] = field(repr=False)
    vocabulary: int
    positional: bool
    causal: bool
    offset: int

    def first(self, tokens: torch.Tensor, position: int = 0) -> torch.Tensor:
        """(v, d): what the first block is fed for each token alone at a position."""
        place = position + self.offset if self.positional else None
        return first_inputs(self.model, self.blocks[0].entrance, tokens, place, call=self.call)

    def second(self, ids: torch.Tensor, block: int = 4096) -> torch.Tensor:
        """(b, l, d): what the second block is fed for sequences (b, l) of full length.

        Args:
            ids: token ids. block: tokens at once, which bounds memory.
        """
        rows = max(1, block // ids.shape[1])
        pieces = [_capture(self.model, self.call, self.blocks[1].entrance, p) for p in torch.split(ids, rows)]
        return torch.cat(pieces)

    def shown(self, block: int, names: Iterable[str]) -> tuple[str, ...]:
        """Which of a block's projections an update of tensors of these names is about."""
        moved = {_plain(n): torch.empty(0) for n in names}
        parts = ("", ".lora_A", ".lora_B")
        return tuple(
            name
            for name in self.blocks[block].projections
            if any(_find(moved, name + part) is not None for part in parts)
        )

    def observed(
        self, block: int, update: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor] | None = None
    ) -> Observed:
        """What an update by tensor names shows of a block's inputs.

        Args:
            block: 0 or 1. update: name -> gradient or change, names as in a state dict, PEFT's or ours.
            before: the tensors the round began from, where the model does not hold its adapters.
        """
        start = dict(self.model.named_parameters()) if before is None else before
        moved = {_plain(k): v for k, v in update.items()}
        held = {_plain(k): v for k, v in start.items() if ".lora_" in k}
        direct, through = [], []
        for name, module in self.blocks[block].projections.items():
            full, a, b, a0 = (
                _find(moved, name),
                _find(moved, f"{name}.lora_A"),
                _find(moved, f"{name}.lora_B"),
                _find(held, f"{name}.lora_A"),
            )
            if full is not None and full.ndim == 2:
                direct.append(full.T if _transposed(module) else full)
            if a is not None and bool(a.any()):
                direct.append(a)
            elif b is not None and bool(b.any()) and a0 is not None:
                through.append((b.detach(), a0.detach()))
        return Observed(tuple(direct), tuple(through))


def open_reader(model: nn.Module) -> Reader:
    """A reader of a Hugging Face transformer, or of PEFT's wrapping of one.

    Raises:
        ValueError: no attention layer with projections of a known name, or fewer than one block.
    """
    config: Any = getattr(model, "config", None)
    blocks = _blocks(model)
    table: Any = model.get_input_embeddings()  # type: ignore[operator]  # Hugging Face's interface
    vocabulary = int(table.weight.shape[0])
    call: Callable[..., Any] = model
    if getattr(config, "is_encoder_decoder", False):
        call = model.get_encoder()  # type: ignore[operator]  # Hugging Face's interface
    offset = _offset(model)
    positional = _positional(model, blocks[0], offset, call, vocabulary)
    causal = len(blocks) > 1 and _causal(model, call, blocks[1], vocabulary)
    return Reader(model, call, blocks, vocabulary, positional, causal, offset)


def _blocks(model: nn.Module) -> tuple[Block, ...]:
    found: list[Block] = []
    for parent, module in model.named_modules():
        children = dict(module.named_children())
        for family in FAMILIES:
            if all(_weight(children.get(n)) is not None for n in family):
                named = {f"{parent}.{n}" if parent else n: children[n] for n in family}
                found.append(Block(named, _width(children[family[0]])))
                break
        if len(found) == 2:
            break
    if not found:
        names = sorted({n for family in FAMILIES for n in family})
        raise ValueError(
            f"{type(model).__name__} has no attention projections named like any of {', '.join(names)}"
        )
    return tuple(found)


def _weight(module: nn.Module | None) -> torch.Tensor | None:
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def _transposed(module: nn.Module) -> bool:
    return type(getattr(module, "base_layer", module)).__name__ == "Conv1D"  # GPT-2 keeps (inputs, outputs)


def _width(module: nn.Module) -> int:
    weight = _weight(module)
    assert weight is not None
    return int(weight.shape[0 if _transposed(module) else 1])


def _plain(name: str) -> str:
    """A tensor's name without what PEFT's wrapping and file formats add."""
    for noise in ("base_model.model.", ".base_layer", ".default", "_orig_mod."):
        name = name.replace(noise, "")
    return name.removesuffix(".weight")


def _find(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """The tensor of this name, where one of both may carry prefixes that the other lacks."""
    wanted = _plain(name)
    if wanted in tensors:
        return tensors[wanted]
    ends = [k for k in tensors if k.endswith(f".{wanted}") or wanted.endswith(f".{k}")]
    return tensors[ends[0]] if len(ends) == 1 else None


def _capture(
    model: nn.Module, call: Callable[..., Any], entrance: nn.Module, ids: torch.Tensor
) -> torch.Tensor:
    seen: list[torch.Tensor] = []

    def take(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].detach())
        raise _Captured

    handle, training = entrance.register_forward_pre_hook(take), model.training
    model.eval()
    try:
        with torch.no_grad():
            call(input_ids=ids, attention_mask=torch.ones_like(ids))
    except _Captured:
        return seen[0].reshape(*ids.shape, -1)
    finally:
        handle.remove()
        model.train(training)
    raise ValueError("the second block was not reached; is it part of the model that was given?")


def _offset(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from behind the padding index."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _positional(
    model: nn.Module, block: Block, offset: int, call: Callable[..., Any], vocabulary: int
) -> bool:
    tokens = torch.arange(min(4, vocabulary), device=next(model.parameters()).device)
    try:
        at = [first_inputs(model, block.entrance, tokens, p + offset, call=call) for p in (0, 1)]
    except TypeError:  # it takes no position_ids: its positions are relative
        return False
    return not torch.equal(at[0], at[1])


def _causal(model: nn.Module, call: Callable[..., Any], block: Block, vocabulary: int) -> bool:
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1], [0, min(2, vocabulary - 1)]], device=device)
    seen = _capture(model, call, block.entrance, ids)
    return torch.allclose(seen[0, 0], seen[1, 0], rtol=1e-4, atol=1e-6)
