"""A suite file: a job, and the grids over it. Each mistake is one line that names the way out."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securefed.config import load_config, to_tree
from securefed.errors import ConfigError
from securefed_benchmarks.bench.axes import AXES, Choice, choice
from securefed_benchmarks.bench.measures import make_measure

HERE = Path(__file__).resolve()
SHIPPED = next(
    (
        f
        for f in (HERE.parents[1] / "suites", HERE.parents[2] / "suites")
        if (f / "quick" / "suite.toml").is_file()
    ),
    HERE.parents[1] / "suites",
)
"""Where the suites lie that come with the project: in the package in a wheel, beside it in a checkout."""

TOP = ("name", "about", "seeds", "job", "attacks", "defences", "grid", "timeout_s", "threads")
GRID = ("name", "about", "seeds", "job", "measure", "seconds", "vary", *AXES)


@dataclass(frozen=True)
class Grid:
    """One table of results: choices on each axis, over one job.

    Attributes:
        job: the tree of the job that all cells share. axes: axis -> its choices, in the order in which they
            are applied; a field of the job in `vary` is an axis of its own.
        measures: what is measured beside the run's own scores. seconds: CPU seconds a cell, as estimated.
    """

    name: str
    about: str
    job: Mapping[str, Any] = field(repr=False)
    axes: Mapping[str, Sequence[Choice]]
    seeds: tuple[int, ...]
    measures: tuple[str, ...]
    seconds: float | None

    @property
    def configurations(self) -> int:
        """Cells of one seed."""
        found = 1
        for choices in self.axes.values():
            found *= len(choices)
        return found

    @property
    def cells(self) -> int:
        """All cells, impossible ones included."""
        return self.configurations * len(self.seeds)


@dataclass(frozen=True)
class Suite:
    """What a suite file asks for.

    Attributes:
        folder: where the file is, in which `claims.toml` may lie beside it. timeout_s: after so many seconds
            a cell is given up. threads: of each worker.
    """

    name: str
    about: str
    grids: tuple[Grid, ...]
    path: Path
    timeout_s: float
    threads: int

    @property
    def cells(self) -> int:
        """All cells, impossible ones included."""
        return sum(grid.cells for grid in self.grids)


def find_suite(name: str) -> Path:
    """The file that is meant: a file, a folder with a suite.toml, or the name of a suite that ships.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    path = Path(name)
    if path.is_file():
        return path
    for folder in (path, SHIPPED / name):
        if (folder / "suite.toml").is_file():
            return folder / "suite.toml"
    known = sorted(p.parent.name for p in SHIPPED.glob("*/suite.toml"))
    raise ConfigError(f"no suite {name!r}; {nearest(name, known)}, or give a suite.toml")


def load_suite(source: str | Path, seeds: Sequence[int] | None = None) -> Suite:
    """Reads and checks a suite; its cells are not multiplied out.

    Args:
        seeds: in place of those of the file.

    Raises:
        ConfigError: no such suite, no TOML, an unknown key or name (the nearest is given), or a job that
            could not run whatever the axes add.
    """
    path = find_suite(str(source))
    tree = _read(path)
    refuse_unknown(tree, TOP, str(path))
    grids = tree.get("grid")
    if not isinstance(grids, list) or not grids:
        raise ConfigError(f"{path} has no [[grid]]; a suite has at least one")
    found = tuple(_grid(tree, g, k, path, seeds) for k, g in enumerate(grids))
    if len({g.name for g in found}) != len(found):
        raise ConfigError(f"{path}: two grids have one name; give each [[grid]] its own")
    name = tree.get("name", path.parent.name if path.name == "suite.toml" else path.stem)
    timeout, threads = tree.get("timeout_s", 3600), tree.get("threads", 1)
    if not isinstance(timeout, int | float) or timeout <= 0:
        raise ConfigError(f"{path}: timeout_s is seconds above 0, found {timeout!r}")
    if not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"{path}: threads is 1 or more, found {threads!r}")
    return Suite(str(name), str(tree.get("about", "")), found, path, float(timeout), threads)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not known."""
    listed = list(known)
    near = difflib.get_close_matches(word, listed, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(listed)) or 'none'}"


def refuse_unknown(tree: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises ConfigError naming the nearest known key where one is unknown."""
    for key in tree:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, known)}")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The base with tables of `over` laid over its own; a component by name is replaced whole."""
    found = dict(base)
    for key, value in over.items():
        old = found.get(key)
        whole = isinstance(value, Mapping) and "name" in value and key not in ("data", "model")
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and not whole
        found[key] = merged(old, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _grid(top: Mapping[str, Any], tree: Any, number: int, path: Path, seeds: Sequence[int] | None) -> Grid:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: write [[grid]], a list of tables")
    name = str(tree.get("name", f"grid {number + 1}"))
    where = f"{path}, grid {name!r}"
    refuse_unknown(tree, GRID, where)
    job = _job(top, tree, where, path)
    named = {"attack": top.get("attacks", {}), "defence": top.get("defences", {})}
    axes = {
        axis: _choices(axis, tree[axis], named.get(axis, {}), job, where) for axis in AXES if axis in tree
    }
    for dotted, values in _table(tree, "vary", where).items():
        axes[dotted] = _choices(dotted, values, {}, job, where)
    measures = _measures(tree.get("measure", []), where)
    own = list(seeds) if seeds is not None else seed_list(tree.get("seeds", top.get("seeds", 5)), where)
    seconds = tree.get("seconds")
    return Grid(name, str(tree.get("about", "")), job, axes, tuple(own), measures, seconds)


def _job(top: Mapping[str, Any], tree: Mapping[str, Any], where: str, path: Path) -> dict[str, Any]:
    base = top.get("job", {})
    if isinstance(base, str):
        base = to_tree(load_config(path.parent / base))
    job = merged(base, _table(tree, "job", where))
    try:
        config = load_config(job)
    except ConfigError as error:
        raise ConfigError(f"{where}: the job by itself cannot run: {error}") from None
    if config.engine.workers:
        raise ConfigError(f"{where}: cells are played side by side; leave engine.workers at 0 and say --jobs")
    return job


def _measures(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: measure is a list of names, found {names!r}")
    try:
        for name in names:
            make_measure(name)
    except ConfigError as error:
        raise ConfigError(f"{where}, measure: {error}") from None
    return tuple(names)


def _table(tree: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = tree.get(key, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: {key} is a table, found {found!r}")
    return found


def _choices(
    axis: str, values: Any, named: Mapping[str, Any], job: Mapping[str, Any], where: str
) -> list[Choice]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: {axis} is a list of at least one choice, found {values!r}")
    try:
        found = [choice(axis, value, named, job) for value in values]
    except ConfigError as error:
        raise ConfigError(f"{where}, {axis}: {error}") from None
    labels = [one.label for one in found]
    if len(set(labels)) != len(labels):
        double = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"{where}: two choices of {axis} are called {double!r}; give one a label")
    return found


def seed_list(value: Any, where: str) -> list[int]:
    """Seeds from a count, a list, or text as "0,1,2", "0-4" and "5" (a count).

    Raises:
        ConfigError: none, a negative one, or one twice.
    """
    try:
        found = _seeds(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{where}: seeds are a count, a list or a range as 0-4, found {value!r}") from None
    if not found or min(found) < 0 or len(set(found)) != len(found):
        raise ConfigError(f"{where}: seeds are different whole numbers from 0 on, found {value!r}")
    return found


def _seeds(value: Any) -> list[int]:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int):
        return list(range(value))
    if isinstance(value, str):
        if value.strip().isdigit():
            return list(range(int(value)))
        parts = [part.strip().partition("-") for part in value.split(",") if part.strip()]
        return [k for low, dash, high in parts for k in range(int(low), int(high if dash else low) + 1)]
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in value):
        raise TypeError
    return list(value)
