"""DP-SGD on per-sample gradients: the one file that knows Opacus.

Opacus' hooks give every trainable tensor one gradient per record without wrapping the model
(`wrap_model=False` in its terms); its optimizer is subclassed at the seams it offers, so that clipping
holds after rounding and the noise comes from a keyed stream instead of torch's Mersenne Twister.

Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1, with Poisson sampling and a public denominator.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from opacus.optimizers import DPOptimizer
from torch import nn

from securefed.crypto.entropy import Stream
from securefed.errors import ModelError
from securefed.training.dp_work import GRAD_SAMPLE as GRAD_SAMPLE
from securefed.training.dp_work import DPWork as DPWork
from securefed.training.dp_work import Seen as Seen
from securefed.training.dp_work import check_mechanism as check_mechanism
from securefed.training.dp_work import clip_factors as clip_factors
from securefed.training.dp_work import clipped_rows as clipped_rows
from securefed.training.dp_work import clipped_sum as clipped_sum
from securefed.training.dp_work import draw as draw
from securefed.training.dp_work import empty_step as empty_step
from securefed.training.dp_work import has_dropout as has_dropout
from securefed.training.dp_work import refuse_dropout as refuse_dropout
from securefed.training.dp_work import whole
from securefed.training.ghost import GhostGradients
from securefed.training.record_gradients import linear_rows

GHOST = "_ghost_gradients"
"""Marks a module on which ghost clipping's hooks lie."""


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
        self.ghost: GhostGradients | None = None
        """Where gradients are products in place of rows."""

    def clip_and_accumulate(self) -> None:
        """Adds each record's gradient, scaled to norm <= max_grad_norm, to the running sum.

        A record whose gradient is not finite adds nothing (NaN x 0 would poison the sum, and stopping
        because of one record would tell that it is there); it is counted for the simulation's eyes.
        """
        if self.ghost is not None and self.ghost.ready:
            for p in self.params:
                if p.summed_grad is None:
                    p.summed_grad = torch.zeros_like(p, dtype=torch.float64)
            totals = {p: p.summed_grad for p in self.params}
            self.ghost.clip_into(totals, self.max_grad_norm, self._seen, self.record_scale)
            return
        rows = self.grad_samples
        factor, finite = clip_factors(rows, self.max_grad_norm, self._seen, self.record_scale)
        for p, g in zip(self.params, rows, strict=True):
            total = (
                torch.tensordot(factor, whole(g, finite).double(), 1)
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


def _linear_rows(
    layer: nn.Linear, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    """Each record's gradient of a linear layer: weight (b, out, in) and bias (b, out), from (b, t, in) and (b, t, out)."""
    given = activations[0].to(backprops.dtype)
    found: dict[torch.Tensor, torch.Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = (
            linear_rows(given, backprops)
            if given.dim() == 3
            else torch.einsum("n...i,n...j->nij", backprops, given)
        )
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...k->nk", backprops)
    return found


class RowHooks(GradSampleHooks):
    """Opacus' hooks with our rule for linear layers."""

    GRAD_SAMPLERS = {**GradSampleHooks.GRAD_SAMPLERS, nn.Linear: _linear_rows}  # noqa: RUF012  # Opacus' own seam


def ghost_gradients(module: nn.Module) -> GhostGradients:
    """Ghost clipping's hooks on a module; for layers of few weights Opacus' rules, and its functorch for what has none.

    Raises:
        ModelError: see `GhostGradients`.
    """
    return GhostGradients(module, RowHooks.GRAD_SAMPLERS, prepare_layer, ft_compute_per_sample_gradient)


def trained_root(module: nn.Module) -> nn.Module:
    """The smallest part of the module that holds every tensor in training; the module itself where none is.

    Hooks go there and nowhere else: to hook and unhook a whole encoder costs more than a step of a head alone.
    """
    inside = [c for c in module.children() if any(p.requires_grad for p in c.parameters())]
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    return trained_root(inside[0]) if len(inside) == 1 and not own else module


@contextmanager
def per_sample_gradients(
    module: nn.Module, mode: str = "hooks", *, known: bool = False
) -> Iterator[GhostGradients | None]:
    """Within it, a backward pass through a sum of losses leaves `grad_sample` on every trainable tensor.

    In mode "ghost" it leaves nothing there: the pass is made by what the context gives, which then holds the products.
    Hooks are taken off again whatever happens, so the next round can put them on.

    Args:
        known: this module was let through before with the same tensors in training, so it is not looked through again.

    Raises:
        ModelError: hooks are on already, or a module Opacus cannot follow (the reason is named).
    """
    if not known:
        refuse_unsupported(module)
    if any(not {"autograd_grad_sample_hooks", GHOST}.isdisjoint(vars(part)) for part in module.modules()):
        raise ModelError(
            "this model already has per-sample gradient hooks; end the other private training first"
        )
    module.train()
    if mode == "ghost":
        ghost = ghost_gradients(trained_root(module))
        vars(module)[GHOST] = True
        try:
            yield ghost
        finally:
            ghost.remove()
            del vars(module)[GHOST]
        return
    try:
        hooks = RowHooks(trained_root(module), loss_reduction="sum", force_functorch=mode == "functorch")
    except RuntimeError as error:  # how Opacus says that it cannot follow a layer
        raise ModelError(f"per-sample gradients: {str(error).splitlines()[0]}") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Full backward hook is firing"
            )  # cached inputs need no gradient
            yield None
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
