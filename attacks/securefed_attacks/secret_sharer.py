"""Canary exposure of language models: has a secret of known format been memorized, and by how many bits?

Carlini, Liu, Erlingsson, Kos and Song 2019, "The Secret Sharer" (arXiv 1802.08232), section 4. Secrets of one format are
drawn at random; some are put among the training records, and afterwards their loss is ranked among those of the
others, which the model has never seen. Adversary: asks the trained model for the loss of texts of its choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from securefed_attacks.statistics import exposure

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

Floats = NDArray[np.float64]
MOST_SKEW = 0.99
"""A skew-normal distribution reaches 0.9953; a sample beyond that is fitted as if it were here."""


@dataclass(frozen=True, slots=True)
class SecretFormat:
    """Texts that differ in a random part only.

    Attributes:
        text: with one "{}" where the secret goes. symbols: what a secret is made of, each chosen alike.
        length: symbols of a secret. separator: between them.
    """

    text: str = "the code of the safe is {}"
    symbols: tuple[str, ...] = tuple("0123456789")
    length: int = 6
    separator: str = " "

    def __post_init__(self) -> None:
        if self.text.count("{}") != 1 or self.length < 1 or len(set(self.symbols)) < 2:
            raise ValueError(
                f"a format needs one {{}} in its text, two symbols and a length of 1 or more, got {self}"
            )

    @property
    def bits(self) -> float:
        """log2 of how many secrets there are: the most that exposure can be."""
        return self.length * math.log2(len(set(self.symbols)))

    def draw(self, n: int, generator: np.random.Generator) -> tuple[str, ...]:
        """n different texts, uniformly without replacement.

        Raises:
            ValueError: more than half of all there are.
        """
        symbols = sorted(set(self.symbols))
        if n > 2 ** (self.bits - 1):
            raise ValueError(
                f"{n} different secrets are more than half of the {len(symbols)}^{self.length} there are; make them longer"
            )
        found: dict[str, None] = {}
        while len(found) < n:
            picks = generator.integers(0, len(symbols), self.length)
            found[self.text.format(self.separator.join(symbols[i] for i in picks))] = None
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much likelier a model finds one secret than chance does.

    Attributes:
        bits: by its rank among the references, at most `most` = log2(references + 1) (section 4.3).
        fitted: by a skew-normal fitted to the references' losses, which reaches beyond `most`; an extrapolation.
        chance: probability of so good a rank for a secret that was never seen.
    """

    bits: float
    fitted: float
    most: float
    chance: float


def text_losses(model: TaskModel, texts: Sequence[str], max_length: int = 64, batch: int = 32) -> Floats:
    """The log-perplexity of each text, nats over all of its predicted tokens, float64 (n,); in evaluation mode.

    Raises:
        ValueError: not a language model.
    """
    import torch

    from securefed.data.batch import collate
    from securefed.data.records import Examples

    if model.task == "classification":
        raise ValueError("exposure is of language models; this one classifies")
    encoded = model.encode(Examples(texts=tuple(texts)), max_length)
    training, found = model.module.training, []
    model.module.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(encoded), batch):
                one = collate(encoded, np.arange(start, min(start + batch, len(encoded))))
                found.append((model.losses(one).double() * model.counts(one)).cpu().numpy())
    finally:
        model.module.train(training)
    return np.concatenate(found) if found else np.empty(0)


def exposures(secrets: ArrayLike, references: ArrayLike) -> tuple[Exposure, ...]:
    """The exposure of each secret that was trained on.

    Args:
        secrets: (k,) losses of what was trained on. references: (n,) losses of secrets of the same format, drawn
            alike, that were not.

    Raises:
        ValueError: losses that are not finite, or fewer than 8 references.

    >>> exposures([0.5], [1.0, 2.0, 3.0, 2.0, 1.5, 2.5, 2.2])  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: exposure needs finite losses of at least 8 references, found 7
    """
    trained, others = np.asarray(secrets, np.float64).ravel(), np.asarray(references, np.float64).ravel()
    if others.size < 8 or not (np.isfinite(others).all() and np.isfinite(trained).all()):
        raise ValueError(f"exposure needs finite losses of at least 8 references, found {others.size}")
    fitted = _skew_normal(others)
    return tuple(
        Exposure(
            bits=exposure(float(loss), others),
            fitted=float(-fitted.logcdf(loss) / math.log(2)),
            most=math.log2(others.size + 1),
            chance=(1 + int((others <= loss).sum())) / (others.size + 1),
        )
        for loss in trained
    )


def _skew_normal(sample: Floats) -> stats.rv_continuous:
    """The skew-normal of the sample's mean, deviation and skewness (Azzalini 1985)."""
    skew = float(np.clip(stats.skew(sample), -MOST_SKEW, MOST_SKEW))
    part = abs(skew) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * part / (part + ((4 - math.pi) / 2) ** (2 / 3))), skew)
    scale = max(float(sample.std(ddof=1)), 1e-12) / math.sqrt(1 - 2 * delta**2 / math.pi)
    location = float(sample.mean()) - scale * delta * math.sqrt(2 / math.pi)
    return stats.skewnorm(delta / math.sqrt(1 - delta**2), location, scale)
