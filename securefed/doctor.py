"""`securefed doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

GIB = 2**30
VERSIONS = {
    "torch": ("2.6", "2.13"),
    "transformers": ("5.0", "5.23"),
    "peft": ("0.21", "0.21"),
    "opacus": ("1.6", "1.6"),
    "numpy": ("2.0", "2.4"),
    "scipy": ("1.13", "1.17"),
    "scikit-learn": ("1.5", "1.9"),
    "safetensors": ("0.5", "0.8"),
    "cryptography": ("43", "50.0"),
    "xxhash": ("3.5", "4.1"),
    "platformdirs": ("4.2", "4.14"),
    "rich": ("13.7", "15.0"),
    "matplotlib": ("3.9", "3.11"),
}
"""Package -> (oldest that works, the series this release was tested with)."""
LEAST_DISK, GOOD_DISK, GOOD_MEMORY = 0.5, 2.0, 3.0
"""GiB: a run folder and its cache; those of the quickstart; what MiniLM and twelve clients take."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at and how it is.

    Attributes:
        state: "ok"; "note" for what is absent or unusual but not needed; "missing" for what is needed.
        found: how it is, in words. mend: the command or the advice; empty if nothing needs mending.
    """

    what: str
    state: Literal["ok", "note", "missing"]
    found: str
    mend: str = ""

    def to_tree(self) -> dict[str, str]:
        """The finding for machines."""
        return asdict(self)


def examine() -> list[Finding]:
    """Every finding, in the order in which a person would mend them. Nothing is created or changed."""
    return [
        Finding("Python", "ok", platform.python_version()),
        *(_package(name, *versions) for name, versions in VERSIONS.items()),
        _device(),
        *_models(),
        *_data(),
        _ledger(),
        _disk(),
        _memory(),
    ]


def _package(name: str, least: str, tested: str) -> Finding:
    """A release outside the tested series may work; one below the least does not."""
    mend = f"pip install '{name}=={tested}.*'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", mend)
    if _numbers(found) < _numbers(least):
        return Finding(name, "missing", f"{found}, needs {least} or newer", mend)
    if found != tested and not found.startswith(f"{tested}."):
        return Finding(name, "note", f"{found}, tested with {tested}", mend)
    return Finding(name, "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
        return Finding(
            "device", "missing", f"torch does not load ({type(error).__name__})", "pip install torch"
        )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "device", "ok", f"{torch.cuda.get_device_name()}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        )
    return Finding(
        "device", "ok", f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores; no GPU"
    )


def _models() -> list[Finding]:
    from securefed.models.zoo import ZOO

    findings = []
    for name, packaged in ZOO.items():
        here = importlib.util.find_spec(packaged.module) is not None
        findings.append(
            Finding(f"model {name}", "ok", "installed")
            if here
            else Finding(f"model {name}", "note", "not installed", packaged.install)
        )
    return findings


def _data() -> list[Finding]:
    from securefed.data.sources import SOURCES

    return [
        Finding(f"data {s.name}", "ok", "ready")
        if s.cached
        else Finding(f"data {s.name}", "note", f"not fetched ({s.size})", f"securefed data get {s.name}")
        for s in SOURCES.values()
    ]


def _ledger() -> Finding:
    """The site's ledger can be read and written, or made where there is none yet."""
    from securefed.errors import PrivacyError
    from securefed.paths import state_dir
    from securefed.privacy.ledger import Ledger

    path = state_dir() / "ledger.sqlite"
    mend = f"make {path.parent} writable, or move the ledger with SECUREFED_HOME"
    if not path.exists():
        above = _nearest_folder(path)
        if above.is_dir() and os.access(above, os.W_OK):
            return Finding("ledger", "ok", f"none yet; the first private run makes {path}")
        return Finding("ledger", "missing", f"{path} cannot be made", mend)
    try:
        with Ledger(path) as ledger:
            spent = len(ledger.events()) + len(ledger.events(unit="client"))
    except PrivacyError as error:
        return Finding(
            "ledger", "missing", str(error), "restore it from a backup: without it no spend is known"
        )
    if not os.access(path, os.W_OK):
        return Finding("ledger", "missing", f"{path} cannot be written", mend)
    return Finding("ledger", "ok", f"{path}, {spent:,} events")


def _disk() -> Finding:
    from securefed.paths import cache_dir

    free = shutil.disk_usage(_nearest_folder(cache_dir())).free / GIB
    state: Literal["ok", "note", "missing"] = (
        "missing" if free < LEAST_DISK else "note" if free < GOOD_DISK else "ok"
    )
    mend = (
        ""
        if state == "ok"
        else f"models, data and runs want {GOOD_DISK:g} GiB; free some, or set SECUREFED_HOME"
    )
    return Finding("disk", state, f"{free:.1f} GiB free", mend)


def _nearest_folder(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _memory() -> Finding:
    free = _available_memory() / GIB
    if free >= GOOD_MEMORY:
        return Finding("memory", "ok", f"{free:.1f} GiB available")
    mend = f"the quickstart wants {GOOD_MEMORY:g} GiB; close something"
    return Finding("memory", "note", f"{free:.1f} GiB available", mend)


def _available_memory() -> float:
    """Bytes that a new process can have; all of the machine's where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return float(found[1]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
