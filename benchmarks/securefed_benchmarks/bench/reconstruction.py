"""What can be read back out of one round: four attacks on exactly what the job's protection leaves the server.

Each score `reconstructed` is the share of the victims' records (tokens, for texts) that come back, over all vectors that
the server holds, up to `MOST`. A record counts from `ABOVE` dB on. `control` is the same share of records of the
same source that nobody trained on, judged against the same findings: what comes "back" by looking alike.
The attacks are given the labels, which `securefed_attacks.labels` reads from such steps.
"""

from __future__ import annotations

import dataclasses
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from securefed.config import Config
from securefed.data.records import Examples
from securefed.errors import ConfigError
from securefed.models.task_model import TaskModel
from securefed.types import Vector
from securefed_attacks.imprint import Imprint, Imprinted
from securefed_benchmarks.bench.measures import Measured, Played
from securefed_benchmarks.bench.one_round import Seen, check_one_step, play_round

ABOVE = 30.0
"""dB above which an image is called read: a mean error of 3 % of the pixels' range."""
MOST = 8
"""Vectors that are attacked; where every client's update is in sight, the first eight."""
CAP = 100.0
"""dB at which float32 ends; an exact copy would be infinite."""


@dataclass(frozen=True)
class _Pixels(ABC):
    """Attacks that find images: the round, the findings, the shares."""

    models: tuple[str, ...] = field(default=("mlp",), repr=False)

    def check(self, config: Config) -> None:
        """Raises ConfigError where the job's round is not one that the attack reads."""
        check_one_step(config)
        if config.model.name not in self.models:
            raise ConfigError(
                f"this reconstruction reads {' or '.join(self.models)}, found model {config.model.name}"
            )
        if config.data.limit <= 0:
            raise ConfigError(
                "reconstruction needs control records; set data.limit below the training records"
            )

    def measure(self, played: Played) -> Measured:
        """Shares of records and of controls above the bound, and the median PSNR."""
        from securefed_attacks.linear_inversion import best_psnr

        seen = play_round(self.asked(played.config), played.assembly, self.start(played))[:MOST]
        others = _flat(played.others.images)
        low, high = float(others.min()), float(others.max())
        decibels: list[float] = []
        control: list[float] = []
        for one in seen:
            found = self.found(played, one).clamp(low, high)
            true = _flat(one.records.images)
            decibels += best_psnr(found, true, high - low).clamp_max(CAP).tolist()
            control += best_psnr(found, others[: len(true)], high - low).tolist()
        return Measured(
            {
                "reconstructed": _share(decibels),
                "control": _share(control),
                "psnr_db": max(0.0, statistics.median(decibels)),
                "records_in_view": statistics.fmean(len(one.records) for one in seen),
            }
        )

    def start(self, played: Played) -> Vector:
        """The model that the server sends: the job's own first one."""
        return played.first

    def asked(self, config: Config) -> Config:
        """The job that the server asks for: the job itself."""
        return config

    @abstractmethod
    def found(self, played: Played, seen: Seen) -> torch.Tensor:
        """Images (k, d) read out of one vector; k may be 0."""


@dataclass(frozen=True)
class Linear(_Pixels):
    """The first layer's inputs, divided out of its gradient neuron by neuron; the server reads along."""

    def found(self, played: Played, seen: Seen) -> torch.Tensor:
        """One image (an average of those it was open for) a neuron."""
        from securefed_attacks.linear_inversion import inputs_by_neuron

        return inputs_by_neuron(*_first_layer(seen.update))


@dataclass(frozen=True)
class ImprintLayer(_Pixels):
    """Robbing the Fed: the server sends a first layer of its own making, fitted on records that are nobody's here.

    It also asks for a rate at which what it wants stands out of float32's and fixed point's rounding.
    """

    rate: float = 10.0

    def asked(self, config: Config) -> Config:
        """The job at the server's rate."""
        return dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=self.rate))

    def start(self, played: Played) -> Vector:
        """The job's layout with the imprint's weights in it."""
        model = played.assembly.model
        tensors = dict(model.layout.unflatten(played.first))
        made = Imprinted(self._imprint(played), len(played.assembly.dataset.classes))
        weight, bias, out, out_bias = _names(tensors)
        tensors |= {weight: made.layer.weight.data, bias: made.layer.bias.data, out: made.head.weight.data}
        tensors[out_bias] = torch.zeros_like(tensors[out_bias])
        return model.layout.flatten(tensors)

    def found(self, played: Played, seen: Seen) -> torch.Tensor:
        """The contents of each bin."""
        return self._imprint(played).recover(*_first_layer(seen.update))

    def _imprint(self, played: Played) -> Imprint:
        images = _flat(played.others.images)
        return Imprint.fitted(images[len(images) // 2 :], played.config.model.hidden)


@dataclass(frozen=True)
class Inversion(_Pixels):
    """Inverting Gradients: images whose gradient is the one seen, for nets without a layer to divide out."""

    models: tuple[str, ...] = field(default=("cnn", "mlp"), repr=False)
    iterations: int = 400

    def found(self, played: Played, seen: Seen) -> torch.Tensor:
        """As many images as are in the vector, found by gradient matching."""
        from securefed_attacks.gradient_inversion import GradientInversion

        model, images = played.assembly.model, seen.records.images
        assert images is not None  # small nets read nothing else
        assert seen.records.labels is not None
        model.write(played.first, model.layout)
        net: torch.nn.Module = model.module.net  # type: ignore[assignment]  # a small net's
        names = [name.removeprefix("net.") for name, _ in net.named_parameters()]
        by_end = {name.removeprefix("net."): -tensor for name, tensor in seen.update.items()}
        others = played.others.images
        assert others is not None
        attack = GradientInversion(self.iterations, seed=played.config.seed)
        inverted = attack(
            net,
            [by_end[name] for name in names],
            torch.from_numpy(seen.records.labels),
            images.shape[1:],
            low=float(others.min()),
            high=float(others.max()),
        )
        found: torch.Tensor = inverted.images.flatten(1)
        return found


@dataclass(frozen=True)
class SpanTokens:
    """DAGER's span check: the tokens whose vectors lie in the span of the first attention layer's update.

    The round attacked is the one after the job's last: a fresh head is zero, and sends no gradient to the layers below.
    """

    def check(self, config: Config) -> None:
        """Raises ConfigError where the job's round is not one that the attack reads."""
        from securefed.models.zoo import is_small

        check_one_step(config)
        if is_small(config.model.name) or config.data.limit <= 0:
            raise ConfigError(
                "span reads a transformer's first layer, and needs control records; set data.limit"
            )

    def measure(self, played: Played) -> Measured:
        """Shares of tokens found, and of the tokens of texts that nobody trained on."""
        from securefed_attacks.span_tokens import token_bag
        from securefed_attacks.transformer_reader import open_reader

        model, length = played.assembly.model, played.config.data.max_length
        now = model.read(model.layout)
        seen = play_round(played.config, played.assembly, now)[:MOST]
        model.write(now, model.layout)
        reader = open_reader(_transformer(model.module))
        found = true = hits = control = others = 0
        for one in seen:
            bag = set(token_bag(reader, one.update, longest=length).tokens)
            own = _tokens(model, one.records, length)
            strange = _tokens(model, played.others.take(np.arange(len(one.records))), length) - own
            found, true, hits = found + len(bag), true + len(own), hits + len(bag & own)
            control, others = control + len(bag & strange), others + len(strange)
        return Measured(
            {
                "reconstructed": hits / true,
                "control": control / max(1, others),
                "false_tokens": float(found - hits),
                "records_in_view": statistics.fmean(len(one.records) for one in seen),
            }
        )


def _share(decibels: Sequence[float]) -> float:
    return sum(value >= ABOVE for value in decibels) / len(decibels)


def _flat(images: object) -> torch.Tensor:
    assert isinstance(images, np.ndarray)  # checked: a net on images
    return torch.from_numpy(images).flatten(1)


def _names(tensors: Mapping[str, torch.Tensor]) -> tuple[str, str, str, str]:
    """Weight and bias of an mlp's hidden layer, weight and bias of its output."""
    ends = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
    found = [next(name for name in tensors if name.endswith(end)) for end in ends]
    return found[0], found[1], found[2], found[3]


def _first_layer(update: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias, _, _ = _names(update)
    return update[weight], update[bias]


def _transformer(module: torch.nn.Module) -> torch.nn.Module:
    """The Hugging Face model inside a task's module."""
    return next(m for m in module.modules() if hasattr(m, "get_input_embeddings") and hasattr(m, "config"))


def _tokens(model: TaskModel, examples: Examples, length: int) -> set[int]:
    encoded = model.encode(examples, length)
    assert encoded.tokens is not None  # checked: a transformer
    return {int(token) for row in encoded.tokens for token in row}
