"""Gradient inversion finds small images of any number of channels, stops on time, and fails behind noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from securefed_attacks.gradient_inversion import GradientInversion, variation, variation_slope
from securefed_attacks.linear_inversion import psnr


def net(channels: int, seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.Sigmoid(),
            nn.Conv2d(8, 8, 3, padding=1, stride=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 5),
        ).eval()


def smooth(channels: int, n: int = 1, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (8, 8), mode="bilinear")


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_of_any_number_of_channels_is_found(channels: int) -> None:
    model, x, y = net(channels), smooth(channels), torch.tensor([2])
    attack = GradientInversion(100, total_variation=1e-4)
    found = attack(model, gradient(model, x, y), y, (channels, 8, 8))
    assert psnr(found.images, x) > 17
    assert found.finished
    assert found.iterations == 100


def test_lbfgs_finds_it_too() -> None:
    model, x, y = net(1), smooth(1), torch.tensor([2])
    attack = GradientInversion(20, optimizer="lbfgs", total_variation=0.0)
    assert psnr(attack(model, gradient(model, x, y), y, (1, 8, 8)).images, x) > 18


def test_noise_of_a_mechanism_ends_it() -> None:
    model, x, y = net(1), smooth(1), torch.tensor([2])
    seen = gradient(model, x, y)
    generator = torch.Generator().manual_seed(0)
    norm = torch.cat([g.flatten() for g in seen]).norm()
    released = [g + norm * torch.randn(g.shape, generator=generator) for g in seen]
    found = GradientInversion(100, total_variation=1e-4)(model, released, y, (1, 8, 8))
    assert psnr(found.images, x) < 15
    assert found.mismatch > 0.3, "and it knows"


def test_restarts_keep_the_best_beginning_and_the_same_seed_gives_the_same_image() -> None:
    model, x, y = net(1), smooth(1), torch.tensor([0])
    seen, attack = gradient(model, x, y), GradientInversion(20, restarts=3, seed=4)
    first, again = (attack(model, seen, y, (1, 8, 8)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.iterations == 20 + 3 * 2


def test_the_budget_of_seconds_is_kept_and_progress_is_told() -> None:
    model, x, y = net(1), smooth(1), torch.tensor([0])
    seen = gradient(model, x, y)
    cut = GradientInversion(10**6, seconds=0.2)(model, seen, y, (1, 8, 8))
    assert not cut.finished
    assert cut.iterations < 10**4
    heard: list[int] = []
    GradientInversion(20)(model, seen, y, (1, 8, 8), progress=lambda i, _: heard.append(i))
    assert heard == list(range(20))


@pytest.mark.parametrize("distance", ["tensors", "cosine", "squared"])
def test_the_slope_is_the_losss_own(distance: Any) -> None:
    """Against differences, in float64."""
    from securefed_attacks.gradient_inversion import _Match

    model, y = net(1).double(), torch.tensor([1])
    match = _Match(model, gradient(model, smooth(1).double(), y), y, distance)
    x = smooth(1, seed=5).double().requires_grad_()
    _, slope = match(x)
    for place in ((0, 0, 0, 0), (0, 0, 3, 4), (0, 0, 7, 7)):
        step = torch.zeros_like(x)
        step[place] = 1e-5
        ahead, behind = (match((x + s).detach().requires_grad_())[0] for s in (step, -step))
        assert float(slope[place]) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-3, abs=1e-9)


def test_the_slope_of_total_variation_is_autograds() -> None:
    x = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(variation(x), [x])
    assert torch.allclose(variation_slope(x.detach()), expected)


def test_what_cannot_be_matched_is_refused() -> None:
    model, y = net(1), torch.tensor([0])
    good = gradient(model, smooth(1), y)
    with pytest.raises(ValueError, match="shapes"):
        GradientInversion(5)(model, good[1:], y, (1, 8, 8))
    with pytest.raises(ValueError, match="nothing to match"):
        GradientInversion(5)(model, [torch.zeros_like(g) for g in good], y, (1, 8, 8))
    with pytest.raises(ValueError, match="iterations"):
        GradientInversion(0)


def test_a_net_with_relu_is_matched_by_the_whole_cosine_and_a_smooth_one_tensor_by_tensor() -> None:
    attack = GradientInversion()
    assert attack._distance(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == "cosine"
    assert attack._distance(net(1)) == "tensors"
