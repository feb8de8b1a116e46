"""Your own attack, defence, model and data in a bench: `securefed bench examples/own_parts.toml`."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from securefed.data.digest import records_digest
from securefed.data.records import Dataset, Examples
from securefed_attacks import Byzantine
from securefed_defenses import Rule


@dataclass(frozen=True)
class Backwards(Byzantine):  # what liars send: (f, d), or one row (d,) that all of them send
    scale: float = 10.0
    name, knowledge = "backwards", "omniscient"

    def craft(self, seen: Any) -> torch.Tensor:
        return -self.scale * seen.honest.mean(0)


@dataclass(frozen=True)
class Middle(Rule):  # how n updates become one: (n, d) -> (d,)
    name = "middle"

    def combine(self, given: Any, state: Any) -> tuple[torch.Tensor, Any]:
        return given.rows.matrix().median(0).values, state


class Tiny(torch.nn.Sequential):  # images (b, c, h, w) -> logits (b, k)
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(prod(shape), classes))


class Blobs:  # called with the task: the records, and the part of them that everyone may test on
    def __call__(self, task: str) -> Dataset:
        labels = np.arange(1200) % 4
        images = np.random.default_rng(0).normal(0.15 * labels[:, None], 0.2, (1200, 36)).astype(np.float32)
        records = Examples(images=images.reshape(-1, 1, 6, 6), labels=labels)
        train, test = records.take(np.arange(900)), records.take(np.arange(900, 1200))
        return Dataset("blobs", train, test, tuple("abcd"), records_digest(train, test), "drawn here", "none")
