"""What the adapters beyond LoRA share with none of it: virtual tokens, and IA3's scales as per-record lookups.

Prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv 2104.08691) puts trained embeddings before a record's own;
prefix tuning (Li and Liang 2021, arXiv 2101.00190) trained keys and values before those of every layer; IA3 (Liu et
al. 2022, arXiv 2205.05638) multiplies keys, values and the inner activations of the feed-forward layers by trained
vectors. All three are used as they are averaged: no factor is multiplied with another that trains, so the mean of
updates is exact under any secure sum.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

SOFT = ("prompt", "prefix", "ia3")
VIRTUAL = ("prompt", "prefix")
PREFIX_STD = 0.1
"""Of the first keys and values. At zero a prefix would take attention away and give nothing back."""


class Scale(nn.Module):
    """x times a trained vector, looked up once for each record.

    A bare parameter has no per-record gradient: no hook sees it. As an embedding of one row, looked up by every
    record for itself, it has one, by the rule that Opacus has for embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(1, width)
        nn.init.ones_(self.rows.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (b, ..., width) scaled, in x's dtype."""
        index = torch.zeros(len(x), *[1] * (x.dim() - 2), dtype=torch.long, device=x.device)
        return (x * self.rows(index)).to(x.dtype)


def attach_scale(layer: Any, width: int, feedforward: bool) -> Scale:
    """Lets a layer's input (feed-forward) or output be scaled; the layer must not scale it itself."""
    scale = Scale(width)
    layer.scale = scale
    if feedforward:
        layer.register_forward_pre_hook(_scale_input)
    else:
        layer.register_forward_hook(_scale_output)
    return scale


def _scale_input(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.scale(inputs[0]), *inputs[1:])


def _scale_output(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    scaled: torch.Tensor = layer.scale(output)
    return scaled


def first_prompt(words: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """Embeddings of `tokens` words of the vocabulary, drawn from the public seed (Lester et al., section 3.2)."""
    drawn = _generator("prompt", seed).choice(len(words), tokens, replace=tokens > len(words))
    return words.detach()[torch.from_numpy(drawn).to(words.device)].float()


def first_prefix(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Small random keys and values from the public seed."""
    return torch.from_numpy(
        (PREFIX_STD * _generator("prefix", seed).standard_normal(shape)).astype(np.float32)
    )


def _generator(what: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{what}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "big")))
