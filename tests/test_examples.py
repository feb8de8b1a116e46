"""Every example runs as it stands there, and does what its first lines say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {"make_private_loop.py", "hf_trainer.py", "federate_any_code.py", "black_box_teacher.py"}
"""Those below; an example of a later room brings its own test."""


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_examples_tested_here_exist() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} >= TESTED


def test_a_private_loop_learns_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("make_private_loop").main(epochs=10) > 0.7  # guessing gives 0.1; observed .84 to .88
    assert "holds against" in capsys.readouterr().out


def test_scikit_learn_is_federated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("federate_any_code").main(rounds=6, folder=str(tmp_path / "out")) > 0.5
    assert "not against the server" in capsys.readouterr().out


def test_scikit_learn_is_federated_with_noise_that_its_clients_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("federate_any_code").main(rounds=3, folder=str(tmp_path / "out"), noise="skellam") > 0.5
    assert "against everyone, the server included" in capsys.readouterr().out


@pytest.mark.model
@pytest.mark.dataset
def test_a_trainer_is_made_private(
    require_model: Callable[[str], str],
    require_dataset: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_model("minilm")
    require_dataset("spam")
    example("hf_trainer").main(records=64, steps=1, held_out=32)
    assert "1 Gaussian steps" in capsys.readouterr().out


@pytest.mark.dataset
def test_students_learn_from_a_teacher_that_they_can_only_ask(
    tmp_path: Path, require_dataset: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A word list stands for the teacher; it runs here, so private texts may be shown to it."""
    from securefed.teachers import Teacher

    require_dataset("sentiment")
    good = ("good", "great", "love", "best", "well", "nice", "funny", "excellent")
    teacher = Teacher("words", lambda t: int(any(w in t.lower() for w in good)), leaves_site=False)
    small = {"rounds": 2, "output": str(tmp_path / "runs")}
    assert example("black_box_teacher").main(teacher, small, str(tmp_path)) > 0.45
    assert "labelled=200" in capsys.readouterr().out
