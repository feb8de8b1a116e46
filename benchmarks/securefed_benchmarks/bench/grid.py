"""The cells of a suite: every choice with every other, seeds outermost; those that cannot be are listed."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from securefed.config import Config, load_config, to_tree
from securefed.config.toml import COMPONENTS, toml_value
from securefed.data.shards import check_division
from securefed.errors import ConfigError, SecureFedError
from securefed_benchmarks.bench.axes import Choice, apply
from securefed_benchmarks.bench.measures import check_measure
from securefed_benchmarks.bench.suite import Grid, Suite, nearest

SEEDED = ("seed", "data.seed", "model.seed")
"""What the seed of a cell sets. Cells of one seed share shards, liars and first model: they are paired."""
NOT_IN_KEY = ("name", "output", "tracking", "evaluate", "engine")
"""Fields of the job that change nothing that is measured, but for `evaluate.every`."""


@dataclass(frozen=True)
class Cell:
    """One job of the grid.

    Attributes:
        labels: axis -> the label of its choice. job: the resolved tree of the job. changed: "key=value" over
            the grid's job, seeds included. key: digest of job, measures and labels, without the code's.
    """

    grid: str
    labels: Mapping[str, str | float | int]
    seed: int
    job: Mapping[str, Any] = field(repr=False)
    changed: tuple[str, ...] = field(repr=False)
    measures: tuple[str, ...]
    key: str

    def __str__(self) -> str:
        chosen = ", ".join(f"{k}={v}" for k, v in self.labels.items())
        return f"{self.grid}: {chosen}, seed {self.seed}" if chosen else f"{self.grid}: seed {self.seed}"


@dataclass(frozen=True)
class Skipped:
    """A configuration that cannot be, and why."""

    grid: str
    labels: Mapping[str, str | float | int]
    reason: str


@dataclass(frozen=True)
class Only:
    """A part of a suite: axis -> patterns of its labels, as `defence=mean` or `attack=sign*`.

    Attributes:
        sides: besides, one of these has to take a cell: grid and axis -> a pattern, as claims name theirs.
            None: all cells.
    """

    patterns: Mapping[str, Sequence[str]]
    sides: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def parse(cls, words: Sequence[str], suite: Suite) -> Only:
        """Reads the words of the command line.

        Raises:
            ConfigError: no axis or no label of the suite is meant; the nearest is given.
        """
        found: dict[str, list[str]] = {}
        axes = {"grid": [g.name for g in suite.grids]}
        for grid in suite.grids:
            for axis, choices in grid.axes.items():
                axes.setdefault(axis, []).extend(str(c.label) for c in choices)
        for word in words:
            axis, sign, pattern = word.partition("=")
            if not sign:
                axis, pattern = "grid", word
            if axis not in axes:
                raise ConfigError(f"--only {word}: no axis {axis!r} in {suite.name}; {nearest(axis, axes)}")
            if not any(fnmatch.fnmatchcase(label, pattern) for label in axes[axis]):
                raise ConfigError(
                    f"--only {word}: no {axis} of {suite.name} is {pattern!r}; {nearest(pattern, set(axes[axis]))}"
                )
            found.setdefault(axis, []).append(pattern)
        return cls(found)

    def combinations(self, grid: Grid, axes: Mapping[str, list[Choice]]) -> Iterator[tuple[Choice, ...]]:
        """The choices of each configuration of a grid that belongs to the part, without making one."""
        if self.sides is None:
            yield from itertools.product(*axes.values())
            return
        found: dict[tuple[str, ...], tuple[Choice, ...]] = {}
        for side in self.sides:
            if not fnmatch.fnmatchcase(grid.name, str(side.get("grid", "*"))):
                continue
            left = [
                [c for c in choices if fnmatch.fnmatchcase(str(c.label), str(side.get(axis, "*")))]
                for axis, choices in axes.items()
            ]
            for one in itertools.product(*left):
                found.setdefault(tuple(str(c.label) for c in one), one)
        yield from found.values()

    def reduced(self, suite: Suite) -> Iterator[tuple[Grid, dict[str, list[Choice]]]]:
        """Each grid with the choices that are left."""
        for grid in suite.grids:
            left = {
                axis: [c for c in choices if self._keeps(axis, str(c.label))]
                for axis, choices in grid.axes.items()
            }
            if self._keeps("grid", grid.name) and all(a in (*grid.axes, "grid") for a in self.patterns):
                yield grid, left

    def _keeps(self, axis: str, label: str) -> bool:
        return axis not in self.patterns or any(fnmatch.fnmatchcase(label, p) for p in self.patterns[axis])


def sizes(suite: Suite, only: Only) -> Iterator[tuple[Grid, int]]:
    """Each grid with how many cells it would have, impossible ones included, without making one."""
    for grid, axes in only.reduced(suite):
        all_of_them = math.prod(len(choices) for choices in axes.values())
        kept = all_of_them if only.sides is None else sum(1 for _ in only.combinations(grid, axes))
        yield grid, len(grid.seeds) * kept


def count(suite: Suite, only: Only) -> int:
    """How many cells there would be in all grids."""
    return sum(cells for _, cells in sizes(suite, only))


def expand(suite: Suite, only: Only) -> tuple[list[Cell], list[Skipped]]:
    """All cells, seeds outermost, so that a stopped bench has whole tables of fewer seeds; and what is left out."""
    found: list[tuple[Grid, dict[str, Choice], dict[str, Any]]] = []
    skipped: list[Skipped] = []
    for grid, axes in only.reduced(suite):
        played: dict[str, dict[str, str | float | int]] = {}
        for combination in only.combinations(grid, axes):
            chosen = dict(zip(axes, combination, strict=True))
            labels = {axis: one.label for axis, one in chosen.items()}
            try:
                tree = _resolve(grid, chosen)
            except SecureFedError as error:
                skipped.append(Skipped(grid.name, labels, str(error)))
                continue
            first = played.setdefault(json.dumps(tree, sort_keys=True), labels)
            if first is labels:
                found.append((grid, chosen, tree))
            else:
                skipped.append(Skipped(grid.name, labels, _same_as(first, labels)))
    seeds = sorted({seed for grid in suite.grids for seed in grid.seeds})
    bases = {grid.name: to_tree(load_config(grid.job)) for grid in suite.grids}
    cells = [
        _cell(grid, chosen, tree, seed, bases[grid.name])
        for seed in seeds
        for grid, chosen, tree in found
        if seed in grid.seeds
    ]
    return cells, skipped


def _same_as(first: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """As where nobody lies, whatever the attack would be."""
    other = ", ".join(f"{axis}={label}" for axis, label in first.items() if labels[axis] != label)
    return f"the same job as with {other}, which is played"


def _resolve(grid: Grid, chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """The checked tree of a configuration.

    Raises:
        SecureFedError: the job, or one of its measures, cannot be.
    """
    tree = apply(grid.job, chosen)
    tree["tracking"] = {**tree.get("tracking", {}), "report": False}
    config = load_config(tree)
    check_division(config.data)
    for measure in grid.measures:
        check_measure(measure, config)
    return to_tree(config)


def _cell(
    grid: Grid, chosen: Mapping[str, Choice], tree: Mapping[str, Any], seed: int, base: Mapping[str, Any]
) -> Cell:
    job = json.loads(json.dumps(tree))
    for dotted in SEEDED:
        table, _, field_ = dotted.rpartition(".")
        (job[table] if table else job)[field_] = seed
    labels = {axis: one.label for axis, one in chosen.items()}
    return Cell(
        grid.name,
        labels,
        seed,
        job,
        tuple(changes(base, job)),
        grid.measures,
        _key(grid.name, labels, job, grid.measures),
    )


def _key(grid: str, labels: Mapping[str, Any], job: Mapping[str, Any], measures: Sequence[str]) -> str:
    bare = {k: v for k, v in job.items() if k not in NOT_IN_KEY}
    told = [grid, labels, bare, job["evaluate"]["every"], list(measures)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]


def changes(base: Mapping[str, Any], job: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What an override of the command line must say to turn one job into the other."""
    for key, value in job.items():
        old, dotted = base.get(key), f"{where}{key}"
        if old == value or dotted in ("tracking", "name"):
            continue
        if not isinstance(value, Mapping) or not isinstance(old, Mapping) or key in (*COMPONENTS, "options"):
            yield f"{dotted}={_inline(value)}"
        elif old.keys() <= value.keys():
            yield from changes(old, value, f"{dotted}.")
        else:  # an optional field that is set no longer cannot be said by itself
            usual = to_tree(Config()).get(key, {})
            yield f"{dotted}={_inline({k: v for k, v in value.items() if usual.get(k) != v or k == 'unit'})}"


def _inline(value: Any) -> str:
    """The value in TOML, on one line, a plain word without quotes."""
    return value if isinstance(value, str) and value.isidentifier() else toml_value(value)
