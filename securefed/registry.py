"""Name or "package.module:Class" -> component, imported by string when it is asked for.

`securefed` knows the outer packages by name only: the rules of `securefed_defenses` are found here
without an import statement, so the core stays importable on its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from securefed.config import AttackConfig, Component
from securefed.errors import ConfigError
from securefed.types import Aggregator, Protection

PROTECTIONS: dict[str, str] = {
    "plain": "securefed.protect.plain:Plain",
    "masking": "securefed.protect.masking.protection:Masking",
    "grouped": "securefed.protect.grouped:Grouped",
    "ckks": "securefed.protect.ckks.protection:CKKS",
}
AGGREGATORS: dict[str, str] = {
    "mean": "securefed.aggregation:Mean",
}
ALGORITHMS: dict[str, str] = {
    "ditto": "securefed.algorithms.ditto:Ditto",
    "fedavg": "securefed.algorithms.fedavg:FedAvg",
    "fedbuff": "securefed.algorithms.fedbuff:FedBuff",
    "fedper": "securefed.algorithms.fedper:FedPer",
    "fedprox": "securefed.algorithms.fedprox:FedProx",
    "fedrep": "securefed.algorithms.fedrep:FedRep",
    "fedsgd": "securefed.algorithms.fedsgd:FedSGD",
    "hetlora": "securefed.algorithms.hetlora:HetLoRA",
    "slices": "securefed.algorithms.hetlora:Slices",
    "flexlora": "securefed.algorithms.flexlora:FlexLoRA",
    "flora": "securefed.algorithms.flora:FLoRA",
    "fedex": "securefed.algorithms.flora:FedEx",
    "finetune": "securefed.algorithms.finetune:FineTune",
    "distill": "securefed.algorithms.distill:Distill",
}
COMPRESSIONS: dict[str, str] = {
    "random_k": "securefed.compression.random_k:RandomK",
    "count_sketch": "securefed.compression.count_sketch:CountSketch",
    "low_rank": "securefed.compression.low_rank:LowRank",
    "top_k": "securefed.compression.top_k:TopK",
    "quantized": "securefed.compression.quantized:Quantized",
}
ENGINES: dict[str, str] = {
    "inprocess": "securefed.engine.inprocess:InProcess",
}
PLAIN: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
PRE_AGGREGATORS: dict[str, str] = {}
OUTER: dict[str, tuple[str, str]] = {
    "aggregator": ("securefed_defenses", "AGGREGATORS"),
    "pre_aggregator": ("securefed_defenses", "PRE_AGGREGATORS"),
    "attack": ("securefed_attacks", "BYZANTINE"),
    "poison": ("securefed_attacks", "POISONS"),
    "membership": ("securefed_attacks", "MEMBERSHIP"),
}
"""Where a kind of component may also be found: package and the name of its dict."""


TABLES: dict[str, dict[str, str]] = {
    "aggregator": AGGREGATORS,
    "pre_aggregator": PRE_AGGREGATORS,
    "attack": {},
}
"""Kinds of components that may be parts of others."""


def is_path(name: str) -> bool:
    """Whether a name is "package.module:Class", a class of somebody's own."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None and not name.startswith("hub:")


def load(path: str) -> Any:
    """What "package.module:name" of an outer package is: the core knows those by name only.

    Raises:
        ConfigError: that package is not installed.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{module} is not installed ({error.name}); install the whole wheel") from None


def algorithm_name(given: str) -> str:
    """The short name of an algorithm, however the job names it; that of a class of somebody's own as it is."""
    return next((name for name, path in ALGORITHMS.items() if path == given), given)


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
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot import {kind} {path!r}: {error}{_looked(module_name, error)}") from None
    try:
        found = getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches(attribute, public, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"cannot import {kind} {path!r}: module {module_name!r} has no attribute {attribute!r}{hint}"
        ) from None
    if not isinstance(found, type):
        raise ConfigError(f"{kind} {path!r} is not a class")
    return found


def _looked(module: str, error: Exception) -> str:
    """Where a module was looked for that is not there; nothing where it is, and imports one that is not."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if not missing or not f"{module}.".startswith(f"{missing}."):
        return ""
    return (
        "; looked for among what is installed, on PYTHONPATH, beside the suite (securefed bench), beside the script or in the "
        "current folder (python)"
    )


def check_options(kind: str, component: Component, table: Mapping[str, str]) -> None:
    """Refuses options that the component, or one named as its part, does not have; values are not looked at.

    Raises:
        ConfigError: unknown component or option; the nearest is named.
    """
    cls = find_class(kind, component.name, table)
    _check_names(kind, component, cls)
    for key, part in getattr(cls, "parts", {}).items():
        value = component.options.get(key, ())
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                rest = {k: v for k, v in one.items() if k != "name"}
                check_options(part, Component(one["name"], rest), TABLES[part])


def _check_names(kind: str, component: Component, cls: type[Any]) -> None:
    if not dataclasses.is_dataclass(cls):
        return
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in component.options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise ConfigError(f"{kind} {component.name} has no option {key!r}; {hint}")


def make(kind: str, component: Component, table: Mapping[str, str]) -> Any:
    """An instance of the component with its options as fields.

    Raises:
        ConfigError: unknown component, unknown option (the nearest is named) or a value it refuses.
    """
    cls = find_class(kind, component.name, table)
    _check_names(kind, component, cls)
    if dataclasses.is_dataclass(cls):
        _check_types(kind, component, cls)
    try:
        return cls(**_with_parts(cls, component.options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} {component.name}: {error}") from None


def _check_types(kind: str, component: Component, cls: type[Any]) -> None:
    """A plain field takes a value of its own type; 2 is no text and "2" no number."""
    if not component.options:
        return  # a round may make its algorithm anew, and to resolve annotations takes half a millisecond
    for key, hint in typing.get_type_hints(cls).items():
        value = component.options.get(key)
        if key not in component.options or hint not in PLAIN:
            continue
        fits = isinstance(value, (int, float) if hint is float else hint)
        if not fits or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(f"{kind} {component.name}: {key} must be {PLAIN[hint]}, found {value!r}")


def _with_parts(cls: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those that name parts of a component (`cls.parts`: field -> kind) built."""
    parts: Mapping[str, str] = getattr(cls, "parts", {})
    return {key: _part(parts[key], value) if key in parts else value for key, value in options.items()}


def _part(kind: str, value: Any) -> Any:
    if isinstance(value, str):
        return make(kind, Component(value), TABLES[kind])
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise ConfigError(
                f'{kind} is a name or a table with a name, found {dict(value)!r}; add name = "..."'
            )
        options = {k: v for k, v in value.items() if k != "name"}
        return make(kind, Component(value["name"], options), TABLES[kind])
    if isinstance(value, list | tuple):
        return tuple(_part(kind, one) for one in value)
    return value  # built already, in Python


def _require(kind: str, name: str, made: Any, wanted: Sequence[str], base: str) -> None:
    """Raises ConfigError where a class of one's own lacks what a job reads from it."""
    if missing := [one for one in wanted if not hasattr(made, one)]:
        raise ConfigError(f"{kind} {name} lacks {', '.join(missing)}; inherit from {base}")


def make_protection(component: Component) -> Protection:
    """The protection a job names."""
    protection: Protection = make("protection", component, PROTECTIONS)
    return protection


def make_aggregator(component: Component) -> Aggregator:
    """The rule a job names.

    Raises:
        ConfigError: as `make`; a class that is no rule.
    """
    rule: Aggregator = make("aggregator", component, AGGREGATORS)
    _require("aggregator", component.name, rule, ("needs", "step", "__call__"), "securefed_defenses.Rule")
    return rule


def make_compression(component: Component) -> Any:
    """The compression a job names, a `securefed.compression.Linear` or `Coding`.

    Raises:
        ConfigError: as `make`; a class that is neither.
    """
    found = make("compression", component, COMPRESSIONS)
    if not isinstance(getattr(found, "linear", None), bool):
        raise ConfigError(
            f"compression {component.name} is neither Linear nor Coding; inherit from one of them"
        )
    return found


def make_attack(attack: AttackConfig, aggregator: Component) -> Any:
    """The attack on the aggregate that a job names; None where it names none.

    An attack that is made against a rule gets the job's own where its options name no other.

    Raises:
        ConfigError: as `make`; a class that is no attack.
    """
    if not attack.name:
        return None
    options = dict(attack.options)
    parts: Mapping[str, str] = getattr(find_class("attack", attack.name, {}), "parts", {})
    for key, kind in parts.items():
        if kind == "aggregator":
            options.setdefault(key, {"name": aggregator.name, **aggregator.options})
    found = make("attack", Component(attack.name, options), {})
    _require("attack", attack.name, found, ("knowledge", "__call__"), "securefed_attacks.Byzantine")
    return found


def make_poison(attack: AttackConfig) -> Any:
    """The change of a liar's records that a job names; None where it names none."""
    return None if attack.poison is None else make("poison", attack.poison, {})
