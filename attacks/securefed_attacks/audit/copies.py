"""One pass for many copies of what trains: every copy sees its own records, all share the frozen weights.

Shadows of an adapter differ in a few thousand numbers; the rest of a forward pass, nearly all of it, is the same
matrices. So the copies' records go through those together, and only the layers that train multiply each copy's
records with its own weights or factors. A record's own gradient is the gradient of a copy that sees it alone. What it
saves: gradients of weights that do not train (W + B A as one tensor has one), and small operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from securefed_attacks.audit.stand_in import stand_in
from securefed_attacks.audit.states import Tensors

if TYPE_CHECKING:
    from securefed_attacks.audit.target import Target

PASS_TOKENS = 512
"""Padded tokens of one pass: from about 100 rows on a product is as fast as it gets, and caches are small."""
FEW_NUMBERS = 500_000
"""Of what trains, up to which every record has its copy's numbers for itself."""
PASS_NUMBERS = 20_000_000
"""Numbers of all copies' gradients in one pass."""
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Place:
    """A linear layer that trains, and the states' names of what trains in it; "" for what does not.

    `factors`: the module by the states' name, where it has LoRA factors. `scale`: of their product.
    """

    layer: nn.Module = field(repr=False)
    weight: str = ""
    bias: str = ""
    factors: str = ""
    scale: float = 0.0


@dataclass(frozen=True, eq=False)
class Copies:
    """A target whose trainable tensors have a leading axis: one entry a copy.

    Attributes:
        before: the state that everything else is taken from. names: what trains. places: where it acts.
        frozen: the module's tensors without the factors' products.
    """

    target: Target
    before: Tensors
    names: tuple[str, ...]
    places: tuple[Place, ...]
    frozen: Tensors = field(repr=False)

    @classmethod
    def of(cls, target: Target, before: Tensors, names: Sequence[str]) -> Copies | None:
        """The copies of a target; None where something else than linear layers trains, or the model mixes its rows.

        That each copy sees its own records and no other is not assumed of a model: it is tried on two.
        """
        places = _places(target, names)
        if not places or len(target) < 2:
            return None
        factors = tuple(f"{p.factors}.lora_" for p in places if p.factors)
        rest = {n: t for n, t in before.items() if not n.startswith(factors)} if factors else before
        made = cls(target, before, tuple(names), places, target.effective(rest))
        return made if made._separate() else None

    def losses(self, leaves: Tensors, rows: Rows) -> torch.Tensor:
        """The loss of each record, (s, b), of the copy it belongs to; differentiable.

        Args:
            leaves: of every name, (s, ...). rows: (s, b).
        """
        count = len(rows)
        forwards: dict[nn.Module, Callable[[torch.Tensor], torch.Tensor]] = {
            p.layer: self._forward(p, leaves, count) for p in self.places
        }
        with stand_in(forwards):
            return self.target.losses(self.frozen, self.target.batch(rows.reshape(-1))).reshape(rows.shape)

    def gradients(self, leaves: Tensors, rows: Rows) -> Tensors:
        """The gradient of each copy's mean loss, (s, ...).

        Records of all copies are sorted by length and padded to those beside them, each with its copy's numbers; where a
        copy has many of those, its records stay together instead.
        """
        found = {n: torch.zeros_like(t) for n, t in leaves.items()}
        numbers = sum(t[0].numel() for t in leaves.values())
        together = rows if numbers > FEW_NUMBERS else rows.reshape(-1, 1)
        owners = np.repeat(np.arange(len(rows)), len(together) // len(rows))
        for chosen in _passes(self.target.lengths[together].max(1), together.shape[1], numbers):
            index = torch.from_numpy(owners[chosen])
            here = {n: t.detach()[index].requires_grad_() for n, t in leaves.items()}
            loss = self.losses(here, together[chosen]).sum() / rows.shape[1]
            parts = torch.autograd.grad(loss, list(here.values()), allow_unused=True)
            for name, part in zip(here, parts, strict=True):
                if part is not None:
                    found[name].index_add_(0, index, part)
        return found

    def spread(self, count: int) -> Tensors:
        """So many copies of the state that the round began from."""
        return {n: self.before[n].detach().expand(count, *self.before[n].shape) for n in self.names}

    def _forward(self, place: Place, leaves: Tensors, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        layer = place.layer

        def factor(name: str) -> torch.Tensor:
            return leaves[name] if name in leaves else self.before[name]

        def forward(inputs: torch.Tensor) -> torch.Tensor:
            own = inputs.reshape(count, -1, inputs.shape[-1])
            if place.weight:
                out = own @ leaves[place.weight].mT
                out = out if place.bias or layer.bias is None else out + layer.bias  # type: ignore[operator]  # as above
            elif place.bias:
                out = F.linear(own, layer.weight)  # type: ignore[arg-type]  # a linear layer's, by `_places`
            else:
                out = type(layer).forward(layer, inputs).reshape(count, own.shape[1], -1)
            if place.bias:
                out = out + leaves[place.bias][:, None]
            if place.factors:
                down = own @ factor(f"{place.factors}.lora_A").mT
                out = out + place.scale * (down @ factor(f"{place.factors}.lora_B").mT)
            return out.reshape(*inputs.shape[:-1], out.shape[-1])

        return forward

    def _separate(self) -> bool:
        """Whether two unlike copies give two records the losses that each gives alone."""
        generator = torch.Generator().manual_seed(0)
        leaves = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in self.spread(2).items()}
        rows = np.array([0, len(self.target) - 1], np.int64)
        with torch.no_grad():
            together = self.losses(leaves, rows[:, None])[:, 0]
            alone = [
                self.target.losses(
                    self.target.effective({**self.before, **{n: t[k] for n, t in leaves.items()}}),
                    self.target.batch(rows[k : k + 1]),
                )
                for k in range(2)
            ]
        return torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def _places(target: Target, names: Sequence[str]) -> tuple[Place, ...]:
    """Where these tensors act; empty where one of them is no linear layer's alone."""
    found: dict[nn.Module, dict[str, str]] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        lora = part in ("lora_A", "lora_B")
        own = target.weight_of(module) if lora else target.resolve(name)
        layer = None if own is None else target.parent(own)
        conv1d = lora and type(layer).__name__ == "Conv1D"  # GPT-2's: a linear layer, its weight transposed
        shared = own is None or sum(p is target.own[own] for p in target.own.values()) > 1
        if layer is None or not (type(layer) is nn.Linear or conv1d) or (shared and not lora):
            return ()
        found.setdefault(layer, {})["factors" if lora else part] = module if lora else name
    return tuple(
        Place(layer, **parts, scale=target.scales.get(parts.get("factors", ""), 0.0))
        for layer, parts in found.items()
    )


def _passes(longest: Rows, batch: int, numbers: int) -> list[Rows]:
    """The copies of each pass: alike in their longest record, few enough for `PASS_TOKENS` and `PASS_NUMBERS`."""
    order, found, start = np.argsort(longest, kind="stable"), list[Rows](), 0
    most = max(1, PASS_NUMBERS // max(1, numbers))
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and stop - start < most
            and (stop + 1 - start) * batch * int(longest[order[stop]]) <= PASS_TOKENS
        ):
            stop += 1
        found.append(order[start:stop])
        start = stop
    return found
