"""Bad input through the command, case by case: one clear line, or UNDERPOWERED with what is missing; never a leak."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from securefed.cli import main
from tests.attacks.audit import words

MINE, OTHERS = words.texts(6, 6, 0), words.texts(6, 6, 1)
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = words.capture(tmp_path_factory.mktemp("captured"), "llama", MINE[:2], rank=4)
    words.write([*MINE, *OTHERS], [True] * 6 + [False] * 6, folder / "records.jsonl")
    return folder


@pytest.fixture
def case(captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("before", "after"):
        shutil.copytree(captured / name, tmp_path / name)
    shutil.copy(captured / "records.jsonl", tmp_path)
    (tmp_path / "base").symlink_to(captured / "base")
    return tmp_path


def edit(folder: Path, change: Callable[[torch.Tensor], torch.Tensor], name: str = "after") -> None:
    path = folder / name / "adapter_model.safetensors"
    state = load_file(path)
    save_file({k: change(v).contiguous() for k, v in state.items()}, path)


def quantized(folder: Path) -> None:
    for name in ("before", "after"):
        edit(folder, lambda v: (v * 100).to(torch.int8), name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: edit(f, lambda v: v[:, :-1]), "has shape"),
        (lambda f: edit(f, lambda v: v * torch.nan), "values that are not finite"),
        (quantized, "is quantized (int8)"),
        (lambda f: (f / "after" / "adapter_model.safetensors").write_bytes(b"no"), "cannot read"),
        (lambda f: shutil.rmtree(f / "after"), "nothing at after"),
        (lambda f: (f / "base").unlink(), "no model folder"),
        (lambda f: (f / "records.jsonl").unlink(), "no file"),
        (lambda f: (f / "records.jsonl").write_text("what is this"), "line 1 of records.jsonl is no JSON"),
    ],
)
def test_input_that_cannot_be_read_is_one_clear_line_and_exit_code_two(
    case: Path, damage: Damage, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(case)
    words_ = ["before", "after", "--base", str(case / "base"), "--candidates", "records.jsonl", "--quiet"]
    assert main(["audit", *words_]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err
    assert len(err.splitlines()) == 1
    assert not any(word in err for word in words.WORDS)


def without_adapters_base(folder: Path) -> None:
    for name in ("before", "after"):
        path = folder / name / "adapter_config.json"
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({**tree, "base_model_name_or_path": "somewhere/else"}))


def members_only(folder: Path) -> None:
    words.write(MINE, [True] * 6, folder / "records.jsonl")


def ten(folder: Path) -> None:
    words.write([*MINE[:5], *OTHERS[:5]], [True] * 5 + [False] * 5, folder / "records.jsonl")


@pytest.mark.parametrize(
    ("damage", "drop", "said"),
    [
        (without_adapters_base, ("--base",), "the base model (base=, or --base)"),
        (lambda f: None, ("--candidates",), "no candidate records"),
        (members_only, (), "all 6 candidates are members"),
        (ten, (), "needs at least 100 non-members, found 5: 95 more"),
        (lambda f: None, ("--optimizer",), "optimizer not named"),
        (
            lambda f: edit(f, lambda v: v * 0) or edit(f, lambda v: v * 0, "before"),
            (),
            "equal in every tensor",
        ),
    ],
)
def test_input_that_carries_no_verdict_is_underpowered_and_says_what_is_missing(
    case: Path, damage: Damage, drop: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(case)
    given = {
        "--base": str(case / "base"),
        "--candidates": "records.jsonl",
        "--optimizer": "sgd",
        "--steps": "6",
        "--learning-rate": "0.1",
        "--batch-size": "2",
        "--shadows": "0",
    }
    options = [w for k, v in given.items() if k not in drop for w in (k, v)]
    assert main(["audit", "before", "after", *options, "--quiet", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    page = (case / "audit.html").read_text(encoding="utf-8")
    everything = json.dumps(tree) + page
    assert said in everything
    assert not any(word in everything for word in words.WORDS)
    assert "UNDERPOWERED" in {f["verdict"] for f in tree["findings"]}
    assert not [
        f for f in tree["findings"] if f["section"] == "membership" and f["verdict"] != "UNDERPOWERED"
    ]
    if "--optimizer" in drop:
        assert tree["exposure"]["budget"] is None, "nothing is guessed in its place"
    assert main(["audit", "before", "after", *options, "--quiet", "--fail-on", "UNDERPOWERED"]) == 1
