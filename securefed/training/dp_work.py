"""What a client's private training is, apart from how gradients are taken: the mechanism's numbers, what was drawn, what is refused.

Without Opacus, so that a job without privacy does not load it; `training.dp` has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError

if TYPE_CHECKING:
    from securefed.training.ghost import GhostGradients

GRAD_SAMPLE = "grad_sample"
"""Where Opacus keeps a tensor's gradients, one row per record."""


MARGIN = 1 - 2.0**-20
"""Records are clipped a hair below the norm. Norms, factors and sums are float64, so that rounding stays inside
the bound: a float32 sum over a few hundred records errs by more than one record's margin."""


@dataclass(frozen=True, slots=True)
class DPWork:
    """The mechanism of one client's steps; every field is public.

    Attributes:
        noise_multiplier: standard deviation of the noise over max_grad_norm, >= 0.
        max_grad_norm: L2 bound on one record's gradient over all trained tensors together.
        sample_rate: each record is in a step's batch independently with this probability.
        expected_batch: sample_rate x records, the denominator; never the number that was drawn.
        mode: "hooks" (Opacus' own rule for each layer), "functorch", or "ghost" (`training.ghost`).
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    expected_batch: float
    mode: str = "hooks"


@dataclass
class Seen:
    """What one round's steps looked like; from private data, so for simulations only."""

    norms: list[torch.Tensor] = field(default_factory=list, repr=False)
    dropped: int = 0
    empty: int = 0


def clip_factors(
    rows: Sequence[torch.Tensor], max_grad_norm: float, seen: Seen, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(factor that clips each record, whether its gradient is finite): float64 (b,) and bool (b,).

    A record that is not finite gets factor 0. What is `scale`: see `KeyedDPOptimizer.record_scale` in `training.dp`.

    Args:
        rows: per-sample gradients, (b, ...) for every trained tensor.
    """
    if not len(rows[0]):
        return torch.zeros(0, dtype=torch.float64), torch.ones(0, dtype=torch.bool)
    squares = torch.stack([g.flatten(1).double().square().sum(1) for g in rows]).sum(0)
    return factors_of(squares, max_grad_norm, seen, scale)


def factors_of(
    squares: torch.Tensor, max_grad_norm: float, seen: Seen, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `clip_factors`, from the squared norms, float64 (b,)."""
    norms = squares.sqrt() * scale
    finite = torch.isfinite(norms)
    factor = (max_grad_norm * MARGIN / norms.clamp(min=1e-30)).clamp(max=1.0)
    factor = torch.where(finite, factor * scale, torch.zeros_like(factor))
    seen.norms.append(norms[finite].detach().cpu())
    seen.dropped += int((~finite).sum())
    return factor, finite


def clipped_rows(rows: Sequence[torch.Tensor], max_grad_norm: float, seen: Seen) -> NDArray[np.float32]:
    """Each record's gradient over all these tensors in their order, of norm <= max_grad_norm, float32 (b, d).

    The bound holds after rounding to float32: one coordinate's relative error is 2^-24, `MARGIN` leaves more.
    """
    factor, finite = clip_factors(rows, max_grad_norm, seen)
    parts = [(whole(g, finite).flatten(1).double() * factor[:, None]).float().cpu() for g in rows]
    return torch.cat(parts, 1).numpy()


def clipped_sum(rows: Sequence[torch.Tensor], max_grad_norm: float, seen: Seen) -> NDArray[np.float64]:
    """The sum of the clipped gradients over all these tensors in their order, float64 (d,)."""
    factor, finite = clip_factors(rows, max_grad_norm, seen)
    parts = [torch.tensordot(factor, whole(g, finite).double(), 1).reshape(-1).cpu() for g in rows]
    return torch.cat(parts).numpy()


def whole(g: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """The rows, zero where a record is not finite."""
    if bool(finite.all()):
        return g
    return torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g))


def backward(losses: torch.Tensor, ghost: GhostGradients | None) -> None:
    """The backward pass of these records' losses (b,): rows on the tensors in training, or what `ghost` holds in their place."""
    if ghost is None:
        losses.sum().backward()
    else:
        ghost.backward(losses)


def empty_step(parameters: Mapping[str, nn.Parameter]) -> None:
    """Prepares a step over no record at all: noise alone is released, and it counts as a step.

    Poisson sampling draws an empty batch with probability (1 - q)^n. Skipping it would break the
    accounting; a forward pass over nothing breaks attention.
    """
    for p in parameters.values():
        setattr(p, GRAD_SAMPLE, p.new_zeros((0, *p.shape)))


def draw(stream: Stream, records: int, sample_rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Poisson sampling: every record independently with probability sample_rate, from secret randomness."""
    return np.flatnonzero(stream.bernoulli(records, sample_rate)).astype(np.int64)


def has_dropout(module: nn.Module) -> bool:
    """Whether a forward pass of this module draws a mask."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in module.modules())


def refuse_dropout(module: nn.Module) -> None:
    """Raises PrivacyError for dropout: one record more or less shifts the masks of all others.

    The sum would move by up to twice each clip.
    """
    if has_dropout(module):
        raise PrivacyError(
            "the model has dropout, whose masks tie records together; set every dropout to 0 under example-level DP"
        )


def check_mechanism(dp: DPWork) -> None:
    """Raises PrivacyError where the mechanism's numbers bound nothing."""
    if not (math.isfinite(dp.noise_multiplier) and dp.noise_multiplier >= 0):
        raise PrivacyError(f"noise_multiplier must be a finite number >= 0, found {dp.noise_multiplier}")
    if not (math.isfinite(dp.max_grad_norm) and dp.max_grad_norm > 0):
        raise PrivacyError(f"max_grad_norm must be a finite number above 0, found {dp.max_grad_norm}")
    if not 0 < dp.sample_rate <= 1:
        raise PrivacyError(f"sample_rate must be in (0, 1], found {dp.sample_rate}")
    if not dp.expected_batch > 0:
        raise PrivacyError(f"expected_batch must be above 0, found {dp.expected_batch}")
