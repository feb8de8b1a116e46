"""Which rows a report speaks of: failures of a suite that was repaired are none of it; and by which code they were played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from securefed.config import load_config, to_tree
from securefed.errors import SecureFedError
from securefed_benchmarks.bench.results import fields_of
from securefed_benchmarks.bench.store import Row


def of_the_suite(rows: Sequence[Row], suites: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows without failures of configurations or jobs that their suite no longer has: a repaired mistake is not missing.

    Args:
        suites: name -> its newest facts.
    """
    grids = {(name, str(g["name"])): g for name, facts in suites.items() for g in facts["grids"]}
    bases = {place: _base(grid["job"]) for place, grid in grids.items()}

    def kept(row: Row) -> bool:
        place = (row.suite, row.grid)
        if row.state == "done" or row.suite not in suites:
            return True
        return place in grids and _asked(row, grids[place]["axes"]) and _over(row, bases[place])

    return [row for row in rows if kept(row)]


def _base(job: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a grid's job; none where this version cannot read it."""
    try:
        return dict(fields_of(to_tree(load_config(job))))
    except SecureFedError:
        return {}


def _asked(row: Row, axes: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the grid still has each of the row's choices, and no other axis."""
    return row.labels.keys() == axes.keys() and all(
        str(label) in map(str, axes[axis]) for axis, label in row.labels.items()
    )


def _over(row: Row, base: Mapping[str, Any]) -> bool:
    """Whether the row's job is the grid's with the row's own changes."""
    changed = [one.partition("=")[0] for one in row.changed]
    return all(
        base.get(name, value) == value or any(f"{name}.".startswith(f"{c}.") for c in changed)
        for name, value in fields_of(row.job)
    )


def mixed_codes(rows: Sequence[Row]) -> list[str]:
    """The versions of the code that are mixed: of the project anywhere, of one's own parts within one configuration.

    Cells that name parts of one's own have those in their version; beside cells that name others they are one version.
    """
    bases = dict.fromkeys(row.code.partition("+")[0] for row in rows)
    own: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        place = (row.suite, row.grid, repr(sorted(row.labels.items())))
        own.setdefault(place, {}).setdefault(row.code.partition("+")[2], row.code)
    mixed = [code for codes in own.values() if len(codes) > 1 for code in codes.values()]
    return list(dict.fromkeys([*(bases if len(bases) > 1 else ()), *mixed]))
