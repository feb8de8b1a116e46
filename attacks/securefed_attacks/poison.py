"""Data poisoning: a liar trains honestly on records that it has changed.

The adversary owns its shard and nothing else. `label_flip` spoils the model; `badnets` plants a backdoor: the
model behaves on clean records and gives `target` wherever the trigger is. With the attack `boost` behind it, a
poisoned update replaces the model (Bagdasaryan et al., AISTATS 2020).

Records never change in place: a poison returns new `Examples`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from securefed.data.records import Examples
from securefed_attacks.base import Knowledge


@dataclass(frozen=True)
class Poison(ABC):
    """A change of a liar's own records. Its fields are its strength."""

    name: ClassVar[str]
    knowledge: ClassVar[Knowledge] = "own data"
    colluding: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, examples: Examples, classes: int, generator: np.random.Generator) -> Examples:
        """The records that the liar trains on instead: as many, in the same order.

        Raises:
            ValueError: records without labels, or labels or fields that do not fit `classes`.
        """

    def triggered(self, examples: Examples, classes: int) -> Examples | None:
        """Test records on which the attack has succeeded where the model says their (new) label.

        None where success is only that the model gets worse.
        """
        return None

    def labels(self, examples: Examples, classes: int) -> NDArray[np.int64]:
        """The labels, checked.

        Raises:
            ValueError: there are none, or one is outside [0, classes).
        """
        found = examples.labels
        if found is None:
            raise ValueError(
                f"{self.name}: changes labels, and these records have none; use a classification task"
            )
        if len(found) and not (found.min() >= 0 and found.max() < classes):
            raise ValueError(
                f"{self.name}: labels must be in [0, {classes}), found {found.min()} to {found.max()}"
            )
        return found


@dataclass(frozen=True)
class LabelFlip(Poison):
    """Static label flip: every label y becomes classes - 1 - y, or `target` where it is `source`.

    Attributes:
        source, target: None flips all; both given flip one class only.

    Source: Tolpegin, Truex, Gursoy and Liu, "Data poisoning attacks against federated learning systems",
    ESORICS 2020 (arXiv 2007.08432), section 3 (one class); Fang et al., USENIX Security 2020 (all).
    """

    source: int | None = None
    target: int | None = None
    name: ClassVar[str] = "label_flip"

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None):
            raise ValueError(
                f"label_flip: give source and target, or neither; found source={self.source}, target={self.target}"
            )
        if self.source is not None and self.source == self.target:
            raise ValueError(
                f"label_flip: source and target are the same class {self.source}; nothing would change"
            )

    def __call__(self, examples: Examples, classes: int, generator: np.random.Generator) -> Examples:
        labels = self.labels(examples, classes)
        if self.source is None or self.target is None:
            flipped = classes - 1 - labels
        else:
            _require_class(self.name, "source", self.source, classes)
            _require_class(self.name, "target", self.target, classes)
            flipped = np.where(labels == self.source, self.target, labels)
        return dataclasses.replace(examples, labels=flipped.astype(np.int64))


@dataclass(frozen=True)
class BadNets(Poison):
    """A pixel patch (images) or a trigger word (texts), and the label `target` with it.

    Attributes:
        target: the label that the trigger shall mean.
        fraction: share of the liar's records that get trigger and target, in (0, 1].
        size: side of the square patch in pixels, in the lower right corner. value: its brightness in [0, 1].
        word: put before the text of a record.

    Sources: Gu, Dolan-Gavitt and Garg, "BadNets: identifying vulnerabilities in the machine learning model
    supply chain", 2017 (arXiv 1708.06733), section 4 (patch); Kurita, Michel and Neubig, "Weight poisoning
    attacks on pre-trained models", ACL 2020 (arXiv 2004.06660), section 3 (rare words such as "cf").
    """

    target: int = 0
    fraction: float = 0.5
    size: int = 4
    value: float = 1.0
    word: str = "cf"
    name: ClassVar[str] = "badnets"

    def __post_init__(self) -> None:
        if self.target < 0:
            raise ValueError(f"badnets: target is a label >= 0, found {self.target}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"badnets: fraction must be in (0, 1], found {self.fraction}")
        if self.size < 1 or not 0 <= self.value <= 1:
            raise ValueError(
                f"badnets: size must be at least 1 and value in [0, 1], found size={self.size}, value={self.value}"
            )
        if not self.word.strip():
            raise ValueError("badnets: word must not be empty")

    def __call__(self, examples: Examples, classes: int, generator: np.random.Generator) -> Examples:
        labels = self.labels(examples, classes)
        _require_class(self.name, "target", self.target, classes)
        count = max(1, round(self.fraction * len(labels))) if len(labels) else 0
        chosen = np.sort(generator.permutation(len(labels))[:count])
        changed = labels.copy()
        changed[chosen] = self.target
        return dataclasses.replace(self.stamp(examples, chosen), labels=changed)

    def triggered(self, examples: Examples, classes: int) -> Examples | None:
        labels = self.labels(examples, classes)
        others = examples.take(np.flatnonzero(labels != self.target))
        stamped = self.stamp(others, np.arange(len(others)))
        return dataclasses.replace(stamped, labels=np.full(len(others), self.target, np.int64))

    def stamp(self, examples: Examples, rows: NDArray[np.int64]) -> Examples:
        """The same records, with the trigger on these."""
        if examples.images is not None:
            side = min(examples.images.shape[-2:])
            if self.size > side:
                raise ValueError(
                    f"badnets: a patch of size={self.size} does not fit images of side {side}; lower size"
                )
            images = examples.images.copy()
            images[rows, :, -self.size :, -self.size :] = self.value
            return dataclasses.replace(examples, images=images)
        assert examples.texts is not None
        marked = set(rows.tolist())
        texts = tuple(f"{self.word} {t}" if i in marked else t for i, t in enumerate(examples.texts))
        return dataclasses.replace(examples, texts=texts)


def _require_class(name: str, field: str, value: int, classes: int) -> None:
    if not 0 <= value < classes:
        raise ValueError(f"{name}: {field} must be in [0, {classes}), found {value}")
