"""Whose gradient points where the update went: the cosine of each record's gradient with minus the update.

Adversary: the server, or whoever reads an update and has the model that it began from. What it sees of one
client shows that client's records; a secure sum of many clients is the mean of many gradients, in which one
record's share shrinks with the number of clients. The passive part of Nasr, Shokri and Houmansadr 2019,
"Comprehensive Privacy Analysis of Deep Learning" (arXiv 1812.00910, section III), as one number a record.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def update_cosine(gradients: Iterable[torch.Tensor], updates: torch.Tensor) -> Floats:
    """The cosine of every record's gradient with minus each update, (v, n), in [-1, 1].

    Gradients are taken one after another, so that memory stays O(v d) however many records there are.

    Args:
        gradients: n of them, each (d,), of a record's loss at the model that the round began from.
        updates: (v, d), new minus old. Rows may be views of one update (raw, noised, a sum).

    Raises:
        ValueError: other shapes, or values that are not finite. A vector of zeros has cosine 0.

    >>> update_cosine([torch.tensor([1.0, 0.0])], torch.tensor([[-2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1.0], [0.0]]
    """
    if updates.ndim != 2 or not bool(updates.isfinite().all()):
        raise ValueError(f"updates are a finite matrix (v, d), found shape {tuple(updates.shape)}")
    wide = updates.double()
    units = -wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-300)
    columns = [_against(units, gradient) for gradient in gradients]
    if not columns:
        return np.empty((len(updates), 0))
    return np.stack(columns, 1)


def _against(units: torch.Tensor, gradient: torch.Tensor) -> Floats:
    if gradient.shape != units.shape[1:]:
        raise ValueError(
            f"a gradient has shape {tuple(gradient.shape)}, the updates {tuple(units.shape[1:])}; compare the same tensors"
        )
    if not bool(gradient.isfinite().all()):
        raise ValueError("a record's gradient is not finite; a model that diverged says nothing about it")
    cosine: Floats = (units @ _unit(gradient)).numpy()
    return cosine


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1).double().cpu()
    unit: torch.Tensor = flat / flat.norm().clamp_min(1e-300)
    return unit
