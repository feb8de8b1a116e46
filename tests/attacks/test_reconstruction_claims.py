"""The claims about real models and images, by the benchmark that prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from securefed_benchmarks import reconstruction

Require = Callable[[str], Any]


def least(share: str) -> int:
    return int(share.split("/")[0])


@pytest.mark.slow
@pytest.mark.model("minilm")
def test_minilm_gives_tokens_positions_and_texts_exactly(require_model: Require) -> None:
    require_model("minilm")
    rows = list(reconstruction.minilm((1, 2)))
    assert [(r["pairs_recall"], r["pairs_precision"]) for r in rows] == [(1.0, 1.0)] * 2
    assert [r["texts_exact"] for r in rows] == ["1/1", "2/2"]
    assert not any(r["texts_false"] for r in rows)


@pytest.mark.slow
@pytest.mark.model("smollm2")
def test_smollm2_gives_four_texts_but_for_their_last_tokens(require_model: Require) -> None:
    require_model("smollm2")
    (row,) = reconstruction.smollm2((4,))
    assert row["false_tokens"] == row["texts_false"] == 0
    assert least(row["tokens"]) >= 44
    assert row["texts_exact_but_last_token"] == "4/4"


@pytest.mark.slow
@pytest.mark.model("smollm2")
def test_smollm2s_lora_rounds_leak_as_the_budget_predicts(require_model: Require) -> None:
    require_model("smollm2")
    rows = {row["round"]: row for row in reconstruction.lora()}
    delta, first = rows["sgd, 10 steps, r=8"], rows["first gradient, r=8"]
    assert least(delta["tokens"]) >= 20
    assert delta["false_tokens"] == 0
    assert first["tokens"].startswith("0/")
    assert first["false_tokens"] == 0
    for name in ("sgd, 10 steps, r=8", "first gradient, r=8", "first gradient, r=64"):
        assert rows[name]["measured"] == rows[name]["predicted"], rows[name]


@pytest.mark.slow
@pytest.mark.model("smollm2")
def test_adamw_ends_the_exact_test_and_not_the_ranking(require_model: Require) -> None:
    require_model("smollm2")
    plain, estimated = reconstruction.adamw()
    assert plain["exact_test"] == 0
    assert 0.5 < plain["own_share"] < 0.75
    assert plain["wrong_share"] < 0.15
    assert estimated["own_share"] > plain["own_share"] + 0.08
    assert estimated["wrong_share"] <= plain["wrong_share"]


@pytest.mark.dataset("fashion-mnist")
def test_linear_inversion_and_labels_on_fashion_mnist(require_dataset: Require) -> None:
    require_dataset("fashion-mnist")
    first, *batches = reconstruction.linear(50)
    assert first["psnr_min_db"] == "exact" or first["psnr_min_db"] > 100
    assert first["labels_right"] == "50/50"
    assert all(row["labels_wrong_share"] <= 1 / row["batch"] for row in batches)


@pytest.mark.dataset("fashion-mnist")
@pytest.mark.parametrize(
    ("images", "bins", "clients", "share"), [(64, 256, 1, 0.78), (64, 1024, 1, 0.92), (16, 1024, 10, 0.85)]
)
def test_an_imprint_reads_the_share_of_images_it_should(
    images: int, bins: int, clients: int, share: float, require_dataset: Require
) -> None:
    """The last one is a secure sum of ten clients; it does not stop a malicious server."""
    require_dataset("fashion-mnist")
    found = [reconstruction.imprint_share(images, bins, clients, 0.0, seed) for seed in range(5)]
    assert sum(found) / 5 == pytest.approx(share, abs=0.06)


@pytest.mark.dataset("fashion-mnist")
def test_noise_ends_the_imprint(require_dataset: Require) -> None:
    require_dataset("fashion-mnist")
    assert reconstruction.imprint_share(16, 256, 1, 0.01, 0) == 0
