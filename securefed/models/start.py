"""LoRA's first factors, from the public seed alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.config import ModelConfig


def initialize(tensors: dict[str, nn.Parameter], config: ModelConfig) -> None:
    """B = 0, and A from the public seed and its own name, so that every machine starts from the same model.

    A that trains has rows of norm about 1; a frozen A (`ffa`) has orthonormal rows, which waste none of the
    rank. NumPy in float64: neither the order of modules nor a CPU's float32 kernels change the outcome.
    """
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith(".lora_B"):
                tensor.zero_()
                continue
            rows = _start_of_a(name, tuple(tensor.shape), config)
            tensor.copy_(torch.from_numpy(rows.astype(np.float32)))


def _start_of_a(
    name: str, shape: tuple[int, ...], config: ModelConfig
) -> np.ndarray[Any, np.dtype[np.float64]]:
    rank, width = shape
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}:{name}".encode()).digest()[:8], "big")
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal((width, rank))
    if config.adapter != "ffa":
        return normal.T / np.sqrt(width)
    q, r = np.linalg.qr(normal)
    rows: np.ndarray[Any, np.dtype[np.float64]] = (
        q * np.sign(np.diag(r))
    ).T  # the sign makes the factorization unique
    return rows
