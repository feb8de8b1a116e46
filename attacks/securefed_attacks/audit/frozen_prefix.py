"""What the layers below everything that moved put out, computed once for all candidates.

An adapter in the upper layers leaves the lower ones as they were, under every state that an audit looks at. Then
each loss, gradient and shadow costs only the layers above.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed_attacks.audit.stand_in import stand_in
from securefed_attacks.audit.states import Tensors

if TYPE_CHECKING:
    from securefed_attacks.audit.target import Target

BLOCK = 32
MOST_BYTES = 2**30
"""Of hidden states kept; more, and nothing is kept."""


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """The hidden states of every candidate after the layers that never move, as private as the candidates.

    Attributes:
        layers: those layers, in the order they run; none of them runs again. hidden: (t, h) a candidate.
    """

    layers: tuple[nn.Module, ...] = field(repr=False)
    hidden: tuple[torch.Tensor, ...] = field(repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, target: Target, before: Tensors, moved: Collection[str]) -> FrozenPrefix | None:
        """The states of all candidates; None where no layer lies below all that moved, or they would not fit.

        Args:
            before: what all states share but for `moved`.
        """
        stack = _stack(target)
        if stack is None or len(target) == 0:
            return None
        weights = target.effective(before)
        depth = _depth(target, stack, weights, _owners(target, moved))
        width = int(target.body.config.hidden_size)  # type: ignore[union-attr,arg-type]  # `_stack` found one
        if not depth or 4 * width * int(target.lengths.sum()) > MOST_BYTES:
            return None
        found: dict[int, torch.Tensor] = {}
        order = np.argsort(target.lengths, kind="stable")
        for block in np.split(order, range(BLOCK, len(order), BLOCK)):
            out = _output(target, stack[depth - 1], weights, block)
            if out is None:
                return None
            found |= {
                int(i): states[: int(target.lengths[i])].clone() for i, states in zip(block, out, strict=True)
            }
        made = cls(tuple(stack[:depth]), tuple(found[i] for i in range(len(target))))
        return made if made._equal(target, weights, order[[0, -1]]) else None

    def states(self, rows: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
        """(b, t, h), padded to the longest with zeros, which the mask hides as it hides padding."""
        return torch.nn.utils.rnn.pad_sequence([self.hidden[int(i)] for i in rows], batch_first=True)

    @contextmanager
    def skipped(self, states: torch.Tensor) -> Iterator[None]:
        """While this lasts the layers pass `states` on in place of what they would compute."""

        def forward(*_: Any, **__: Any) -> torch.Tensor:
            return states

        with stand_in(dict.fromkeys(self.layers, forward)):
            yield

    def _equal(self, target: Target, weights: Tensors, rows: NDArray[np.int64]) -> bool:
        """Whether the rest of the model needs nothing else of the layers below, as a head that reads those does."""
        batch = target.batch(rows)
        whole = target.losses(weights, batch)
        with self.skipped(self.states(rows)):
            return torch.allclose(target.losses(weights, batch), whole, rtol=1e-3, atol=1e-4)


def _stack(target: Target) -> list[nn.Module] | None:
    """The body's layers, where it has one list of them."""
    count = getattr(getattr(target.body, "config", None), "num_hidden_layers", None)
    if target.body is None or count is None:
        return None
    lists = [m for m in target.body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if len(lists) == 1 else None


def _owners(target: Target, moved: Collection[str]) -> set[nn.Module]:
    """The modules that a moved tensor, or a tensor tied to it, belongs to."""
    found = set()
    for name in moved:
        module, _, part = name.rpartition(".")
        own = target.weight_of(module) if part in ("lora_A", "lora_B") else target.resolve(name)
        tensor = None if own is None else target.own[own]
        found |= {target.parent(o) for o, p in target.own.items() if p is tensor}
    return found


def _depth(target: Target, stack: Sequence[nn.Module], weights: Tensors, owners: set[nn.Module]) -> int:
    """How many layers have ended when the first owner is called, by what a pass over one record does."""
    ended, first = list[nn.Module](), dict[nn.Module, int]()

    def called(module: nn.Module, _: Any) -> None:
        first.setdefault(module, len(ended))

    hooks = [o.register_forward_pre_hook(called) for o in owners]
    hooks += [m.register_forward_hook(lambda module, *_: ended.append(module)) for m in stack]
    try:
        target.losses(weights, target.batch([0]))
    finally:
        for hook in hooks:
            hook.remove()
    if len(first) < len(owners) or ended != list(
        stack
    ):  # a weight read past its module, or layers not in turn
        return 0
    return min(first.values(), default=0)


def _output(
    target: Target, layer: nn.Module, weights: Tensors, rows: NDArray[np.int64]
) -> torch.Tensor | None:
    kept: list[Any] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    try:
        target.losses(weights, target.batch(rows))
    finally:
        hook.remove()
    out = kept[0] if kept else None
    return out.detach() if isinstance(out, torch.Tensor) and out.dim() == 3 else None
