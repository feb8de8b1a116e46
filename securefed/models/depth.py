"""A model cut off above the last layer that its head reads: what lies higher costs time and tells the head nothing.

What a base does is tried on a few tokens: names and attributes differ from family to family.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PROBE = 4
"""Tokens of a trial."""
FINAL_NORMS = (
    "norm",
    "ln_f",
    "norm_f",
    "layer_norm",
    "final_layer_norm",
    "final_layernorm",
    "final_norm",
    "emb_layer_norm_after",
)
"""What models call the normalization after their last layer. Hidden states between layers do not pass it."""


def is_causal(base: Any) -> bool:
    """Whether a position sees only those before it (decoders).

    Attention of most families says so; in the others (Bloom, MPT, XGLM, ...) another last token changes no state before it.
    """
    if any(getattr(module, "is_causal", False) is True for module in base.modules()):
        return True
    with _trial(base) as ids, torch.no_grad():
        other = ids.clone()
        other[:, -1] += 1
        one, two = (base(input_ids=given).last_hidden_state[:, : PROBE - 1] for given in (ids, other))
    return torch.equal(one, two)


def cut_off(base: Any, layers: int) -> bool:
    """Leaves the first `layers` layers, in place, without a final normalization; says whether it could.

    What the head reads of layer i stays, to the bit, what it read before. False, and nothing changed, where the
    model has as many layers already, keeps them in no list of its own that could be shortened, or would put out
    something else than its hidden states after that layer.
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
    norms = {n: m for n in FINAL_NORMS if isinstance(m := getattr(owner, n, None), nn.Module)}
    with _trial(base) as ids, torch.no_grad():
        before = base(input_ids=ids, output_hidden_states=True).hidden_states[layers]
        _set(owner, {name: stack[:layers], **{n: nn.Identity() for n in norms}})
        base.config.num_hidden_layers = layers
        if torch.equal(base(input_ids=ids).last_hidden_state, before):
            return True
    _set(owner, {name: stack, **norms})
    base.config.num_hidden_layers = total
    return False


def _set(owner: nn.Module, children: dict[str, nn.Module]) -> None:
    for name, child in children.items():
        setattr(owner, name, child)


@contextmanager
def _trial(base: Any) -> Iterator[torch.Tensor]:
    """Token ids (1, PROBE) where the base is, itself without dropout; its mode is put back."""
    training, where = base.training, next(base.parameters()).device
    last = base.get_input_embeddings().weight.shape[0] - 1
    base.eval()
    try:
        yield torch.arange(PROBE, device=where).clamp(max=last - 1)[None]
    finally:
        base.train(training)
