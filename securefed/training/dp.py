"""DP-SGD on per-sample gradients: the one file that knows Opacus.

Opacus' hooks give every trainable tensor one gradient per record without wrapping the model
(`wrap_model=False` in its terms); its optimizer is subclassed at the seams it offers, so that clipping
holds after rounding and the noise comes from a keyed stream instead of torch's Mersenne Twister.

Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1, with Poisson sampling and a public denominator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import nn

from securefed.crypto.entropy import Stream
from securefed.errors import ModelError, PrivacyError

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
        mode: "hooks" (Opacus' own rule for each layer) or "functorch".
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


class KeyedDPOptimizer(DPOptimizer):
    """Opacus' optimizer with rounding-safe flat clipping and noise from a secret stream."""

    def __init__(self, optimizer: torch.optim.Optimizer, dp: DPWork, noise: Stream, seen: Seen) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=dp.noise_multiplier,
            max_grad_norm=dp.max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._denominator, self._noise, self._seen = dp.expected_batch, noise, seen
        self.record_scale = 1.0
        """What a record's row is multiplied by before it is clipped: 1 for a sum of losses, the number of
        rows for their mean."""

    def clip_and_accumulate(self) -> None:
        """Adds each record's gradient, scaled to norm <= max_grad_norm, to the running sum.

        A record whose gradient is not finite adds nothing (NaN x 0 would poison the sum, and stopping
        because of one record would tell that it is there); it is counted for the simulation's eyes.
        """
        rows = self.grad_samples
        factor, finite = clip_factors(rows, self.max_grad_norm, self._seen, self.record_scale)
        for p, g in zip(self.params, rows, strict=True):
            total = (
                torch.tensordot(factor, _whole(g, finite).double(), 1)
                if len(g)
                else torch.zeros_like(p, dtype=torch.float64)
            )
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total

    def add_noise(self) -> None:
        """Gaussian noise of standard deviation noise_multiplier x max_grad_norm on every coordinate."""
        std, sizes = self.noise_multiplier * self.max_grad_norm, [p.numel() for p in self.params]
        draws = torch.from_numpy(self._noise.normal(sum(sizes))).split(sizes) if std > 0 else ()
        for i, p in enumerate(self.params):
            released = p.summed_grad
            if std > 0:
                released = released + std * draws[i].to(p.device).view_as(released)
            p.grad = released.to(p.dtype).view_as(p)

    def scale_grad(self) -> None:
        """Divides by the public expected batch."""
        for p in self.params:
            p.grad /= self._denominator


def clip_factors(
    rows: Sequence[torch.Tensor], max_grad_norm: float, seen: Seen, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(factor that clips each record, whether its gradient is finite): float64 (b,) and bool (b,).

    A record that is not finite gets factor 0. What is `scale`: see `KeyedDPOptimizer.record_scale`.

    Args:
        rows: per-sample gradients, (b, ...) for every trained tensor.
    """
    if not len(rows[0]):
        return torch.zeros(0, dtype=torch.float64), torch.ones(0, dtype=torch.bool)
    norms = torch.stack([g.flatten(1).double().square().sum(1) for g in rows]).sum(0).sqrt() * scale
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
    parts = [(_whole(g, finite).flatten(1).double() * factor[:, None]).float().cpu() for g in rows]
    return torch.cat(parts, 1).numpy()


def clipped_sum(rows: Sequence[torch.Tensor], max_grad_norm: float, seen: Seen) -> NDArray[np.float64]:
    """The sum of the clipped gradients over all these tensors in their order, float64 (d,)."""
    factor, finite = clip_factors(rows, max_grad_norm, seen)
    parts = [torch.tensordot(factor, _whole(g, finite).double(), 1).reshape(-1).cpu() for g in rows]
    return torch.cat(parts).numpy()


def _whole(g: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """The rows, zero where a record is not finite."""
    if bool(finite.all()):
        return g
    return torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g))


def _linear_rows(
    layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """Each record's gradient of a linear layer: weight (b, out, in) and bias (b, out), from (b, t, in) and (b, t, out).

    Opacus' rule multiplies (out, t) by (t, in). Where `out` is the long side, as in LoRA's B, the transposed product is
    four times as fast on a CPU: batched matrix products are laid out for a long right side.
    """
    given = activations[0].to(backprops.dtype)
    found: dict[torch.Tensor, torch.Tensor] = {}
    if layer.weight.requires_grad:
        if given.dim() == 3 and layer.out_features > layer.in_features:
            found[layer.weight] = torch.bmm(given.transpose(1, 2), backprops).transpose(1, 2)
        else:
            found[layer.weight] = torch.einsum("n...i,n...j->nij", backprops, given)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...k->nk", backprops)
    return found


class RowHooks(GradSampleHooks):
    """Opacus' hooks with our rule for linear layers."""

    GRAD_SAMPLERS = {**GradSampleHooks.GRAD_SAMPLERS, nn.Linear: _linear_rows}  # noqa: RUF012  # Opacus' own seam


def trained_root(module: nn.Module) -> nn.Module:
    """The smallest part of the module that holds every tensor in training; the module itself where none is.

    Hooks go there and nowhere else: to hook and unhook a whole encoder costs more than a step of a head alone.
    """
    inside = [c for c in module.children() if any(p.requires_grad for p in c.parameters())]
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    return trained_root(inside[0]) if len(inside) == 1 and not own else module


@contextmanager
def per_sample_gradients(module: nn.Module, mode: str = "hooks", *, known: bool = False) -> Iterator[None]:
    """Within it, a backward pass through a sum of losses leaves `grad_sample` on every trainable tensor.

    Hooks are taken off again whatever happens, so the next round can put them on.

    Args:
        known: this module was let through before with the same tensors in training, so it is not looked through again.

    Raises:
        ModelError: hooks are on already, or a module Opacus cannot follow (the reason is named).
    """
    if not known:
        refuse_unsupported(module)
    if any("autograd_grad_sample_hooks" in vars(part) for part in module.modules()):
        raise ModelError(
            "this model already has per-sample gradient hooks; end the other private training first"
        )
    module.train()
    try:
        hooks = RowHooks(trained_root(module), loss_reduction="sum", force_functorch=mode == "functorch")
    except RuntimeError as error:  # how Opacus says that it cannot follow a layer
        raise ModelError(f"per-sample gradients: {str(error).splitlines()[0]}") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Full backward hook is firing"
            )  # cached inputs need no gradient
            yield
    finally:
        hooks.remove_hooks()
        hooks.cleanup()


def refuse_unsupported(module: nn.Module) -> None:
    """Raises ModelError for what would break the guarantee or Opacus, with the reason and the way out."""
    for name, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ModelError(
                f"{name} is BatchNorm, which mixes records, so no record's influence is bounded; use GroupNorm or LayerNorm"
            )
        if "Dora" in kind:
            raise ModelError(
                f"{name} is DoRA: its magnitude joins all rows of a weight, so Opacus has no gradient per record; use plain LoRA"
            )
        if any(p.requires_grad for p in _embedding_factors(part)):
            raise ModelError(
                f'{name} has LoRA on an embedding, which Opacus cannot hook; target linear layers, or train with privacy.unit = "client"'
            )
        if getattr(part, "gradient_checkpointing", False) and not _reentrant(part):
            raise ModelError(
                f"{name} uses non-reentrant gradient checkpointing, which runs hooks twice; enable it with use_reentrant=True"
            )
    _refuse_tied(module)


def _embedding_factors(part: nn.Module) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    for name in ("lora_embedding_A", "lora_embedding_B"):
        found += list(getattr(part, name, nn.ParameterDict()).values())
    return found


def _reentrant(part: nn.Module) -> bool:
    call: Any = getattr(part, "_gradient_checkpointing_func", None)
    return bool(getattr(call, "keywords", {}).get("use_reentrant", False))


def _refuse_tied(module: nn.Module) -> None:
    seen: dict[int, str] = {}
    for owner_name, owner in module.named_modules():
        for name, p in owner.named_parameters(recurse=False):
            if not p.requires_grad:
                continue
            path = f"{owner_name}.{name}"
            if id(p) in seen:
                raise ModelError(
                    f"{path} and {seen[id(p)]} are one trained tensor; its per-record gradient is not their sum in Opacus; freeze it or untie it"
                )
            seen[id(p)] = path


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
