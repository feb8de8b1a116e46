"""Which code and which machine made a number."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from securefed.registry import is_path

PACKAGES = ("securefed", "securefed_attacks", "securefed_defenses")
BENCH = ("axes", "measures", "membership", "one_round", "play", "reconstruction", "resident")
"""Files of the bench that a number depends on."""
ONLY_TELL = ("commands", "tracking", "wrapping", "cli.py", "doctor.py", "__main__.py")
"""Rooms of `securefed` that say what was found and change none of it."""


@functools.cache
def code_version() -> str:
    """Digest of every source file that a result depends on, hex. A change of wording elsewhere keeps it."""
    digest = hashlib.sha256()
    for name, path in _sources():
        digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def own_code(tree: Any) -> str:
    """Digest of the files behind every "package.module:Class" that a job names; empty where it names none."""
    digest = hashlib.sha256()
    found = sorted(set(_paths(tree)))
    for path in found:
        module = importlib.import_module(path.partition(":")[0])
        source = inspect.getsourcefile(module)
        digest.update(path.encode() + (Path(source).read_bytes() if source else b""))
    return digest.hexdigest()[:12] if found else ""


def _sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder)
            if package != "securefed" or inside.parts[0] not in ONLY_TELL:
                yield f"{package}/{inside.as_posix()}", path
    for name in BENCH:
        yield f"bench/{name}", Path(__file__).with_name(f"{name}.py")


def _paths(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        if is_path(tree):
            yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _paths(value)
    elif isinstance(tree, Iterable):
        for value in tree:
            yield from _paths(value)
