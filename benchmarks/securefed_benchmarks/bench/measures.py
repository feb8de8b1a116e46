"""What is measured of a finished run beside its own scores: a name, or "package.module:Class".

A measure is a class. Made without arguments, `check(config)` refuses a job that it cannot measure and
`measure(played)` gives scores and curves. The place for another family is a line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from securefed.config import Component, Config
from securefed.registry import make

if TYPE_CHECKING:
    from securefed.assembly import Assembly
    from securefed.data.records import Examples
    from securefed.types import Vector

MEASURES: dict[str, str] = {
    "loss": "securefed_benchmarks.bench.membership:LossThreshold",
    "gain": "securefed_benchmarks.bench.membership:LossGain",
    "lira": "securefed_benchmarks.bench.membership:Lira",
    "linear": "securefed_benchmarks.bench.reconstruction:Linear",
    "imprint": "securefed_benchmarks.bench.reconstruction:ImprintLayer",
    "inversion": "securefed_benchmarks.bench.reconstruction:Inversion",
    "span": "securefed_benchmarks.bench.reconstruction:SpanTokens",
}
"""Name -> membership attack on the final model, or reconstruction from one round."""


@dataclass(frozen=True, eq=False)
class Played:
    """A finished run as a measure sees it.

    Attributes:
        assembly: its parts; the model holds the final values. first: the values before the first round (d,).
        members: honest clients' training records. others: of the same source, trained on by nobody; empty
            unless the job keeps some out by `data.limit`.
    """

    config: Config
    assembly: Assembly
    first: Vector = field(repr=False)
    members: Examples
    others: Examples


@dataclass(frozen=True)
class Measured:
    """Scores by name, and curves: name -> points (x, y)."""

    scores: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


class Measure(Protocol):
    """Anything that judges a finished run."""

    def check(self, config: Config) -> None: ...

    def measure(self, played: Played) -> Measured: ...


def make_measure(name: str) -> Measure:
    """The measure of this name.

    Raises:
        ConfigError: nobody knows it; the nearest is given.
    """
    found: Any = make("measure", Component(name), MEASURES)
    return found  # type: ignore[no-any-return]  # by its protocol


def check_measure(name: str, config: Config) -> None:
    """Raises ConfigError where the measure is unknown or cannot judge such a job."""
    make_measure(name).check(config)
