"""Who may import whom (ARCHITECTURE, "Rooms"): every import statement is parsed and held against the arrow."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "securefed": ROOT / "securefed",
    "securefed_attacks": ROOT / "attacks" / "securefed_attacks",
    "securefed_defenses": ROOT / "defenses" / "securefed_defenses",
    "securefed_benchmarks": ROOT / "benchmarks" / "securefed_benchmarks",
}

STEPS = (
    {"errors", "types", "paths", "hub", "undisturbed"},
    {"layout", "crypto"},
    {
        "privacy",
        "protect",
        "data",
        "models",
        "rows",
        "gram",
        "factors",
        "views",
        "aggregation",
        "compression",
    },
    {"training", "algorithms", "teachers", "tracking"},
    {
        "assembly",
        "evaluation",
        "checkpoint",
        "kept_views",
        "chronicle",
        "engine",
        "rounds",
        "root",
        "grouping",
        "noising",
        "mechanisms",
        "parts",
        "run_folder",
        "sessions",
    },
    {"cohorts", "gains", "judging"},
    {"federation", "distillation", "sums", "auditing"},
    {"wrapping"},
    {"commands", "doctor", "cli", "__main__", "__init__"},
)
"""Rooms of `securefed`, lowest first. A room imports lower steps; rooms of one step, one way only."""

FOR_ALL = {"config", "registry"}
"""Any room may import these; they themselves import only the lowest step and each other."""

OUTER = {
    "securefed_attacks": {"securefed"},
    "securefed_defenses": {"securefed"},
    "securefed_benchmarks": {"securefed", "securefed_attacks", "securefed_defenses"},
}
"""What each outer package may import of the four."""

PEER = "benchmarks/securefed_benchmarks/make_private_step.py"
"""Measures `make_private` beside the loop that these libraries' own users write."""

CAPTURED = "benchmarks/securefed_benchmarks/reconstruction.py"
"""Attacks adapters as PEFT's own users send them."""

ONE_FILE = {
    "opacus": {"securefed/training/dp.py", "securefed/privacy/opacus_accountants.py", PEER},
    "peft": {"securefed/models/adapters.py", PEER, CAPTURED},
    "tenseal": {"securefed/protect/ckks/scheme.py", "benchmarks/securefed_benchmarks/ckks_vs_nvflare.py"},
    "flwr": {"securefed/engine/flower.py"},
}
"""The only files that know each of these libraries."""

NO_TORCH = {"crypto", "protect"}


@dataclass(frozen=True)
class Import:
    """One imported module as a file of the repository names it."""

    file: str
    line: int
    module: str
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(source: str, file: str, package: str) -> Iterator[Import]:
    """Every module that `source` imports, at the top or inside functions; `package` resolves dots."""
    tree = ast.parse(source, file)
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            # `from securefed import layout` names a room, `from securefed.layout import Layout` does too
            modules = [f"{base}.{alias.name}" for alias in node.names] if base in PACKAGES else [base]
        else:
            continue
        for module in modules:
            yield Import(file, node.lineno, module, id(node) in typing_only)


def all_imports() -> list[Import]:
    found: list[Import] = []
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            package = ".".join((name, *inside[:-1]))
            file = "/".join((str(folder.relative_to(ROOT)), *path.relative_to(folder).parts))
            found += imports_of(path.read_text(encoding="utf-8"), file, package)
    return found


def room_of(file: str) -> str:
    """`securefed/data/batch.py` -> data, `securefed/layout.py` -> layout."""
    return Path(file).parts[1].removesuffix(".py")


def target_room(module: str) -> str:
    """`securefed.data.batch` -> data; a public name of the package itself is the package's `__init__`."""
    room = module.split(".")[1] if "." in module else "__init__"
    known = set().union(*STEPS) | FOR_ALL
    is_room = (
        room in known
        or (PACKAGES["securefed"] / room).is_dir()
        or (PACKAGES["securefed"] / f"{room}.py").exists()
    )
    return room if is_room else "__init__"


def violations(found: list[Import]) -> list[str]:
    """One line for each import that the rules forbid."""
    rank = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
    out: list[str] = []
    for one in found:
        owner = next(
            n for n, folder in PACKAGES.items() if one.file.startswith(f"{folder.relative_to(ROOT)}/")
        )
        top = one.module.split(".")[0]
        if top in ONE_FILE and one.file not in ONE_FILE[top]:
            out.append(f"{one}: only {', '.join(sorted(ONE_FILE[top]))} may know {top}")
        if owner != "securefed":
            if top in PACKAGES and top != owner and top not in OUTER[owner]:
                out.append(f"{one}: {owner} may import {', '.join(sorted(OUTER[owner]))} only")
            continue
        room = room_of(one.file)
        if top in OUTER:
            out.append(f"{one}: securefed knows the outer packages by string only, through its registry")
        if top == "torch" and room in NO_TORCH and not one.typing_only:
            out.append(f"{one}: {room} works on NumPy and bytes")
        if top != "securefed" or room == target_room(one.module):
            continue
        target = target_room(one.module)
        if room not in rank and room not in FOR_ALL:
            out.append(f"{one}: give {room} its place in STEPS")
        elif room in FOR_ALL:
            if target not in STEPS[0] | FOR_ALL:
                out.append(f"{one}: {room} is for all, so it imports only the lowest step")
        elif room == "types" and one.typing_only:
            continue  # the vocabulary may mention what it does not load
        elif target in FOR_ALL:
            continue
        elif target not in rank:
            out.append(f"{one}: give {target} its place in STEPS")
        elif rank[target] > rank[room]:
            out.append(f"{one}: {target} is above {room}")
    return out


def same_step_edges(found: list[Import]) -> Mapping[str, set[str]]:
    """Room -> rooms of its own step that it imports."""
    edges: dict[str, set[str]] = {}
    for one in found:
        if one.file.startswith("securefed/") and one.module.startswith("securefed.") and not one.typing_only:
            room, target = room_of(one.file), target_room(one.module)
            if room != target and any({room, target} <= step for step in STEPS):
                edges.setdefault(room, set()).add(target)
    return edges


def test_imports_follow_the_arrow() -> None:
    assert violations(all_imports()) == []


def test_rooms_of_one_step_import_each_other_one_way_only() -> None:
    try:
        tuple(TopologicalSorter(same_step_edges(all_imports())).static_order())
    except CycleError as error:
        pytest.fail(f"rooms of one step import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("securefed/data/spam.py", "from securefed.training.local import train_locally"),
        ("securefed/data/spam.py", "def later():\n    from securefed import federation"),
        ("securefed/layout.py", "import securefed.models.adapters"),
        ("securefed/data/spam.py", "from ..engine import exchange"),
        ("securefed/errors.py", "if TYPE_CHECKING:\n    from securefed.layout import Layout"),
        ("securefed/privacy/ledger.py", "from securefed import Config"),  # through the package's front door
        ("securefed/registry.py", "from securefed_defenses import AGGREGATORS"),
        ("securefed/cli.py", "import securefed_attacks.membership as m"),
        ("securefed/config/check.py", "from securefed.privacy.ledger import Ledger"),
        ("securefed/attic.py", "from securefed.errors import SecureFedError"),  # a room without a place
        ("securefed/crypto/prg.py", "import torch"),
        ("securefed/training/local.py", "from opacus.accountants import RDPAccountant"),
        ("securefed/cli.py", "import peft"),
        ("securefed/protect/masking.py", "import tenseal"),
        ("securefed/federation.py", "def f():\n    import flwr.server"),
        ("attacks/securefed_attacks/alie.py", "from securefed_defenses import AGGREGATORS"),
        ("attacks/securefed_attacks/alie.py", "import securefed_benchmarks"),
        ("defenses/securefed_defenses/krum.py", "from securefed_attacks import BYZANTINE"),
        ("benchmarks/securefed_benchmarks/lora.py", "import peft.tuners"),
    ],
)
def test_a_planted_violation_is_noticed(file: str, source: str) -> None:
    package = (
        ".".join(Path(file).parts[:-1])
        .removeprefix("attacks.")
        .removeprefix("defenses.")
        .removeprefix("benchmarks.")
    )
    planted = list(imports_of(source, file, package))
    assert len(planted) == 1
    assert len(violations(planted)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("securefed/training/dp.py", "from opacus import GradSampleModule"),
        ("securefed/training/local.py", "from securefed.privacy.events import SampledGaussian"),
        ("securefed/data/shards.py", "from securefed.config import DataConfig"),
        ("securefed/types.py", "if TYPE_CHECKING:\n    from securefed.crypto.entropy import Entropy"),
        ("securefed/crypto/prg.py", "from . import keys"),
        ("attacks/securefed_attacks/alie.py", "from securefed import View"),
        (
            "benchmarks/securefed_benchmarks/sweep.py",
            "import securefed_attacks, securefed_defenses, securefed",
        ),
    ],
)
def test_what_the_arrow_allows_is_not_reported(file: str, source: str) -> None:
    package = ".".join(Path(file).parts[:-1]).removeprefix("attacks.").removeprefix("benchmarks.")
    planted = list(imports_of(source, file, package))
    assert planted
    assert violations(planted) == []


def test_a_planted_circle_within_a_step_is_noticed() -> None:
    circle = [
        Import("securefed/data/a.py", 1, "securefed.models.x", False),
        Import("securefed/models/x.py", 1, "securefed.data.a", False),
    ]
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(same_step_edges(circle)).static_order())
