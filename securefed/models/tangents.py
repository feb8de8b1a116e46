"""Tangents: how a frozen model's answer would move with its feed-forward biases, read by a head as features.

To first order in a change u of those biases a classifier answers s(x) + u . ds/db(x): a linear function of features
that are computed once a record, so an adapter trains at the price of a head. s is the head at which a first phase of
training ended, the anchor. Maddox et al. 2021 (arXiv 2103.01439) fine-tune so; Yu et al. 2022 (arXiv 2207.06343,
"TCT") federate it: train, convexify, train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F


class Tangents(nn.Module):
    """The anchor, and the gradients that are taken at it. Zero until the anchor is set, and so are the gradients then.

    Args:
        layers: whose biases, ascending. classes: k; two need one gradient, of their logits' difference, more one each.
        width: numbers of the pooled features. inner: of one layer's bias.

    Attributes:
        weight: the anchor's rows (1 or k, width). centre: what is taken off the features before (width,).
        numbers: of what one record gives.
    """

    def __init__(self, layers: Sequence[int], classes: int, width: int, inner: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        rows = 1 if classes == 2 else classes
        self.weight = nn.Parameter(torch.zeros(rows, width), requires_grad=False)
        self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.numbers = rows * len(self.layers) * inner

    @property
    def is_set(self) -> bool:
        """Whether there is an anchor to take gradients at."""
        return bool(self.weight.any())

    def beside(self, features: torch.Tensor, probes: Sequence[torch.Tensor]) -> torch.Tensor:
        """The features (b, width) and beside them each layer's gradient, each of length one, together of length one.

        Args:
            probes: zeros (b, 1, inner) that were added to each layer's inner activations; none without an anchor.
        """
        parts = [features]
        if probes:
            scores = F.normalize(features - self.centre, dim=-1) @ self.weight.T
            for row in scores.sum(0):
                found = torch.autograd.grad(row, list(probes), retain_graph=True)
                parts += [F.normalize(g.squeeze(1).float(), dim=-1) for g in found]
        else:
            parts.append(features.new_zeros(len(features), self.numbers))
        return F.normalize(torch.cat(parts, -1), dim=-1).detach()


@contextmanager
def probed(inner: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Adds a zero to the output of each module, one for all tokens of a record, whose gradient is its bias's for that record."""
    found: list[torch.Tensor] = []

    def add(module: nn.Module, given: object, out: torch.Tensor) -> torch.Tensor:
        found.append(out.new_zeros(len(out), 1, out.shape[-1]).requires_grad_())
        return out + found[-1]

    handles = [module.register_forward_hook(add) for module in inner]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
