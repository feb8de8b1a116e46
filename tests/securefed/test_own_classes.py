"""Models and data by "package.module:Class": what is no model and no data set is refused in one line."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from securefed.config import load_config
from securefed.data import load_dataset
from securefed.errors import ConfigError, DataError, ModelError
from securefed.models import load_model
from securefed.registry import is_path


class Net(torch.nn.Sequential):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))


class NoNet:
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None: ...


class NoData:
    def __call__(self, task: str) -> str:
        return task


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_classes")
    for thing in (Net, NoNet, NoData):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "own_classes", module)


def config(**changed: Any) -> Any:
    return load_config(
        {"train": {"epochs": 1}, "model": {"name": "own_classes:Net", "adapter": "full"}, **changed}
    )


def test_a_net_of_ones_own_is_drawn_from_the_seed_alone() -> None:
    found = [load_model(config().model, classes=3, image_shape=(1, 4, 4)) for _ in range(2)]
    assert (found[0].read(found[0].layout) == found[1].read(found[1].layout)).all()


def test_a_class_that_is_no_net_is_refused() -> None:
    job = config(model={"name": "own_classes:NoNet", "adapter": "full"})
    with pytest.raises(ModelError, match=r"no torch\.nn\.Module"):
        load_model(job.model, classes=3, image_shape=(1, 4, 4))


def test_a_class_that_gives_no_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="gave a str"):
        load_dataset(config(data={"name": "own_classes:NoData"}).data)


def test_a_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot import data set"):
        load_dataset(config(data={"name": "own_classes:Nothing"}).data)


def test_a_net_of_ones_own_has_no_adapters() -> None:
    with pytest.raises(ConfigError, match="has no adapters"):
        config(model={"name": "own_classes:Net", "adapter": "lora"})


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a:B", True),
        ("a.b_c:D", True),
        ("hub:imdb", False),
        ("digits", False),
        ("C:\\x.csv", False),
        ("a/b:C", False),
    ],
)
def test_what_is_a_path_to_a_class(name: str, wanted: bool) -> None:
    assert is_path(name) is wanted
