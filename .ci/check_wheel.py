"""What a wheel must hold, and what installing it must leave alone. Standard library only.

check_wheel.py contents WHEEL...   the four packages and nothing else at the top; all wheels hold the same
check_wheel.py imports FOLDER      the four packages import, from under FOLDER
check_wheel.py intact NAME         every file that the distribution NAME installed is still as it was
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

FOUR = ("securefed", "securefed_attacks", "securefed_defenses", "securefed_benchmarks")


def contents(*wheels: str) -> None:
    """Exits with a message unless each wheel holds exactly the four packages, typed, without tests."""
    held = []
    for wheel in wheels:
        names = [n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")]
        tops = {n.split("/")[0] for n in names}
        information = {top for top in tops if top.endswith(".dist-info")}
        if tops - information != set(FOUR):
            sys.exit(f"{wheel}: expected {FOUR} at the top, found {sorted(tops)}")
        untyped = [package for package in FOUR if f"{package}/py.typed" not in names]
        strange = [n for n in names if "test" in Path(n).name or n.endswith(".pyc")]
        licences = [n for n in names if n.endswith("/LICENSE")]
        if untyped or strange or not licences:
            sys.exit(f"{wheel}: without py.typed {untyped}, out of place {strange}, licence {licences}")
        held.append({n: zipfile.ZipFile(wheel).read(n) for n in names if not n.endswith("RECORD")})
    if any(other != held[0] for other in held):
        sys.exit(f"the wheels differ: {[sorted(set(h) ^ set(held[0])) for h in held]}")
    print(f"{len(held)} wheels with the same {len(held[0])} files")


def imports(folder: str) -> None:
    """Exits with a message unless the four packages come from under `folder` and the public names exist."""
    for name in FOUR:
        module = importlib.import_module(name)
        if not Path(str(module.__file__)).is_relative_to(Path(folder).resolve()):
            sys.exit(f"{name} was imported from {module.__file__}, not from {folder}")
    package = importlib.import_module("securefed")
    for name in package.__all__:
        getattr(package, name)
    if package.__version__ != metadata.version("securefed"):
        sys.exit(f"{package.__version__} was installed as {metadata.version('securefed')}")
    print(f"{', '.join(FOUR)}: imported from {folder}")


def intact(name: str) -> None:
    """Exits with a message if a file of the distribution is gone or changed."""
    checked = 0
    for file in metadata.files(name) or []:
        if file.hash is None:
            continue
        path = Path(str(file.locate()))
        if not path.exists():
            sys.exit(f"{name}: {file} is gone")
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            sys.exit(f"{name}: {file} was changed")
        checked += 1
    if not checked:
        sys.exit(f"{name} has no recorded files")
    print(f"{name}: {checked} files as installed")


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"contents": contents, "imports": imports, "intact": intact}
    commands[sys.argv[1]](*sys.argv[2:])
