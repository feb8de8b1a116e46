"""The recipe bench plays what a federation plays, and judges it on records that nobody trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.federation import run
from securefed.models import load_result
from securefed_benchmarks import recipe
from tests.securefed.models import tiny


@pytest.fixture
def job(home: Path, tmp_path: Path) -> dict[str, Any]:
    """Two clients of unequal size, no noise, every record in every step: nothing is left to chance."""
    data = tmp_path / "records.csv"
    rows = [f"{tiny.TEXTS[i % 6]} {'good ' * (i % 5)},{i % 2},c{i % 3 > 0:d}" for i in range(60)]
    data.write_text("text,label,client\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return {
        "rounds": 4,
        "weights": "size",
        "data": {
            "name": str(data),
            "client_column": "client",
            "clients": 2,
            "max_length": 16,
            "min_examples": 4,
        },
        "model": {
            "name": str(tiny.tiny_bert(tmp_path / "bert")),
            "adapter": "lora",
            "rank": 2,
            "layers": 1,
            "head_layers": 2,
            "head_centre": True,
        },
        "algorithm": {"name": "fedavg", "head_rounds": 1},
        "train": {"steps": 1, "learning_rate": 1.0, "physical_tokens": 128},
        "privacy": {
            "unit": "example",
            "noise_multiplier": 0.0,
            "delta": 1e-3,
            "sample_rate": 1.0,
            "max_grad_norm": 0.3,
        },
        "server": {"optimizer": "fedavgm", "learning_rate": 0.5, "schedule": "linear"},
        "evaluate": {"baselines": False, "every": 0},
        "engine": {"threads": 1},
    }


def test_one_client_with_all_records_plays_the_federations_rounds(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(job, folder=tmp_path / "out")
    model = load_result(result.folder / "adapter")
    monkeypatch.setattr(recipe, "validation_split", lambda train: (train, train))
    bench = recipe.build(load_config(job))
    start = bench.model.read(bench.model.layout)
    found = recipe.play(bench, start, 4)
    np.testing.assert_allclose(found, model.read(model.layout), atol=2e-5)
    assert np.abs(found - start).max() > 0.01


def test_noise_is_that_of_all_clients_together(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clients of one size each add sigma C / (q n / 4); weighed by 1/4 the sum has 2 sigma C / (q n)."""
    seen: list[Any] = []

    class Seen(Exception):
        """Ends the round once its mechanism is known."""

    def watch(*_: Any, dp: Any, **__: Any) -> None:
        seen.append(dp)
        raise Seen

    monkeypatch.setattr(recipe, "train_locally", watch)
    job["privacy"]["noise_multiplier"] = 0.8
    job["data"] |= {"clients": 4, "partition": "iid"}
    bench = recipe.build(load_config(job))
    with pytest.raises(Seen):
        recipe.play(bench, bench.model.read(bench.model.layout), 1)
    assert seen[0].noise_multiplier == pytest.approx(0.8 * math.sqrt(4))
    assert seen[0].expected_batch == len(bench.train)


def test_no_document_is_on_both_sides(job: dict[str, Any]) -> None:
    from securefed.data import load_dataset

    train = load_dataset(load_config(job).data).train
    used, held = recipe.validation_split(train)
    assert len(used) + len(held) == len(train)
    assert not set(used.documents) & set(held.documents)
    assert 0 < len(held) < len(used)


@pytest.mark.parametrize("change", [{"train": {"steps": 2}}, {"privacy": {"unit": "none"}}])
def test_what_one_client_cannot_stand_for_is_refused(job: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps = 1"):
        recipe.build(load_config({**job, **change}))


def test_the_first_head_of_tangents_is_not_judged_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["recipe", "--config", "configs/sentiment-central.toml"])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "play both with --whole" in capsys.readouterr().err
