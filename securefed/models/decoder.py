"""A decoder whose layers can be run one by one, so that what lies below its adapters is computed once.

Hidden states between layers carry everything the layers above need beside positions and the mask, which
depend on shapes alone: a pass may stop after any layer, and go on from there later.
"""

from __future__ import annotations

from typing import Any

import torch

from securefed.data.batch import Batch
from securefed.errors import ModelError

STAGED = ("llama", "mistral", "qwen2")
"""Model types of this shape: `model.embed_tokens`, `model.rotary_emb`, `model.layers`, `model.norm`, `lm_head`."""


def staged_layers(base: Any) -> int:
    """How many layers can be run one by one; 0 where they cannot.

    Layers that look back a limited distance have masks of their own, and are left to the library.
    """
    config = base.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if config.model_type not in STAGED or not kinds <= {"full_attention"}:
        return 0
    if config.model_type == "mistral" and config.sliding_window is not None:
        return 0
    return len(base.model.layers)


def layer_of(name: str) -> int:
    """The layer that a tensor of a decoder belongs to: the stage that lies right below it; 0 for what has none."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else 0


def run_layers(base: Any, batch: Batch, stop: int, *, checkpointing: bool = False) -> torch.Tensor:
    """Hidden states (b, t, h) after `stop` layers, from the tokens or from `batch.hidden`; not yet normalized.

    Args:
        checkpointing: reentrant checkpoints ask for one input that needs a gradient.

    Raises:
        ModelError: `batch.hidden` was taken above `stop`.
    """
    from transformers.masking_utils import create_causal_mask

    decoder = base.model
    if batch.hidden is None:
        hidden, start = decoder.embed_tokens(batch.input_ids), 0
    else:
        hidden, start = batch.hidden.to(base.dtype), batch.depth
        if checkpointing and torch.is_grad_enabled():
            hidden = hidden.detach().requires_grad_()
    if start > stop:
        raise ModelError(f"hidden states after layer {start} cannot give those after layer {stop}")
    places = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
    mask = create_causal_mask(
        config=base.config,
        inputs_embeds=hidden,
        attention_mask=batch.attention_mask,
        past_key_values=None,
        position_ids=places,
    )
    angles = decoder.rotary_emb(hidden, position_ids=places)
    for layer in decoder.layers[start:stop]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=angles, position_ids=places)
    return hidden
