"""Name or "package.module:Class" -> component, imported by string when it is asked for.

`securefed` knows the outer packages by name only: the rules of `securefed_defenses` are found here
without an import statement, so the core stays importable on its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Mapping
from typing import Any

from securefed.config import Component
from securefed.errors import ConfigError
from securefed.types import Aggregator, Protection

PROTECTIONS: dict[str, str] = {
    "plain": "securefed.protect.plain:Plain",
    "masking": "securefed.protect.masking.protection:Masking",
    "ckks": "securefed.protect.ckks.protection:CKKS",
}
AGGREGATORS: dict[str, str] = {
    "mean": "securefed.aggregation:Mean",
}
ALGORITHMS: dict[str, str] = {
    "fedavg": "securefed.algorithms.fedavg:FedAvg",
}
ENGINES: dict[str, str] = {
    "inprocess": "securefed.engine.inprocess:InProcess",
}
PLAIN: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
OUTER: dict[str, tuple[str, str]] = {
    "aggregator": ("securefed_defenses", "AGGREGATORS"),
}
"""Where a kind of component may also be found: package and the name of its dict."""


def find_class(kind: str, name: str, table: Mapping[str, str]) -> type[Any]:
    """The class behind a name of `table`, of an outer package's dict, or "package.module:Class".

    Raises:
        ConfigError: unknown name (the nearest is named), or a path that cannot be imported.
    """
    if ":" in name:
        return _import(kind, name)
    if name in table:
        return _import(kind, table[name])
    known = set(table)
    if kind in OUTER:
        package, attribute = OUTER[kind]
        try:
            outer: Mapping[str, type[Any]] = getattr(importlib.import_module(package), attribute)
        except ModuleNotFoundError:
            outer = {}
        if name in outer:
            return outer[name]
        known |= set(outer)
    near = difflib.get_close_matches(name, known, 1)
    hint = (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}, or package.module:Class"
    )
    raise ConfigError(f"no {kind} named {name!r}; {hint}")


def _import(kind: str, path: str) -> type[Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import {kind} {path!r}: {error}") from None
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {path!r} is not a class")
    return found


def make(kind: str, component: Component, table: Mapping[str, str]) -> Any:
    """An instance of the component with its options as fields.

    Raises:
        ConfigError: unknown component, unknown option (the nearest is named) or a value it refuses.
    """
    cls = find_class(kind, component.name, table)
    if dataclasses.is_dataclass(cls):
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        for key in component.options:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
                raise ConfigError(f"{kind} {component.name} has no option {key!r}; {hint}")
        _check_types(kind, component, cls)
    try:
        return cls(**component.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {component.name}: {error}") from None


def _check_types(kind: str, component: Component, cls: type[Any]) -> None:
    """A plain field takes a value of its own type; 2 is no text and "2" no number."""
    for key, hint in typing.get_type_hints(cls).items():
        value = component.options.get(key)
        if key not in component.options or hint not in PLAIN:
            continue
        fits = isinstance(value, (int, float) if hint is float else hint)
        if not fits or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(f"{kind} {component.name}: {key} must be {PLAIN[hint]}, found {value!r}")


def make_protection(component: Component) -> Protection:
    """The protection a job names."""
    protection: Protection = make("protection", component, PROTECTIONS)
    return protection


def make_aggregator(component: Component) -> Aggregator:
    """The aggregation rule a job names."""
    rule: Aggregator = make("aggregator", component, AGGREGATORS)
    return rule
