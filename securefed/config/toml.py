"""A resolved job as plain values and as TOML text, which `load_config` reads back to an equal job."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from securefed.config.schema import Component, Config
from securefed.errors import ConfigError

COMPONENTS = ("algorithm", "protection", "aggregator", "compression")
"""Fields of the job that choose a part by name."""


def to_tree(config: Config, *, keep_none: bool = False) -> dict[str, Any]:
    """The config as nested plain values, by default without fields that are None; `load_config` reads it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Component):
            return {"name": value.name, **{k: plain(v) for k, v in value.options.items()}}
        if dataclasses.is_dataclass(value):
            return {
                f.name: plain(getattr(value, f.name))
                for f in fields(value)
                if keep_none or getattr(value, f.name) is not None
            }
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return value

    tree: dict[str, Any] = plain(config)
    return tree


def to_toml(config: Config) -> str:
    """The resolved job as TOML text that `load_config` reads back to an equal config."""
    tree = to_tree(config)
    scalars = {k: v for k, v in tree.items() if not isinstance(v, dict) or k in COMPONENTS}
    lines = [f"{k} = {toml_value(v)}" for k, v in scalars.items()]
    for section, values in tree.items():
        if section not in scalars:
            lines += ["", f"[{section}]", *(f"{k} = {toml_value(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A plain value as TOML writes it on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_toml_character(c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(str(k))} = {toml_value(v)}" for k, v in value.items()) + "}"
    raise ConfigError(f"cannot write a {type(value).__name__} to TOML")


def _toml_character(c: str) -> str:
    """A character inside a basic string; TOML 1.0 forbids quote, backslash and control characters there."""
    if c in '"\\':
        return "\\" + c
    return f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c
