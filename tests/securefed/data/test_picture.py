"""The picture of the shards is drawn, for few and many clients, without choosing a backend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from securefed.data import plot_shards
from securefed.data.records import Examples, Shard


def shards(clients: int, classes: int) -> list[Shard]:
    generator = np.random.default_rng(0)

    def part(n: int) -> Examples:
        labels = generator.integers(0, classes, n) if classes else None
        return Examples(texts=("a text",) * n, labels=labels)

    return [Shard(k, f"client/{k} " + "x" * (k % 40), part(5 + k), part(2), "") for k in range(clients)]


@pytest.mark.parametrize(
    ("clients", "classes"), [(1, 2), (3, 0), (12, 8), (30, 10), (31, 25), (100, 2), (100, 0)]
)
def test_a_picture_is_written(tmp_path: Path, clients: int, classes: int) -> None:
    path = plot_shards(
        shards(clients, classes), [f"class {i}" for i in range(classes)], tmp_path / "shards.png"
    )
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert 900 <= width <= 2000
    assert 200 <= height <= 1500


def test_an_svg_holds_names_classes_and_totals(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        text = plot_shards(shards(3, 2), ["ham", "spam"], tmp_path / "shards.svg").read_text()
    for word in ("client/0", "client/2 xx", "ham", "spam", "18 training records at 3 clients"):
        assert word in text


def test_no_window_toolkit_is_touched(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_shards(shards(3, 2), ["a", "b"], str(tmp_path / "shards.png"))
    assert ("matplotlib.pyplot" in sys.modules) == before
