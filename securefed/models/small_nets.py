"""Small image classifiers for the vision benchmarks: logistic regression, one hidden layer, two convolutions.

No batch normalization: it mixes records, so no per-record gradient exists.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from securefed.config import ModelConfig
from securefed.data.batch import Batch
from securefed.errors import ModelError
from securefed.registry import find_class, is_path


class ImageClassifier(nn.Module):
    """A net on images (b, c, h, w), float32; logits (b, k)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k)."""
        logits: torch.Tensor = self.net(batch.images)
        return logits


def small_net(config: ModelConfig, image_shape: tuple[int, int, int], classes: int) -> ImageClassifier:
    """The net that `config.name` means, drawn from `config.seed` alone, on the CPU.

    `mlp` has one hidden layer of `config.hidden` units; `cnn` has 16 and 32 3x3 filters, each followed by
    max-pooling, and needs images of at least 10 x 10.

    Raises:
        ModelError: images too small for the convolutions.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # not torch.manual_seed, which reseeds GPUs too
        return ImageClassifier(_build(config, image_shape, classes))


def _build(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    c, h, w = shape
    if is_path(config.name):
        return _own(config.name, shape, classes)
    if config.name == "logistic":
        return _named(flatten=nn.Flatten(), output=nn.Linear(c * h * w, classes))
    if config.name == "mlp":
        return _named(
            flatten=nn.Flatten(),
            hidden=nn.Linear(c * h * w, config.hidden),
            relu=nn.ReLU(),
            output=nn.Linear(config.hidden, classes),
        )
    if min(h, w) < 10:
        raise ModelError(f"cnn needs images of at least 10 x 10, found {h} x {w}; use mlp or logistic")
    rows, columns = (((side - 2) // 2 - 2) // 2 for side in (h, w))
    return _named(
        conv1=nn.Conv2d(c, 16, 3),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(16, 32, 3),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        output=nn.Linear(32 * rows * columns, classes),
    )


def _own(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A user's class, called with the image shape (c, h, w) and the number of classes."""
    net = find_class("model", name, {})(shape, classes)
    if not isinstance(net, nn.Module):
        raise ModelError(f"model {name} is no torch.nn.Module; it maps images (b, c, h, w) to logits (b, k)")
    return net


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
