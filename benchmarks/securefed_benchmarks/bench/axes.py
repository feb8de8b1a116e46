"""What a choice on an axis does to a job: the seam between a suite's words and a job's fields."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from securefed.config import Component, Config, DataConfig, PrivacyConfig, overridden, shaped
from securefed.config.attack import declared
from securefed.errors import ConfigError
from securefed.registry import PROTECTIONS, TABLES, check_options, find_class, is_path

Tree = dict[str, Any]
PARTITIONS = ("iid", "natural", "quantity", "dirichlet")
ATTACK_KEYS = ("name", "poison", "participation", "colluding", "label")


@dataclass(frozen=True)
class Choice:
    """One value of an axis: how it is called in tables, and what it is."""

    label: str | float | int
    value: Any = field(repr=False)


def choice(axis: str, value: Any, named: Mapping[str, Any], job: Mapping[str, Any]) -> Choice:
    """A suite's value of an axis, checked.

    Args:
        named: label -> value, the suite's own names. job: the grid's, on which some values build.

    Raises:
        ConfigError: an unknown name or field (the nearest is given), or a value that the axis does not take.
    """
    if isinstance(value, str) and value in named:
        return Choice(value, READ[axis](named[value], named))
    if axis not in READ:
        shaped(overridden(job, axis, _unlabelled(value)))
        return Choice(_label(value), _unlabelled(value))
    return Choice(_label(value), READ[axis](_unlabelled(value), named))


def apply(tree: Mapping[str, Any], chosen: Mapping[str, Choice]) -> Tree:
    """The job's tree with one choice of each axis; defence and attack come last, since both read f."""
    found: Tree = dict(tree)
    if "f" in chosen:
        found["attack"] = {**found.get("attack", {}), "f": chosen["f"].value}
    for axis in AXES:
        if axis in APPLY and axis in chosen:
            APPLY[axis](found, chosen[axis].value)
    for axis, one in chosen.items():
        if axis not in READ:
            found = overridden(found, axis, one.value)
    if "attack" in chosen or "f" in chosen:
        _declare(found)
    return found


def _label(value: Any) -> str | float | int:
    if isinstance(value, Mapping):
        if "label" in value:
            return str(value["label"])
        name = str(value.get("name", ""))
        rest = [f"{k}={v}" for k, v in value.items() if k != "name" and not isinstance(v, Mapping | list)]
        short = name.rpartition(":")[2]
        return f"{short}({', '.join(rest)})" if short and rest else short or ", ".join(rest)
    if isinstance(value, str):
        return value.rpartition(":")[2] if is_path(value) else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _unlabelled(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "label"} if isinstance(value, Mapping) else value


def _component(value: Any, what: str) -> Tree:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return _unlabelled(value)  # type: ignore[no-any-return]  # a mapping stays one
    raise ConfigError(f'{what} is a name or a table with a name, found {value!r}; write {{ name = "..." }}')


# --------------------------------------------------------------------------------------------- read


def _read_attack(value: Any, named: Mapping[str, Any]) -> Tree:
    """{"name", "options", "poison", ...} of a job's [attack]; empty where nobody lies."""
    if value == "none" or value == {}:
        return {}
    if isinstance(value, str):
        return _attack_by_name(value, named)
    if not isinstance(value, Mapping):
        raise ConfigError(f"an attack is a name or a table, found {value!r}")
    found: Tree = {k: v for k, v in value.items() if k in ATTACK_KEYS and k != "label"}
    options = {k: v for k, v in value.items() if k not in ATTACK_KEYS}
    if "name" in found:
        check_options("attack", Component(str(found["name"]), options), {})
    elif "poison" not in found or options:
        raise ConfigError(f"an attack has a name or a poison, found {dict(value)!r}")
    if options:
        found["options"] = options
    if "poison" in found:
        found["poison"] = _component(found["poison"], "poison")
        check_options("poison", _split(found["poison"]), {})
    return found


def _attack_by_name(name: str, named: Mapping[str, Any]) -> Tree:
    """What is sent, or what is trained on: a class of one's own says by its method `triggered` which it is."""
    from securefed_attacks import BYZANTINE, POISONS

    if is_path(name):
        poison = hasattr(find_class("attack", name, {}), "triggered")
        return {"poison": {"name": name}} if poison else {"name": name}
    if name in POISONS:
        return {"poison": {"name": name}}
    if name in BYZANTINE:
        return {"name": name}
    raise ConfigError(_unknown("attack", name, ["none", *named, *BYZANTINE, *POISONS]))


def _read_defence(value: Any, named: Mapping[str, Any]) -> Tree:
    found = _component(value, "a defence")
    if not is_path(found["name"]):
        from securefed_defenses import AGGREGATORS

        if found["name"] not in AGGREGATORS:
            raise ConfigError(_unknown("defence", found["name"], [*named, *AGGREGATORS]))
    check_options("aggregator", _split(found), TABLES["aggregator"])
    return found


def _read_protection(value: Any, named: Mapping[str, Any]) -> Tree:
    found = _component(value, "a protection")
    check_options("protection", _split(found), PROTECTIONS)
    return found


def _read_heterogeneity(value: Any, named: Mapping[str, Any]) -> Tree:
    if isinstance(value, str):
        if value not in PARTITIONS:
            raise ConfigError(_unknown("heterogeneity", value, PARTITIONS))
        return {"partition": value}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"partition": "dirichlet", "alpha": float(value)}
    if isinstance(value, Mapping):
        return _fields_of(value, DataConfig, "data")
    raise ConfigError(f"heterogeneity is iid, a Dirichlet alpha, or fields of [data], found {value!r}")


def _read_f(value: Any, named: Mapping[str, Any]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"f counts liars, a whole number from 0 on, found {value!r}")
    return value


def _read_privacy(value: Any, named: Mapping[str, Any]) -> Tree | None:
    """Fields of [privacy] over the job's own; None where nothing is private."""
    if value == "none":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"epsilon": float(value)}
    if isinstance(value, Mapping):
        return _fields_of(value, PrivacyConfig, "privacy")
    raise ConfigError(f'privacy is "none", an epsilon, or fields of [privacy], found {value!r}')


def _fields_of(value: Mapping[str, Any], table: type[DataConfig | PrivacyConfig], name: str) -> Tree:
    known = [one.name for one in dataclasses.fields(table)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"[{name}] has no field {key!r}; {hint}")
    return dict(value)


def _unknown(what: str, word: str, known: Any) -> str:
    listed = list(known)
    near = difflib.get_close_matches(word, listed, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(listed))}"
    return f"no {what} {word!r}; {hint}, or package.module:Class"


# -------------------------------------------------------------------------------------------- apply


def _apply_heterogeneity(tree: Tree, value: Tree) -> None:
    tree["data"] = {**tree.get("data", {}), **value}


def _apply_protection(tree: Tree, value: Tree) -> None:
    tree["protection"] = dict(value)


def _apply_privacy(tree: Tree, value: Tree | None) -> None:
    tree["privacy"] = {"unit": "none"} if value is None else {**tree.get("privacy", {}), **value}


def _apply_defence(tree: Tree, value: Tree) -> None:
    tree["aggregator"] = with_f(value, "aggregator", int(tree.get("attack", {}).get("f", 0)))


def _apply_attack(tree: Tree, value: Tree) -> None:
    """With f = 0 nobody lies: the first row of a map over f."""
    f = int(tree.get("attack", {}).get("f", 0))
    tree["attack"] = {**value, "f": f} if value and f else {}


def with_f(value: Tree, kind: str, f: int) -> Tree:
    """The component with f told to it and to its parts, wherever it takes one and none is given."""
    cls = find_class(kind, value["name"], TABLES[kind])
    found = dict(value)
    if dataclasses.is_dataclass(cls) and "f" in {one.name for one in dataclasses.fields(cls)}:
        found.setdefault("f", f)
    for key, part in getattr(cls, "parts", {}).items():
        if key in found:
            found[key] = _parts_with_f(found[key], part, f)
    return found


def _parts_with_f(value: Any, kind: str, f: int) -> Any:
    if isinstance(value, list):
        return [_parts_with_f(one, kind, f) for one in value]
    return with_f({"name": value} if isinstance(value, str) else dict(value), kind, f)


def _declare(tree: Tree) -> None:
    """Says `declared_f` where the rule is told another f on purpose; a job refuses it otherwise.

    Without liars there is nothing to declare: such a rule is told the f it would be told with them.
    """
    attack, rule = tree.get("attack", {}), tree.get("aggregator", {"name": "mean"})
    if not attack.get("f") or not (attack.get("name") or attack.get("poison")):
        tree["attack"] = {}
        return
    part = Component(rule, {}) if isinstance(rule, str) else _split(rule)
    told = declared(dataclasses.replace(Config(), aggregator=part))
    if told is not None and told != attack["f"]:
        tree["attack"] = {**attack, "declared_f": told}


def _split(rule: Mapping[str, Any]) -> Component:
    return Component(rule["name"], {k: v for k, v in rule.items() if k != "name"})


READ: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "heterogeneity": _read_heterogeneity,
    "f": _read_f,
    "privacy": _read_privacy,
    "protection": _read_protection,
    "defence": _read_defence,
    "attack": _read_attack,
}
AXES = tuple(READ)
"""In the order in which they are applied."""
APPLY: dict[str, Callable[[Tree, Any], None]] = {
    "heterogeneity": _apply_heterogeneity,
    "privacy": _apply_privacy,
    "protection": _apply_protection,
    "defence": _apply_defence,
    "attack": _apply_attack,
}
