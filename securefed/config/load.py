"""From TOML and dotted overrides to a checked job; each mistake is one line that names the way out."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from securefed.config.check import check
from securefed.config.schema import Component, Config
from securefed.config.toml import COMPONENTS, to_tree
from securefed.errors import ConfigError


def load_config(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Config:
    """The job in a TOML file (or mapping), with dotted overrides applied, checked.

    Args:
        source: path of a TOML file, a nested mapping, or a `Config`.
        overrides: `{"privacy.epsilon": 3.0}` or `["privacy.epsilon=3", "rounds=10"]`; a value in text
            is read as TOML and, failing that, as a plain string.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest), wrong type, value out of range,
            or fields that do not fit together.

    >>> load_config({"rounds": 3}, ["privacy.delta=1e-6"]).privacy.delta
    1e-06
    """
    if isinstance(source, Config):
        tree = to_tree(source)
    elif isinstance(source, Mapping):
        tree = _copy_tree(source)
    else:
        tree = _read_toml(Path(source))
    pairs = overrides.items() if isinstance(overrides, Mapping) else (_split_override(o) for o in overrides)
    for key, value in pairs:
        _set_dotted(tree, key, value)
    config = shaped(tree)
    check(config)
    return config


def overridden(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a job's tree with one dotted field set, as an override sets it.

    Raises:
        ConfigError: what stands before the last dot is a value.
    """
    found = _copy_tree(tree)
    _set_dotted(found, key, value)
    return found


def shaped(tree: Mapping[str, Any]) -> Config:
    """The job of a tree whose names and types are right; whether its fields fit together is not looked at.

    Raises:
        ConfigError: unknown key (names the nearest) or wrong type.
    """
    found: Config = _build(Config, tree, "")
    return found


def typed(config: Config) -> Config:
    """The same job with every field of its type: for one that was made in Python, where nothing else looks.

    A number of NumPy's is Python's.

    Raises:
        ConfigError: a field of another type, or a word that is none of those it takes.
    """
    return shaped(_unboxed(to_tree(config, keep_none=True)))


def _unboxed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _unboxed(v) for k, v in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        if not tree:
            raise ConfigError(f"{path} holds no job; see configs/ for ready ones")
        return tree
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; see configs/ for ready ones") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give its config.toml") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _copy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy_tree(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _split_override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {text!r} is not key=value; write e.g. privacy.epsilon=3")
    return key.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is not one.

    >>> parse_value("3"), parse_value("[1, 2]"), parse_value("krum")
    (3, [1, 2], 'krum')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node = tree
    for name in path:
        child = node.get(name)
        if isinstance(child, str) and name in COMPONENTS:
            child = {"name": child}  # so that protection.threshold=7 works on protection = "masking"
        elif child is None:
            default = getattr(Config(), name, None) if node is tree else None
            child = {"name": default.name} if isinstance(default, Component) else {}
        elif not isinstance(child, dict):
            raise ConfigError(f"override {key}: {name} is a value, not a table")
        node[name] = child
        node = child
    node[last] = _copy_tree(value) if isinstance(value, Mapping) else value  # a later key may write into it


def _build(cls: type[Any], tree: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown_key(where, key, known))
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in tree.items()})


def _unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    for name, hint in typing.get_type_hints(Config).items():  # the right name in the wrong table comes first
        if dataclasses.is_dataclass(hint) and hint is not Component and key in [f.name for f in fields(hint)]:
            return f"unknown key {where}{key}; did you mean {name}.{key}?"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    if near:
        return f"unknown key {where}{key}; did you mean {where}{near[0]}?"
    return f"unknown key {where}{key}; known here: {', '.join(known)}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of its field, or a ConfigError that names the field and what it takes."""
    if hint is Component:
        return _component(value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, found {value!r}; write [{where}]")
        return _build(typing.cast("type[Any]", hint), value, where + ".")
    if hint is Any:
        return value  # an option of a component, which checks it itself
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where} is one of {', '.join(map(repr, args))}, found {value!r}{hint_text}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} is a list, found {value!r}")
        return tuple(_convert(args[0], v, where) for v in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, found {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_KINDS[hint]}, found {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, found {value!r}")
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return _convert(arg, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0] if len(errors) == 1 else " or ".join(errors))


def _component(value: Any, where: str) -> Component:
    if isinstance(value, str):
        return Component(value)
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return Component(value["name"], {k: v for k, v in value.items() if k != "name"})
    raise ConfigError(f'{where} is a name or a table with a name, found {value!r}; write {where} = "..."')
