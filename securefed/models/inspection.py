"""A client's look at the model it is asked to train: was it made to extract data?

Adversary: a malicious server that sends changed weights. Its cheapest weapon is an imprint layer (Fowl, Geiping,
Czaja, Goldblum and Goldstein, "Robbing the Fed: directly obtaining private data in federated learning with
modified models", ICLR 2022, section 3): many neurons measure the same thing (equal rows) and open one after
another (shifted biases), so that differences of neighbouring gradients are single records. Other weapons zero
the rest of the model, or scale weights so that few records dominate.

What is looked for, tensor by tensor: rows or columns that are equal up to scale, parts that are zero or
constant, numbers too large to be weights, and numbers that are none. What is not seen: traps that keep the
looks of a random layer (Boenisch et al., "When the curious abandon honesty", EuroS&P 2023), and what honest
weights leak by themselves. A model that passes is not thereby safe; under DP neither kind of trap pays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Kind = Literal["repeated rows", "repeated columns", "zeroed", "constant", "scale", "not finite"]

ALIKE = 0.95
"""Cosine (either sign) from which two rows measure the same thing. Honest rows of dozens of numbers stay below."""

FEW = 8
"""Rows alike that may be chance; an imprint needs about as many as the records it separates."""

SHARE = 0.05
"""Or this share of the rows, in large layers, where trained models have some rows alike by themselves."""

ZEROED = 0.5
"""Share of exact zeros in a matrix that no initialization and no training leaves behind (pruning does)."""

LARGE = 1e3
"""Weights beyond this are no weights: trained networks stay below a few hundred even in their outliers."""

LONG = 32
"""Numbers a row (column) must have for a cosine to mean something: in 8 dimensions chance does it, and the rows of
a LoRA factor B after its first steps are all alike."""

WIDEST = 8192
"""Rows (columns) of a matrix that are compared pairwise; larger tables are named in `Findings.unseen`."""


@dataclass(frozen=True)
class Finding:
    """One reason to refuse: the measured value is at or above the bound."""

    kind: Kind
    tensor: str
    value: float
    bound: float

    def __str__(self) -> str:
        return f"{self.tensor}: {self.kind} ({self.value:.4g}, bound {self.bound:.4g})"


@dataclass(frozen=True)
class Findings:
    """What was found in a model.

    Attributes:
        found: reasons to refuse it; empty where it looks like honest weights.
        unseen: tensors too wide to compare their rows or columns pairwise (vocabularies).
    """

    found: tuple[Finding, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def suspicious(self) -> bool:
        return bool(self.found)

    def __str__(self) -> str:
        return "; ".join(map(str, self.found)) or "nothing found"


def inspect_model(tensors: Mapping[str, torch.Tensor], *, may_be_zero: Collection[str] = ()) -> Findings:
    """What in these named weights looks made to extract data.

    Args:
        tensors: name -> weights, of any floating dtype; matrices with one row per neuron, as torch has them.
            Convolutions count as a matrix of filters.
        may_be_zero: names that honest models leave at zero: the factor B of a fresh adapter, a fresh head.
            Names that end like PEFT's B factors (`lora_B`, `lora_embedding_B`) always may.
    """
    found: list[Finding] = []
    unseen: list[str] = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        zero = name in may_be_zero or any(part in name for part in ("lora_B", "lora_embedding_B"))
        found += _look(name, tensor.detach(), zero)
        if tensor.ndim >= 2 and max(tensor.shape[0], tensor[0].numel()) > WIDEST:
            unseen.append(name)
    return Findings(tuple(found), tuple(unseen))


def _look(name: str, tensor: torch.Tensor, may_be_zero: bool) -> Iterator[Finding]:
    wide = tensor.float()
    if not bool(wide.isfinite().all()):
        yield Finding("not finite", name, math.inf, LARGE)
        return
    largest = float(wide.abs().max())
    if largest >= LARGE:
        yield Finding("scale", name, largest, LARGE)
    if tensor.ndim < 2 or tensor.numel() < FEW * FEW:
        return  # biases and norms are zero or constant in honest models too
    zeros = float((wide == 0).float().mean())
    if zeros >= ZEROED and not (may_be_zero and zeros == 1):
        yield Finding("zeroed", name, zeros, ZEROED)
    if largest > 0 and float(wide.max()) == float(wide.min()):
        yield Finding("constant", name, 1.0, 1.0)
    if largest == 0:
        return
    matrix = wide.reshape(len(wide), -1)
    for kind, side in _sides(matrix):
        alike, bound = most_alike(side), max(FEW, SHARE * len(side))
        if alike >= bound:
            yield Finding(kind, name, alike, bound)


def _sides(matrix: torch.Tensor) -> Iterator[tuple[Kind, torch.Tensor]]:
    """Rows and columns, where there are enough numbers to a vector for a cosine to mean something."""
    if len(matrix) <= WIDEST and matrix.shape[1] >= LONG:
        yield "repeated rows", matrix
    if matrix.shape[1] <= WIDEST and len(matrix) >= LONG:
        yield "repeated columns", matrix.T


def most_alike(rows: torch.Tensor) -> int:
    """The largest number of nonzero rows that are equal to one of them up to scale (and `ALIKE`)."""
    lengths = rows.norm(dim=1)
    units = rows[lengths > 0] / lengths[lengths > 0, None]
    if not len(units):
        return 0
    return max(int(((block @ units.T).abs() > ALIKE).sum(1).max()) for block in units.split(1024))
