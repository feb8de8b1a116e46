"""The main job on the real models: MiniLM and SmolLM2 train under DP and leave what PEFT opens."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from securefed.federation import run
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian

GOOD = ("a fine film, warm and clever", "great phone, it works as promised", "I love this little book")
BAD = ("a dull film, cold and slow", "poor phone, it broke in a week", "I regret buying this book")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Sixty short reviews at three clients."""
    path = tmp_path / "reviews.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "client"])
        for i in range(60):
            rows.writerow(
                [
                    f"{(GOOD if i % 2 else BAD)[i // 2 % 3]}, number {i}",
                    "good" if i % 2 else "bad",
                    f"c{i % 3}",
                ]
            )
    return path


def job(reviews: Path, **model: Any) -> dict[str, Any]:
    return {
        "name": "real",
        "rounds": 2,
        "data": {
            "name": str(reviews),
            "client_column": "client",
            "clients": 3,
            "min_examples": 5,
            "max_length": 24,
        },
        "model": model,
        "train": {"steps": 1, "learning_rate": 1.0, "physical_tokens": 256},
        "privacy": {
            "unit": "example",
            "noise_multiplier": 0.8,
            "delta": 1e-3,
            "sample_rate": 0.4,
            "max_grad_norm": 1.0,
        },
        "server": {"optimizer": "fedadam", "learning_rate": 0.01, "tau": 1e-6},
        "evaluate": {"baselines": False, "every": 0},
    }


def check_folder(folder: Path, result: Any) -> dict[str, np.ndarray]:
    assert result.ledger is not None
    assert result.ledger.epsilon(1e-3) == pytest.approx(
        epsilon_of([SampledGaussian(0.8, 0.4, 2)], 1e-3), rel=1e-9
    )
    assert json.loads((folder / "privacy.json").read_text())["statement"]["unit"] == "example"
    tensors: dict[str, np.ndarray] = load_file(folder / "adapter" / "adapter_model.safetensors")
    b = [t for name, t in tensors.items() if "lora_B" in name]
    assert b
    assert all(np.abs(t).max() > 0 for t in b), "B began at zero, so an adapter that learned has moved it"
    return tensors


@pytest.mark.model
def test_minilm_trains_under_dp_and_peft_opens_its_adapter(
    reviews: Path, tmp_path: Path, require_model: Callable[[str], str]
) -> None:
    require_model("minilm")
    folder = tmp_path / "out"
    result = run(job(reviews, name="minilm", layers=1, rank=2), folder=folder)
    check_folder(folder, result)
    from peft import PeftModel
    from transformers import AutoModel

    from securefed.models import load_result
    from securefed.models.zoo import find_model

    base = AutoModel.from_pretrained(find_model("minilm").folder)
    opened = PeftModel.from_pretrained(base, folder / "adapter")
    assert any("lora" in name for name, _ in opened.named_parameters())
    assert load_result(folder / "adapter").classes == 2


@pytest.mark.model
def test_smollm2_trains_under_dp_as_a_language_model(
    reviews: Path, tmp_path: Path, require_model: Callable[[str], str]
) -> None:
    require_model("smollm2")
    folder = tmp_path / "out"
    result = run(job(reviews, name="smollm2", task="causal-lm", layers=2, rank=2), folder=folder)
    tensors = check_folder(folder, result)
    assert 1 < result.metrics["perplexity"] < 1e5
    assert all("layers.28" in n or "layers.29" in n for n in tensors), "the top two layers, as asked"


@pytest.mark.parametrize("adapter", ["rolora", "fedsa"])
def test_a_seq2seq_model_trains_under_dp(tmp_path: Path, adapter: str) -> None:
    """The loading code of the T5 family, on a tiny random T5; fedsa keeps each client's B in its checkpoint."""
    from tests.securefed.models import tiny

    path = tmp_path / "pairs.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "target", "client"])
        rows.writerows([[f"{(GOOD + BAD)[i % 6]} {i}", GOOD[i % 3], f"c{i % 3}"] for i in range(60)])
    config = job(path, name=str(tiny.tiny_t5(tmp_path / "t5")), task="seq2seq", rank=2, adapter=adapter)
    config["data"]["max_length"] = 12
    config["evaluate"]["baselines"] = True
    folder = tmp_path / "out"
    result = run(config, folder=folder)
    check = json.loads((folder / "privacy.json").read_text())["statement"]
    assert check["steps_settled"] == 3 * 2
    assert result.metrics["perplexity"] > 1
    before = json.loads((folder / "baselines.json").read_text())["before_training"]["perplexity"]
    assert before > 1
    moved = result.metrics["perplexity"] != before
    assert moved == (
        adapter != "fedsa"
    )  # whose B stays with the clients, so the server's adapter does nothing
    page = (folder / "report.html").read_text()
    assert "The perplexity beside what it was" in page
    assert "before training" in page
    newest = sorted((folder / "checkpoint").glob("round-*"))[-1]
    kept = [n for n in load_file(newest / "state.safetensors") if n.startswith("local.")]
    assert len(kept) == (3 if adapter == "fedsa" else 0)


def test_the_mails_job_plays_on_any_decoder_with_one_noise_for_all_and_states_computed_once(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config that ships, on a tiny Llama: a layer below the adapter sees each record once, in all five rounds."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from tests.securefed.models import tiny

    seen: dict[int, int] = {}
    forward = LlamaDecoderLayer.forward

    def counted(layer: Any, hidden_states: Any, *args: Any, **options: Any) -> Any:
        index = layer.self_attn.layer_idx
        seen[index] = seen.get(index, 0) + len(hidden_states)
        return forward(layer, hidden_states, *args, **options)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    changes = {
        "data.name": str(reviews),
        "data.client_column": "client",
        "data.clients": 3,
        "data.min_examples": 5,
        "data.max_length": 16,
        "model.name": str(tiny.tiny_llama(tmp_path / "llama", layers=3)),
        "model.vocabulary_sample": 16,
        "protection.min_survivors": 3,
        "privacy.delta": 1e-3,
        "privacy.sample_rate": 0.5,
        "rounds": 5,
    }
    folder = tmp_path / "out"
    config = Path(__file__).parents[2] / "configs" / "smollm2-mails.toml"
    result = run(str(config), [f"{key}={value}" for key, value in changes.items()], folder=folder)
    statement = json.loads((folder / "privacy.json").read_text())["statement"]
    assert statement["steps_settled"] == 3 * 5
    assert result.ledger is not None
    assert 4.0 < result.ledger.epsilon(1e-3) <= 8.0
    assert result.metrics["perplexity"] > 1
    assert (
        seen[0] <= 60 + 5
    )  # each record once, and the first of each shard to see whether all fit, the tests' twice
    assert seen[2] > seen[0]
