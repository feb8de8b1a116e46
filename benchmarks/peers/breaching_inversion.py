"""Inverting Gradients beside breaching 0.1.2: time of one iteration, and PSNR after the same seconds, in one process.

Both attack the gradient of one Fashion-MNIST image, three times the same channel (breaching's total variation
takes three channels only), on a net of three convolutions, with the published setting (cosine, signed Adam at 0.1, total
variation 0.2); then ours again as it is by default, for as many seconds as breaching took.

    python -m venv --system-site-packages ENV && ENV/bin/pip install --no-deps breaching==0.1.2 hydra-core omegaconf \\
        antlr4-python3-runtime==4.9.3
    ENV/bin/python benchmarks/peers/breaching_inversion.py [--iterations 300] [--repeats 3]

Torchvision is replaced by an empty stand-in: breaching imports it and does not use it here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import io
import sys
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from securefed_attacks.gradient_inversion import GradientInversion
from securefed_attacks.linear_inversion import psnr
from securefed_benchmarks.fashion import MEAN, STD, whole
from securefed_benchmarks.timing import ratio, report

CHANNELS = 3


def main() -> None:
    """Prints one JSON line for each activation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    breaching = _breaching()
    (images, labels), _ = whole()
    for activation in (nn.Sigmoid, nn.ReLU):
        torch.manual_seed(1)
        model = net(activation).eval()
        theirs, ours, quality = [], [], []
        for i in range(wanted.repeats + 1):
            x, y = images[i].reshape(1, 1, 28, 28).repeat(1, CHANNELS, 1, 1), labels[i : i + 1]
            gradient = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            began = time.process_time()
            theirs_found = _theirs(breaching, model, gradient, y, wanted.iterations)
            seconds = time.process_time() - began
            as_published = GradientInversion(wanted.iterations, distance="cosine", total_variation=0.2)
            began = time.process_time()
            _ours(as_published, model, gradient, y)
            spent = time.process_time() - began
            defaults = GradientInversion(int(wanted.iterations * seconds / spent))
            began = time.process_time()
            found = _ours(defaults, model, gradient, y)
            ours_took = time.process_time() - began
            if i:  # the first warms up
                theirs.append(seconds / wanted.iterations)
                ours.append(spent / wanted.iterations)
                quality.append((_db(found, x), _db(theirs_found, x), ours_took / seconds))
        report(
            "inverting gradients beside breaching",
            {
                "activation": activation.__name__,
                "ratio_per_iteration": ratio(ours, theirs),
                "ours_ms": round(1e3 * min(ours), 2),
                "theirs_ms": round(1e3 * min(theirs), 2),
                "psnr_ours_theirs_seconds_ratio": [[round(v, 2) for v in q] for q in quality],
            },
        )


def net(activation: type[nn.Module]) -> nn.Module:
    """Three convolutions and a linear layer, 588 features."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 12, 5, padding=2, stride=2),
        activation(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        activation(),
        nn.Conv2d(12, 12, 5, padding=2),
        activation(),
        nn.Flatten(),
        nn.Linear(588, 10),
    )


def _ours(attack: GradientInversion, model: nn.Module, gradient: Any, y: torch.Tensor) -> torch.Tensor:
    return attack(model, gradient, y, (CHANNELS, 28, 28), low=-MEAN / STD, high=(1 - MEAN) / STD).images


def _db(found: torch.Tensor, true: torch.Tensor) -> float:
    return psnr((found * STD + MEAN).clamp(0, 1), true * STD + MEAN)


def _theirs(
    breaching: Any, model: nn.Module, gradient: Any, y: torch.Tensor, iterations: int
) -> torch.Tensor:
    settings = breaching.get_attack_config("invertinggradients")
    settings.optim.max_iterations = settings.optim.callback = iterations
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attack = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), settings, setup)
    facts = SimpleNamespace(
        modality="vision",
        size=(60000,),
        classes=10,
        shape=(CHANNELS, 28, 28),
        normalize=True,
        mean=(MEAN,) * CHANNELS,
        std=(STD,) * CHANNELS,
    )
    server = [{"parameters": list(model.parameters()), "buffers": [], "metadata": facts}]
    told = {"num_data_points": 1, "labels": y, "local_hyperparams": None}
    shared = [{"gradients": gradient, "buffers": None, "metadata": told}]
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = attack.reconstruct(server, shared, {}, dryrun=False)
    images: torch.Tensor = found["data"].detach()
    return images


def _breaching() -> Any:
    parts = ("", ".transforms", ".datasets", ".models", ".models.resnet", ".models.densenet", ".models.vgg")
    for name in (f"torchvision{part}" for part in parts):
        stand_in = mock.MagicMock()
        stand_in.__spec__, stand_in.__path__ = importlib.machinery.ModuleSpec(name, None), []
        sys.modules[name] = stand_in
    import breaching

    return breaching


if __name__ == "__main__":
    main()
