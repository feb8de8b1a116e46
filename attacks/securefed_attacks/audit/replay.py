"""The recipe played again on other records: shadows, the wrong-update control, other clients of a sum."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.data.batch import Batch
from securefed_attacks.audit.copies import Copies
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.shadows import train_together

BATCH_STREAM = 0xA0D1
"""Separates the draw of batches from every other use of the seed."""
MOST_NUMBERS = 50_000_000
"""Parameters of all models trained together; more would not fit beside their gradients and moments."""
OPTIMIZERS = ("sgd", "adam", "adamw", "adagrad", "rmsprop")


@dataclass(frozen=True, eq=False)
class Replay:
    """A recipe bound to a model and to the state that the round began from.

    Attributes:
        names: tensors that train; all others stay as they are.
    """

    target: Target
    before: Tensors
    names: tuple[str, ...]
    recipe: Recipe

    def missing(self) -> tuple[str, ...]:
        """What keeps the recipe from being played; empty where nothing does."""
        lacks = list(self.recipe.to_replay())
        if self.recipe.optimizer is not None and self.recipe.optimizer.lower() not in OPTIMIZERS:
            lacks.append(f"an optimizer that can be repeated here ({', '.join(OPTIMIZERS)})")
        if not self.names:
            lacks.append("tensors that train")
        return tuple(lacks)

    def update(self, rows: NDArray[np.int64], seed: int) -> Tensors:
        """What local training on these records would have sent, new minus old."""
        recipe = self.recipe
        assert recipe.steps is not None
        leaves = {n: self.before[n].detach().clone().requires_grad_() for n in self.names}
        optimizer = _optimizer(list(leaves.values()), recipe)
        for batch in _batches(rows, recipe, np.random.default_rng([seed, BATCH_STREAM])):
            optimizer.zero_grad()
            weights = self.target.effective({**self.before, **leaves})
            loss = self.target.losses(weights, self.target.batch(batch)).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
        return {n: leaf.detach() - self.before[n] for n, leaf in leaves.items()}

    def updates(self, rows: Sequence[NDArray[np.int64]], seeds: Sequence[int]) -> Iterator[Tensors]:
        """Each `update(rows[k], seeds[k])` up to rounding, trained together where that can be, else one by one."""
        together = self.together(rows, seeds) if len(rows) > 1 else None
        if together is not None:
            yield from together
        else:
            yield from (self.update(r, s) for r, s in zip(rows, seeds, strict=True))

    def together(self, rows: Sequence[NDArray[np.int64]], seeds: Sequence[int]) -> list[Tensors] | None:
        """The same in one vectorized training; None where that cannot be.

        It can for linear layers and factors of them (`Copies`), and for other nets whose records are tensors, where
        every training fills its batches and all models fit in memory.
        """
        size = sum(self.before[n].numel() for n in self.names) * len(rows)
        assert self.recipe.batch_size is not None
        if size > MOST_NUMBERS or min(map(len, rows)) < self.recipe.batch_size:
            return None
        drawn = np.asarray(
            [
                _batches(r, self.recipe, np.random.default_rng([s, BATCH_STREAM]))
                for r, s in zip(rows, seeds, strict=True)
            ]
        ).swapaxes(0, 1)
        found = self._by_copies(drawn) if self.target.inputs is None else self._by_vmap(drawn)
        if found is None:
            return None
        return [{n: found[n][k] - self.before[n] for n in self.names} for k in range(len(rows))]

    def _by_copies(self, drawn: NDArray[np.int64]) -> Tensors | None:
        copies = Copies.of(self.target, self.before, self.names)
        if copies is None:
            return None
        leaves = {n: t.clone() for n, t in copies.spread(drawn.shape[1]).items()}
        optimizer = _optimizer(list(leaves.values()), self.recipe)
        for rows in drawn:
            gradient = copies.gradients(leaves, rows)
            for name, leaf in leaves.items():
                leaf.grad = gradient[name]
            optimizer.step()
        return leaves

    def _by_vmap(self, drawn: NDArray[np.int64]) -> Tensors | None:
        target = self.target
        if target.inputs is None or target.encoded.labels is None:
            return None
        start = {n: self.before[n].expand(drawn.shape[1], *self.before[n].shape) for n in self.names}
        try:
            return train_together(
                self._loss_of(target.inputs, torch.from_numpy(target.encoded.labels)),
                start,
                map(torch.from_numpy, drawn),
                lambda leaves: _optimizer(leaves, self.recipe),
            )
        except RuntimeError:  # an operation of this model that torch cannot vectorize: one by one, then
            return None

    def _loss_of(
        self, inputs: torch.Tensor, labels: torch.Tensor
    ) -> Callable[[Tensors, torch.Tensor], torch.Tensor]:
        def of(leaves: Tensors, rows: torch.Tensor) -> torch.Tensor:
            weights = self.target.effective({**self.before, **leaves})
            return self.target.losses(weights, Batch(images=inputs[rows], labels=labels[rows])).mean()

        return of

    def seconds(self, rows: NDArray[np.int64]) -> float:
        """About how long one `update` takes, from one step."""
        assert self.recipe.steps is not None
        assert self.recipe.batch_size is not None
        began = time.monotonic()
        self.target.gradient(self.before, self.names, rows[: self.recipe.batch_size])
        return (time.monotonic() - began) * self.recipe.steps


def _batches(
    rows: NDArray[np.int64], recipe: Recipe, rng: np.random.Generator
) -> Sequence[NDArray[np.int64]]:
    """`steps` batches, the records shuffled anew each time they have all been used."""
    assert recipe.steps is not None
    assert recipe.batch_size is not None
    size = min(recipe.batch_size, len(rows))
    found: list[NDArray[np.int64]] = []
    while len(found) < recipe.steps:
        order = rng.permutation(rows)
        found += [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    return found[: recipe.steps]


def _optimizer(leaves: list[torch.Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    assert recipe.optimizer is not None
    assert recipe.learning_rate is not None
    rate, decay = recipe.learning_rate, recipe.weight_decay
    name = recipe.optimizer.lower()
    if name == "sgd":
        return torch.optim.SGD(leaves, rate, momentum=recipe.momentum, weight_decay=decay)
    if name == "adamw":
        return torch.optim.AdamW(leaves, rate, weight_decay=decay)
    if name == "adam":
        return torch.optim.Adam(leaves, rate, weight_decay=decay)
    if name == "adagrad":
        return torch.optim.Adagrad(leaves, rate, weight_decay=decay)
    return torch.optim.RMSprop(leaves, rate, weight_decay=decay)
