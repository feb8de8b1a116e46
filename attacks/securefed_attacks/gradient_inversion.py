"""Images that give the gradient that was seen: Inverting Gradients, for any number of channels.

Minimizes 1 - cos(gradient(x), seen) + total variation of x over images x by Adam on the gradient's signs (Geiping, Bauermeister,
Droege and Moeller, NeurIPS 2020, arXiv 2003.14053, section 3 and equation 4), or the squared difference by L-BFGS (Zhu,
Liu and Han, "Deep leakage from gradients", NeurIPS 2019, algorithm 1). Labels come first (`labels.py`).

Adversary: sees one client's gradient and knows the model. Noise as a mechanism adds it, sums over many records and large
batches end it; it is the attack to try where no layer can be inverted exactly.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Progress = Callable[[int, float], None]
Distance = Literal["auto", "tensors", "cosine", "squared"]
STEPS_DOWN = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the iterations after which the rate falls to a tenth, as in the published implementation."""
FEW_PIXELS = 4096
"""Up to here oneDNN's set-up of each convolution costs more than it saves: half of an iteration, as measured."""
TRIAL = 0.1
"""Share of the iterations that each restart gets before the best one goes on alone."""


@dataclass(frozen=True, eq=False)
class Inverted:
    """The images that match best.

    Attributes:
        images: (n, c, h, w), in the range that was given.
        mismatch: the matching loss, without total variation; near 0 the gradient is explained.
        iterations: over all restarts. seconds: wall clock. finished: no budget cut it short.
    """

    images: torch.Tensor = field(repr=False)
    mismatch: float
    iterations: int
    seconds: float
    finished: bool


@dataclass(frozen=True)
class GradientInversion:
    """The attack and its strength.

    Attributes:
        iterations: of the restart that goes on. restarts: beginnings; the best after a tenth of the iterations goes on.
        optimizer: "adam" on signs, or "lbfgs" (smooth activations only).
        distance: "cosine" of the whole gradient, as published; the average over "tensors" of their own cosines, so that
            the last layer does not drown the first (own; far better with smooth activations, worse with ReLU); "squared";
            or "auto": "cosine" where the model has a ReLU, and else "tensors".
        rate: Adam's first rate. total_variation: its weight; None for 1e-2 with "cosine", else 2e-4. seconds: wall-clock budget, None for none.
        seed: of the beginnings.
    """

    iterations: int = 2000
    restarts: int = 1
    optimizer: Literal["adam", "lbfgs"] = "adam"
    distance: Distance = "auto"
    rate: float = 0.1
    total_variation: float | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.restarts) < 1 or self.rate <= 0 or (self.total_variation or 0) < 0:
            raise ValueError(
                "gradient inversion needs iterations, restarts >= 1, rate > 0 and total_variation >= 0; got "
                f"{self.iterations}, {self.restarts}, {self.rate}, {self.total_variation}"
            )

    def __call__(
        self,
        model: nn.Module,
        gradient: Sequence[torch.Tensor],
        labels: torch.Tensor,
        shape: tuple[int, int, int],
        *,
        low: float | torch.Tensor = 0.0,
        high: float | torch.Tensor = 1.0,
        progress: Progress | None = None,
    ) -> Inverted:
        """Images whose gradient is the given one.

        Args:
            model: as sent; run as it is (eval mode where batch statistics are not to change). gradient: of the mean
                cross-entropy, in the order of the parameters that require a gradient.
            labels: (n,). shape: (c, h, w) of one image. low, high: bounds of pixels, numbers or (c, 1, 1).
            progress: called with (iteration, mismatch) about a hundred times.

        Raises:
            ValueError: gradients that do not fit the model, that are not finite or all zero.
        """
        match = _Match(model, gradient, labels, self._distance(model))
        began = time.monotonic()
        deadline = math.inf if self.seconds is None else began + self.seconds
        generator = torch.Generator().manual_seed(self.seed)
        run = self._adam if self.optimizer == "adam" else self._lbfgs
        trial = max(1, int(TRIAL * self.iterations))
        starts = [torch.randn(len(labels), *shape, generator=generator) for _ in range(self.restarts)]
        starts = [torch.clamp(s, torch.as_tensor(low), torch.as_tensor(high)) for s in starts]
        done = 0
        with _plain_convolutions(len(labels) * shape[1] * shape[2] <= FEW_PIXELS):
            if self.restarts > 1:
                tried = [run(match, start, trial, low, high, deadline, None) for start in starts]
                done = sum(count for _, _, count in tried)
                starts = [min(tried, key=lambda one: one[1])[0]]
            image, loss, count = run(match, starts[0], self.iterations, low, high, deadline, progress)
        return Inverted(image, loss, done + count, time.monotonic() - began, count == self.iterations)

    def _distance(self, model: nn.Module) -> Distance:
        if self.distance != "auto":
            return self.distance
        return "cosine" if any(isinstance(m, nn.ReLU) for m in model.modules()) else "tensors"

    def _smoothing(self, distance: Distance) -> float:
        if self.total_variation is not None:
            return self.total_variation
        return 1e-2 if distance == "cosine" else 2e-4

    def _adam(
        self,
        match: _Match,
        start: torch.Tensor,
        iterations: int,
        low: float | torch.Tensor,
        high: float | torch.Tensor,
        deadline: float,
        progress: Progress | None,
    ) -> tuple[torch.Tensor, float, int]:
        floor, ceiling, smoothing = (
            torch.as_tensor(low),
            torch.as_tensor(high),
            self._smoothing(match.distance),
        )
        x = start.clone().requires_grad_()
        step = torch.optim.Adam([x], self.rate)
        fall = torch.optim.lr_scheduler.MultiStepLR(step, [int(s * iterations) for s in STEPS_DOWN])
        best, kept, every = math.inf, start, max(1, iterations // 100)
        for i in range(iterations):
            loss, slope = match(x)
            value = float(loss)
            if value < best:
                best, kept = value, x.detach().clone()
            if progress is not None and i % every == 0:
                progress(i, value)
            if time.monotonic() > deadline:
                return kept, best, i
            x.grad = slope.add_(variation_slope(x.detach()), alpha=smoothing).sign_()
            step.step()
            fall.step()
            with torch.no_grad():
                x.clamp_(floor, ceiling)
        value = float(match(x)[0])
        return (x.detach(), value, iterations) if value < best else (kept, best, iterations)

    def _lbfgs(
        self,
        match: _Match,
        start: torch.Tensor,
        iterations: int,
        low: float | torch.Tensor,
        high: float | torch.Tensor,
        deadline: float,
        progress: Progress | None,
    ) -> tuple[torch.Tensor, float, int]:
        x = start.clone().requires_grad_()
        step = torch.optim.LBFGS([x], max_iter=1, history_size=50, line_search_fn="strong_wolfe")
        best, kept, every = math.inf, start, max(1, iterations // 100)
        smoothing = self._smoothing(match.distance)

        def closure() -> torch.Tensor:
            loss, slope = match(x)
            x.grad = slope.add_(variation_slope(x.detach()), alpha=smoothing)
            return loss.detach() + smoothing * variation(x.detach())

        for i in range(iterations):
            if time.monotonic() > deadline:
                return kept, best, i
            step.step(closure)  # type: ignore[no-untyped-call]  # torch's stub
            value = float(match(x)[0])
            if value < best:
                best = value
                kept = x.detach().clamp(torch.as_tensor(low), torch.as_tensor(high))
            if progress is not None and i % every == 0:
                progress(i, value)
        return kept, best, iterations


@contextlib.contextmanager
def _plain_convolutions(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's switch also sets one for GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class _Match:
    """How far the gradient at x is from the one seen, and the slope of that in x."""

    def __init__(
        self, model: nn.Module, gradient: Sequence[torch.Tensor], labels: torch.Tensor, distance: Distance
    ) -> None:
        self.model, self.labels, self.distance = model, labels, distance
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if [g.shape for g in gradient] != [p.shape for p in self.parameters]:
            raise ValueError(
                "the gradient's shapes are not those of the model's trainable parameters, in their order"
            )
        norm = float(torch.stack([g.norm() for g in gradient]).norm())
        if not math.isfinite(norm) or norm == 0:
            raise ValueError(f"a gradient of norm {norm} has nothing to match")
        self.seen = [g.detach() for g in gradient]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, slope in x) by the distance that was chosen."""
        error = F.cross_entropy(self.model(x), self.labels)
        here = torch.autograd.grad(error, self.parameters, create_graph=True)
        with torch.no_grad():  # the slope in the gradient's space by hand: fewer small nodes to go through
            if self.distance == "tensors":
                pairs = [_cosine([g], [s]) for g, s in zip(here, self.seen, strict=True)]
                towards = [slope[0] / len(pairs) for _, slope in pairs]
                loss = torch.stack([part for part, _ in pairs]).mean()
            else:
                loss, towards = (_cosine if self.distance == "cosine" else _square)(here, self.seen)
        (slope,) = torch.autograd.grad(here, [x], towards)
        return loss, slope


Tensors = Sequence[torch.Tensor]


def _cosine(here: Tensors, seen: Tensors) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(1 - cosine, its slope in `here`), as half the squared distance of unit vectors: exact near 0 in float32."""
    length, wanted = _length(here), _length(seen)
    units = [g / length for g in here]
    away = [u - s / wanted for u, s in zip(units, seen, strict=True)]
    loss = torch.stack([a.square().sum() for a in away]).sum() / 2
    inside = torch.stack([(u * a).sum() for u, a in zip(units, away, strict=True)]).sum()
    return loss, [(a - u * inside) / length for u, a in zip(units, away, strict=True)]


def _square(here: Tensors, seen: Tensors) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(squared difference over the squared length of `seen`, its slope in `here`)."""
    scale = _length(seen).square()
    away = [g - s for g, s in zip(here, seen, strict=True)]
    return torch.stack([a.square().sum() for a in away]).sum() / scale, [2 * a / scale for a in away]


def _length(tensors: Tensors) -> torch.Tensor:
    total: torch.Tensor = torch.stack([t.norm() for t in tensors]).norm()
    return total.clamp_min(1e-30)


def variation(x: torch.Tensor) -> torch.Tensor:
    """Total variation of images (n, c, h, w): mean absolute difference down plus that to the right."""
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()


def variation_slope(x: torch.Tensor) -> torch.Tensor:
    """The gradient of `variation`, in closed form."""
    slope = torch.zeros_like(x)
    down = (x[..., 1:, :] - x[..., :-1, :]).sign_()
    down /= down.numel()
    slope[..., 1:, :] += down
    slope[..., :-1, :] -= down
    right = (x[..., 1:] - x[..., :-1]).sign_()
    right /= right.numel()
    slope[..., 1:] += right
    slope[..., :-1] -= right
    return slope
