"""`hub:NAME`, with a stand-in for `datasets` and with the real one where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from securefed.config import DataConfig
from securefed.data import load_dataset
from securefed.errors import DataError


class Labels:
    names = ("neg", "pos")


class Split:
    """What a loaded split offers: rows, column names, features."""

    def __init__(self, texts: list[str], labels: list[int]) -> None:
        self.rows = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
        self.column_names = ["text", "label"]
        self.features = {"text": object(), "label": Labels()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


TRAIN = Split([f"t{i}" for i in range(10)], [0, 1] * 5)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`datasets.load_dataset` returns hub["found"] and notes its arguments."""
    state: dict[str, Any] = {}

    def load(path: str, config: str | None = None) -> Any:
        state.update(path=path, config=config, offline=settings.HF_HUB_OFFLINE)
        if isinstance(state["found"], Exception):
            raise state["found"]
        return state["found"]

    fake = ModuleType("datasets")
    settings = SimpleNamespace(HF_HUB_OFFLINE=False)
    vars(fake).update(load_dataset=load, load_from_disk=load, config=settings)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return state


def test_a_published_test_split_is_kept(hub: dict[str, Any]) -> None:
    hub["found"] = {"train": TRAIN, "validation": Split(["v"], [1]), "test": Split(["x", "y"], [0, 1])}
    dataset = load_dataset(DataConfig(name="hub:some/reviews:plain"), offline=True)
    assert (hub["path"], hub["config"], hub["offline"]) == ("some/reviews", "plain", True)
    assert dataset.classes == ("neg", "pos")
    assert dataset.train.texts == tuple(f"t{i}" for i in range(10))
    assert dataset.test.texts == ("x", "y")
    assert dataset.name == "hub:some/reviews:plain"


def test_a_test_split_with_hidden_labels_is_passed_over(hub: dict[str, Any]) -> None:
    hub["found"] = {"train": TRAIN, "validation": Split(["v"], [1]), "test": Split(["x", "y"], [-1, -1])}
    assert load_dataset(DataConfig(name="hub:a")).test.texts == ("v",)
    assert load_dataset(DataConfig(name="hub:a"), task="causal-lm").test.texts == ("x", "y")


def test_without_a_test_split_one_is_made(hub: dict[str, Any]) -> None:
    hub["found"] = {"train": TRAIN}
    dataset = load_dataset(DataConfig(name="hub:a", test_fraction=0.3))
    assert len(dataset.train) + len(dataset.test) == 10
    assert len(dataset.test) > 0
    hub["found"] = TRAIN
    assert load_dataset(DataConfig(name="hub:a", test_fraction=0.3)).digest == dataset.digest


def test_a_hidden_label_in_training_is_named(hub: dict[str, Any]) -> None:
    hub["found"] = {"train": Split(["a", "b", "c"], [0, 1, -1])}
    with pytest.raises(DataError, match=r"hub:a, row 3: 'label' is outside 0..1"):
        load_dataset(DataConfig(name="hub:a"))


def test_a_failure_is_one_line_with_a_way_out(hub: dict[str, Any]) -> None:
    hub["found"] = ConnectionError("no route to host\nand a long story")
    with pytest.raises(DataError) as error:
        load_dataset(DataConfig(name="hub:some/reviews"))
    assert "ConnectionError: no route to host)" in str(error.value)
    assert "save_to_disk" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_without_splits_is_refused(hub: dict[str, Any]) -> None:
    hub["found"] = {}
    with pytest.raises(DataError, match="hub:a has no splits"):
        load_dataset(DataConfig(name="hub:a"))


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hub:a needs datasets; .*securefed\[hub\]"):
        load_dataset(DataConfig(name="hub:a"))


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets", reason="datasets (extra hub) is not installed")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    splits = {
        name: datasets.Dataset.from_dict(
            {"text": texts, "label": [0, 1] * (len(texts) // 2)}, features=features
        )
        for name, texts in (("train", [f"t{i}" for i in range(8)]), ("test", ["x", "y"]))
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    dataset = load_dataset(DataConfig(name=f"hub:{tmp_path / 'saved'}"), offline=True)
    assert dataset.classes == ("neg", "pos")
    assert (len(dataset.train), dataset.test.texts) == (8, ("x", "y"))
    with pytest.raises(DataError, match="could not be loaded"):
        load_dataset(DataConfig(name="hub:no/such-data-set"), offline=True)
