"""What a teacher is, and what its answers mean: text, a label, or top-k probabilities; anything else is garbage."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Answered = NDArray[np.float32]
"""One probability a class, float32 (k,), summing to one."""

_SLACK = 1e-3
"""By how much rounded probabilities may exceed one together."""


@dataclass(frozen=True)
class Teacher:
    """A callable that answers on one text.

    Attributes:
        name: by which a site's policy allows it, and under which its answers are kept; change it when the model changes.
        ask: text -> text that names one class, a class's number, or class name -> probability (the top ones suffice).
        leaves_site: whether the text leaves this site to be answered; False only for a model that runs here.
        cost: of one call, in whatever the budget counts; failed calls cost too.
    """

    name: str
    ask: Callable[[str], object] = field(repr=False)
    leaves_site: bool = True
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or not (math.isfinite(self.cost) and self.cost >= 0):
            raise ValueError(
                f"a teacher needs a name and a cost of 0 or more, found {self.name!r}, {self.cost!r}"
            )


def read_answer(raw: object, classes: Sequence[str]) -> Answered | None:
    """The answer as probabilities over `classes`; None where it is garbage.

    - Text counts if it names exactly one class, as a whole word in any case ("Positive." names positive; "not positive but
      negative" names two). - A whole number counts if it is a class's.
    - Probabilities by name count if each is in [0, 1], none is of an unknown class, and they sum to at most one; what is
      left of one is shared equally by classes that are not named (by all, where all are).
    """
    k = len(classes)
    if isinstance(raw, str):
        return _named(raw, classes)
    if isinstance(raw, int | np.integer) and not isinstance(raw, bool):
        return _certain(int(raw), k) if 0 <= raw < k else None
    if isinstance(raw, Mapping):
        return _spread(raw, classes)
    return None


def _named(text: str, classes: Sequence[str]) -> Answered | None:
    low = text.casefold()
    found = [
        i for i, name in enumerate(classes) if re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", low)
    ]
    return _certain(found[0], len(classes)) if len(found) == 1 else None


def _certain(label: int, k: int) -> Answered:
    found: Answered = np.zeros(k, np.float32)
    found[label] = 1.0
    return found


def _spread(raw: Mapping[object, object], classes: Sequence[str]) -> Answered | None:
    place = {name.casefold(): i for i, name in enumerate(classes)}
    found = np.zeros(len(classes))
    told = np.zeros(len(classes), bool)
    for name, value in raw.items():
        i = place.get(name.strip().casefold()) if isinstance(name, str) else None
        number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        if i is None or told[i] or not number or not 0 <= float(value) <= 1 + _SLACK:  # type: ignore[arg-type]  # a number by now
            return None
        found[i], told[i] = float(value), True  # type: ignore[arg-type]  # as above
    total = float(found.sum())
    if not told.any() or not 0 < total <= 1 + _SLACK * len(classes):
        return None
    rest = ~told if not told.all() else told
    found[rest] += max(0.0, 1 - total) / rest.sum()
    answer: Answered = (found / found.sum()).astype(np.float32)
    return answer
