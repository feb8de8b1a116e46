"""Proof, at step one, that DP training does what its epsilon claims; a failure stops the run.

Known failures look healthy from outside: loss falls, epsilon is right, and the adapter has learned
nothing, or records are not clipped one by one. So three things are compared with plain autograd and
with the model before the step. Nothing here is released, and the training that follows is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from securefed.errors import SelfCheckError
from securefed.training.dp_work import GRAD_SAMPLE, backward
from securefed.training.feed import Feed

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel
    from securefed.training.ghost import GhostGradients

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2, torch.float64: 1e-6}
"""Largest |difference| over the larger norm, by the dtype of the forward pass."""


def check_gradients(
    model: TaskModel,
    feed: Feed,
    parameters: Mapping[str, nn.Parameter],
    label_smoothing: float = 0.0,
    ghost: GhostGradients | None = None,
) -> None:
    """Compares two records' per-sample gradients, and their norms, with autograd on each alone. Hooks must be on.

    Args:
        ghost: what holds the gradients where no row is written.

    Raises:
        SelfCheckError: a trained tensor without per-sample gradients, with another batch size than the
            batch, or with values that autograd does not give.
    """
    rows = np.arange(min(2, len(feed)))
    _clear(parameters)
    try:
        backward(model.losses(feed.batch(rows), label_smoothing), ghost)
    except (
        AttributeError,
        IndexError,
        RuntimeError,
        ValueError,
    ) as error:  # what Opacus' hooks raise when one is lost
        raise SelfCheckError(
            f"per-sample gradients cannot be computed: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    found = _written(parameters, len(rows)) if ghost is None else _unwritten(parameters, len(rows), ghost)
    norms = {} if ghost is None else {n: ghost.squares([p]).sqrt() for n, p in parameters.items()}
    together = {} if ghost is None else _weighed(parameters, len(rows), ghost)
    all_finite = True
    for i, row in enumerate(rows):
        _clear(parameters)
        model.losses(feed.batch(np.array([row])), label_smoothing).sum().backward()
        expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
        if ghost is not None:
            ghost.clear()
        if not all(bool(torch.isfinite(e).all()) for e in expected.values()):
            all_finite = False
            continue  # such a record adds nothing in training; to stop for it would tell that it is there
        for name in parameters:
            compare(name, found[name][i], expected[name])
            if name in norms:
                _check_norm(name, norms[name][i], expected[name])
    for name, total in together.items() if all_finite else ():
        weights = _weights(len(rows)).to(total.device)
        compare(name, total, torch.tensordot(weights, found[name].double(), 1).to(total.dtype))
    _clear(parameters)


def _unwritten(
    parameters: Mapping[str, nn.Parameter], rows: int, ghost: GhostGradients
) -> dict[str, torch.Tensor]:
    """Each record's gradients of every tensor, (rows, *shape), written down from the products."""
    for name, p in parameters.items():
        if not ghost.holds(p):
            raise _without(name)
    return {n: ghost.rows(p, rows).to(p.dtype) for n, p in parameters.items()}


def _weighed(
    parameters: Mapping[str, nn.Parameter], rows: int, ghost: GhostGradients
) -> dict[str, torch.Tensor]:
    """The sums of the records' gradients at unequal weights, as clipping makes them."""
    found = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in parameters.items()}
    for name, p in parameters.items():
        ghost.add(_weights(rows).to(p.device), p, found[name])
    ghost.clear()
    return {n: total.to(parameters[n].dtype) for n, total in found.items()}


def _weights(rows: int) -> torch.Tensor:
    return 1.0 / torch.arange(1, rows + 1, dtype=torch.float64)


def _check_norm(name: str, norm: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises SelfCheckError where a norm is below its gradient's; what rounding puts on top is no fault."""
    true = float(expected.double().norm())
    if not float(norm) >= true * (1 - tolerance(expected.dtype)) - 1e-6:  # also true for NaN
        raise SelfCheckError(
            f"{name}: a record's norm is taken for {float(norm):.3g} where autograd has {true:.3g}; "
            "records would be clipped too little, so epsilon would not hold"
        )


def _without(name: str) -> SelfCheckError:
    return SelfCheckError(
        f"{name} has no per-sample gradients, so it would be trained without a bound or not at all; "
        "check that its module runs exactly once in the forward pass"
    )


def _written(parameters: Mapping[str, nn.Parameter], rows: int) -> dict[str, torch.Tensor]:
    """Each record's gradients of every tensor, (rows, *shape), as Opacus' hooks left them."""
    found: dict[str, torch.Tensor] = {}
    for name, p in parameters.items():
        sample = getattr(p, GRAD_SAMPLE, None)
        if not isinstance(sample, torch.Tensor):
            raise _without(name)
        if sample.shape != (rows, *p.shape):
            raise SelfCheckError(
                f"{name}: per-sample gradients of shape {tuple(sample.shape)}, expected {(rows, *p.shape)}"
            )
        found[name] = sample.detach().clone()
    return found


def tolerance(*dtypes: torch.dtype) -> float:
    """The bound for a comparison in which these dtypes took part."""
    return max(TOLERANCE.get(dtype, max(TOLERANCE.values())) for dtype in dtypes)


def compare(name: str, found: torch.Tensor, expected: torch.Tensor, bound: float | None = None) -> None:
    """Raises SelfCheckError where two gradients of one tensor differ by more than rounding explains."""
    scale = max(float(found.norm()), float(expected.norm()))
    difference = float((found - expected).norm())
    bound = tolerance(found.dtype) if bound is None else bound
    if not difference <= bound * scale + 1e-6:  # also true for NaN
        raise SelfCheckError(
            f"{name}: per-sample gradient differs from autograd by {difference / max(scale, 1e-30):.2g} relative (bound {bound:g}); "
            "records would be clipped wrongly, so epsilon would not hold"
        )


def _clear(parameters: Mapping[str, nn.Parameter]) -> None:
    for p in parameters.values():
        p.grad = None
        setattr(p, GRAD_SAMPLE, None)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The trained tensors and the model's answer on two records, before a step."""

    values: Mapping[str, torch.Tensor] = field(repr=False)
    answer: torch.Tensor = field(repr=False)


def snapshot(model: TaskModel, feed: Feed, parameters: Mapping[str, nn.Parameter]) -> Snapshot:
    """What `check_step` compares with."""
    return Snapshot({n: p.detach().clone() for n, p in parameters.items()}, _answer(model, feed))


def _answer(model: TaskModel, feed: Feed) -> torch.Tensor:
    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            return model.logits(feed.batch(np.arange(min(2, len(feed))))).detach().clone()
    finally:
        model.module.train(training)


@contextmanager
def check_step(
    model: TaskModel, feed: Feed, parameters: Mapping[str, nn.Parameter], before: Snapshot
) -> Iterator[None]:
    """Around the first step: every released gradient must move its tensor, and the model's answer with it.

    A factor A whose B is all zero, and the centre under a head that is zero, move without changing the
    answer; that is no failure.

    Raises:
        SelfCheckError: a tensor stayed although its released gradient was not zero, or the tensors
            moved and the model answers as before: what is trained is not what is used.
    """
    yield
    moved = {n for n, p in parameters.items() if not torch.equal(p.detach(), before.values[n])}
    for name, p in parameters.items():
        if name not in moved and p.grad is not None and bool(p.grad.any()):
            raise SelfCheckError(
                f"{name} did not change in a step that released a gradient for it; the optimizer does not hold this tensor"
            )
    effective = {n for n in moved if not _moves_nothing_yet(model, n)}
    if effective and torch.equal(_answer(model, feed), before.answer):
        raise SelfCheckError(
            f"{len(effective)} tensors changed and the model answers as before; the adapter that is trained is not the one that is used"
        )


def _moves_nothing_yet(model: TaskModel, name: str) -> bool:
    """Whether what this tensor is multiplied with is all zero: its B, or the head above the centre."""
    if model.part_of[name] not in ("A", "centre"):
        return False
    other = "head.weight" if model.part_of[name] == "centre" else name.replace("lora_A", "lora_B")
    partner = model.parameters.get(other)
    return partner is not None and not bool(partner.detach().any())
