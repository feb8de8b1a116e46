"""A model cut off above the last layer that its head reads: what lies higher costs time and tells the head nothing."""

from __future__ import annotations

from typing import Any

from torch import nn

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_norm")
"""What decoders call the normalization after their last layer. Hidden states between layers do not pass it."""


def is_causal(base: nn.Module) -> bool:
    """Whether a position sees only those before it (decoders), by what its attention says of itself."""
    return any(getattr(module, "is_causal", False) is True for module in base.modules())


def cut_off(base: Any, layers: int) -> bool:
    """Leaves the first `layers` layers, in place, without a final normalization; says whether it could.

    What the head reads of layer i stays, to the bit, what it read before. False where the model has as
    many layers already, or keeps them in no list of its own that could be shortened.
    """
    total = base.config.num_hidden_layers
    if layers >= total:
        return False
    found = [
        (owner, name, stack)
        for owner in base.modules()
        for name, stack in owner.named_children()
        if isinstance(stack, nn.ModuleList) and len(stack) == total
    ]
    if len(found) != 1:
        return False
    owner, name, stack = found[0]
    setattr(owner, name, stack[:layers])
    for norm in FINAL_NORMS:
        if isinstance(getattr(owner, norm, None), nn.Module):
            setattr(owner, norm, nn.Identity())
    base.config.num_hidden_layers = layers
    return True
