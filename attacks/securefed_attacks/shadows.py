"""Many small models trained at once: one vectorized step instead of one step a model (`torch.func`).

On a CPU, training 32 shadows of a small net one by one is mostly the overhead of 32 small operations; stacked,
each operation is one batched matrix product. The result is that of separate training, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

Stack = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ShadowTraining:
    """How each shadow is trained: as the attacked model was, or the attack compares unlike things."""

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"shadow training needs positive epochs, batch size and rate, momentum in [0, 1); got {self}"
            )


@dataclass(frozen=True, eq=False)
class Shadows:
    """Trained models: one architecture, parameters stacked along a first axis of length `count`."""

    net: nn.Module = field(repr=False)
    parameters: Stack = field(repr=False)
    count: int

    def logits(self, inputs: torch.Tensor, block: int = 4096) -> torch.Tensor:
        """Logits of every model on every input, (count, n, k), in evaluation mode."""
        self.net.eval()
        call = vmap(lambda p, x: functional_call(self.net, p, (x,)), in_dims=(0, None))
        with torch.no_grad():
            return torch.cat([call(self.parameters, x) for x in torch.split(inputs, block)], dim=1)


def train_shadows(
    make: Callable[[], nn.Module],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    included: NDArray[np.bool_],
    training: ShadowTraining,
) -> Shadows:
    """Trains one model for each row of `included`, on the records that the row marks.

    Args:
        make: builds one model, inputs (b, ...) -> logits (b, k); no batch normalization, no dropout.
        inputs: (n, ...). labels: (n,), int64. included: (s, n), each row with equally many records.

    Raises:
        ValueError: rows of different sizes, or a model whose layers mix records or draw at random.
    """
    sizes = np.unique(included.sum(1))
    if included.ndim != 2 or included.shape[1] != len(inputs) or len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(
            f"each shadow needs equally many of the {len(inputs)} records; found between {included.sum(1).min()} "
            f"and {included.sum(1).max()}"
        )
    count = len(included)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(training.seed)
        models = [make() for _ in range(count)]
    _refuse_mixing(models[0])
    net = models[0]
    stacked, _ = stack_module_state(models)
    parameters: Stack = {name: value.detach().clone() for name, value in stacked.items()}
    own = torch.from_numpy(np.stack([np.flatnonzero(row) for row in included]))
    rng = np.random.default_rng([training.seed, 0x5AD0])
    net.train()
    trained = train_together(
        _loss(net, inputs, labels),
        parameters,
        _epochs(own, training, rng),
        lambda leaves: torch.optim.SGD(leaves, training.learning_rate, momentum=training.momentum),
    )
    return Shadows(net, trained, count)


def train_together(
    loss: Callable[[Stack, torch.Tensor], torch.Tensor],
    start: Stack,
    batches: Iterable[torch.Tensor],
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
) -> Stack:
    """Every model's parameters after one vectorized step a batch; `start` stays as it is.

    Args:
        loss: (one model's parameters, its records (b,)) -> a number, differentiable. start: stacked, (s, ...).
        batches: int64 (s, b) each, the records of every model's step.
        optimizer: of the stacked parameters. It must work entry by entry, as SGD, Adam and their kin do.
    """
    leaves = {name: value.detach().clone() for name, value in start.items()}
    stepper, step = optimizer(list(leaves.values())), vmap(grad(loss), in_dims=(0, 0))
    for rows in batches:
        gradient = step(leaves, rows)
        for name, leaf in leaves.items():
            leaf.grad = gradient[name]
        stepper.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def _epochs(own: torch.Tensor, training: ShadowTraining, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    count, size = own.shape
    for _ in range(training.epochs):
        order = torch.from_numpy(rng.random((count, size)).argsort(1))
        yield from torch.split(own.gather(1, order), training.batch_size, dim=1)


def _loss(
    net: nn.Module, inputs: torch.Tensor, labels: torch.Tensor
) -> Callable[[Stack, torch.Tensor], torch.Tensor]:
    def of(parameters: Stack, rows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(net, parameters, (inputs[rows],)), labels[rows])

    return of


def _refuse_mixing(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (
            isinstance(module, nn.Dropout) and module.p > 0
        ):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which mixes records or draws at random; shadows are trained without"
            )
