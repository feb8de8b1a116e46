"""The input of a linear layer with a bias, divided out of its gradient.

For y = W x + b one record gives dL/dW = delta x^T and dL/db = delta, so any row of one over the same entry of the
other is x (Phong, Aono, Hayashi, Wang and Moriai, "Privacy-preserving deep learning via additively homomorphic
encryption", IEEE TIFS 2018, section 3; Geiping et al., "Inverting gradients", NeurIPS 2020, proposition 3.1).
In a batch a row gives the average of the records that the neuron was open for: exact where only one was.

Adversary: sees the gradient, or the change after one SGD step, of one client or of a sum. It must not change the model.
"""

from __future__ import annotations

import math

import torch

NEGLIGIBLE = 1e-9
"""Share of the largest bias gradient below which an entry is rounding and dividing by it is noise."""


def invert_linear(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The input x (d,) of a layer that saw one record.

    Args:
        weight: gradient or one-step change of W, (m, d). bias: the same of b, (m,), in the same scale.

    Raises:
        ValueError: other shapes, values that are not finite, or a bias that did not move (nothing to divide by).
    """
    _check(weight, bias)
    wide = bias.double()
    if not bool(wide.any()):
        raise ValueError("the bias did not move at all: the layer was closed for this record, or has no bias")
    # least squares over all rows: the average weighted by delta^2, so rounding of small entries does not count
    return (wide @ weight.double() / (wide @ wide)).to(weight.dtype)


def inputs_by_neuron(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """For each neuron that moved, the (weighted) average of the inputs it was open for, (k, d).

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    _check(weight, bias)
    moved = bias.abs() > NEGLIGIBLE * bias.abs().max()
    return (weight[moved].double() / bias[moved].double()[:, None]).to(weight.dtype)


def distinct(vectors: torch.Tensor, tolerance: float = 1e-3) -> torch.Tensor:
    """One of each group of vectors (k, d) that agree up to a share `tolerance` of their length.

    Several neurons that name the same vector were each open for that record alone: averages do not repeat.
    """
    kept: list[torch.Tensor] = []
    for vector in vectors:
        if not any(float((vector - k).norm()) <= tolerance * float(k.norm()) for k in kept):
            kept.append(vector)
    return torch.stack(kept) if kept else vectors[:0]


def psnr(found: torch.Tensor, true: torch.Tensor, peak: float = 1.0) -> float:
    """Peak signal to noise ratio in dB of values whose range is `peak`; infinite where they are equal."""
    error = float((found.double() - true.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def best_psnr(found: torch.Tensor, true: torch.Tensor, peak: float = 1.0) -> torch.Tensor:
    """For each true record (n, d) the PSNR in dB of the found one (k, d) nearest to it, (n,)."""
    if not len(found):
        return torch.full((len(true),), -math.inf, dtype=torch.float64)
    squared = torch.cdist(true.double(), found.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    error = squared.amin(1) / true.shape[1]
    return 10 * (peak**2 / error.clamp_min(1e-20)).log10()


def _check(weight: torch.Tensor, bias: torch.Tensor) -> None:
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"needs weight (m, d) and bias (m,); got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if not bool(weight.isfinite().all()) or not bool(bias.isfinite().all()):
        raise ValueError("the gradient holds a value that is not finite")
