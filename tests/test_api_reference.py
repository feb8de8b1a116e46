"""`make docs`: the modules that it lists are there, and everything public in them says what it is."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def listed() -> list[str]:
    """The modules of `API` in the Makefile, as make itself reads it."""
    if shutil.which("make") is None:
        pytest.skip("make is not on this machine")
    command = ["make", "-n", "--no-print-directory", "-o", "dev", "docs"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.search(r"-o build/api (.*)", out)
    assert found, out
    return found[1].split()


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes that a module offers: its `__all__`, else what it defines without an underscore."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in names:
        found = getattr(module, name)
        ours = getattr(found, "__module__", "").startswith("securefed")
        if ours and (inspect.isclass(found) or inspect.isfunction(found)):
            yield f"{module.__name__}.{name}", found


def undocumented(modules: Iterator[ModuleType] | list[ModuleType]) -> list[str]:
    """Modules, functions and classes without a docstring of their own."""
    bare = []
    for module in modules:
        if not module.__doc__:
            bare.append(module.__name__)
        bare += [
            name for name, found in public(module) if not (getattr(found, "__doc__", None) or "").strip()
        ]
    return bare


def test_every_public_name_of_the_reference_has_a_docstring() -> None:
    modules = listed()
    assert {"securefed", "securefed_attacks", "securefed_defenses", "securefed_benchmarks"} <= set(modules)
    assert undocumented([importlib.import_module(name) for name in modules]) == []


def test_a_bare_name_is_noticed() -> None:
    module = ModuleType("securefed.planted", "Says what it is.")
    exec("def bare(): pass", vars(module))
    assert undocumented([module]) == ["securefed.planted.bare"]


def test_a_page_is_made_from_docstrings(tmp_path: Path) -> None:
    pdoc = pytest.importorskip("pdoc", reason="pdoc comes with the extra dev; run make dev")
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("securefed.layout", output_directory=tmp_path)
    page = (tmp_path / "securefed" / "layout.html").read_text(encoding="utf-8")
    assert "vector_digest" in page
