"""A small T5 from its configuration: the same everywhere, reads any text, and is a job like any other."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.data.records import Examples
from securefed.models import TaskModel, load_model, load_result
from securefed.models.digest import file_digest
from securefed.models.scratch import byte_tokenizer, t5_bytes

TOKENIZER = byte_tokenizer()
PAIRS = Examples(texts=("first the body", "then another"), targets=("body", "ünlike"))


def t5(**changes: object) -> TaskModel:
    settings: dict[str, object] = {"name": "t5-bytes", "task": "seq2seq", "adapter": "full"}
    return load_model(ModelConfig(**{**settings, **changes}), unit="example", max_length=32)  # type: ignore[arg-type]  # the test's own fields


@given(st.text(max_size=40))
def test_every_text_is_bytes_and_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text.encode()) + 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_every_machine_draws_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for home in ("a", "b"):
        monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / home))
        folder = t5_bytes()
        assert t5_bytes() == folder
        digests.append(
            [file_digest(folder / n) for n in ("model.safetensors", "config.json", "tokenizer.json")]
        )
    assert digests[0] == digests[1]


def test_it_begins_near_chance_over_the_bytes() -> None:
    model = t5()
    losses = model.losses(collate(model.encode(PAIRS, 32), range(2)))
    assert bool((losses < 1.5 * math.log(259)).all())


def test_its_job_runs_from_its_config_and_the_result_opens(tmp_path: Path) -> None:
    from securefed.cli import main

    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "target", "client"])
        rows.writerows([[f"mail number {i} of {i % 3}", f"number {i}", f"c{i % 3}"] for i in range(60)])
    changes = [f"data.name={path}", "data.client_column=client", "data.clients=3", "data.min_examples=5"]
    changes += ["rounds=2", "privacy.delta=1e-3", f"output={tmp_path / 'runs'}"]
    config = Path(__file__).parents[3] / "configs" / "t5-subjects.toml"
    assert main(["run", str(config), *changes]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    statement = json.loads((folder / "privacy.json").read_text())["statement"]
    assert statement["steps_settled"] == 3 * 2
    assert load_result(folder / "adapter").task == "seq2seq"
