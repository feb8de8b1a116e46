"""Prompt, prefix and IA3: what they change, what PEFT reads of them, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from securefed.config import ModelConfig, load_config
from securefed.data.batch import Batch, collate
from securefed.errors import ConfigError, ModelError
from securefed.models import TaskModel, load_model, load_result
from tests.securefed.models import tiny

ADAPTERS = ("prompt", "prefix", "ia3")


def load(folder: str, **options: Any) -> tuple[TaskModel, Batch]:
    config = ModelConfig(name=folder, **{"virtual_tokens": 3, **options})
    model = load_model(
        config, classes=2 if config.task == "classification" else 0, unit="example", max_length=16
    )
    return model, collate(model.encode(tiny.examples(5), 16), range(5))


def moved(model: TaskModel, scale: float = 0.3) -> TaskModel:
    noise = np.random.default_rng(3).normal(0, scale, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)
    return model


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_adapter_changes_the_answer_and_nothing_else_trains(
    adapter: str, kind: str, folders: dict[str, str]
) -> None:
    model, batch = load(folders[kind], adapter=adapter)
    assert set(model.part_of.values()) == {"adapter", "head"}
    trained = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert len(trained) == len(model.parameters)
    torch.nn.init.normal_(model.parameters["head.weight"], generator=torch.Generator().manual_seed(0))
    before = model.logits(batch).detach()
    part = model.layout.select(lambda n: model.part_of[n] == "adapter")
    noise = np.random.default_rng(3).normal(0, 0.5, part.size).astype(np.float32)
    model.write(model.read(part) + noise, part)
    after = model.logits(batch).detach()
    assert float((after - before).abs().max()) > 1e-3


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_padding_does_not_change_a_record(adapter: str, bert: str) -> None:
    model, batch = load(bert, adapter=adapter)
    moved(model)
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    whole = model.logits(batch).detach()
    for i in range(len(batch)):
        length = int(batch.attention_mask[i].sum())
        alone = Batch(
            input_ids=batch.input_ids[i : i + 1, :length],
            attention_mask=batch.attention_mask[i : i + 1, :length],
        )
        torch.testing.assert_close(model.logits(alone).detach()[0], whole[i], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]
)
def test_the_folder_opens_in_peft_and_answers_the_same(
    adapter: str, kind: str, task: str, folders: dict[str, str], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForCausalLM

    model, batch = load(folders[kind], adapter=adapter, task=task)
    moved(model)
    model.save_adapter(tmp_path / "out")
    again = load_result(tmp_path / "out", base=None, device="cpu")
    np.testing.assert_array_equal(again.read(again.layout), model.read(model.layout))
    torch.testing.assert_close(again.logits(batch), model.logits(batch))
    base = (AutoModel if task == "classification" else AutoModelForCausalLM).from_pretrained(folders[kind])
    opened = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    assert batch.input_ids is not None
    out = opened(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    t = batch.input_ids.shape[1]
    if task == "causal-lm":
        torch.testing.assert_close(out.logits[:, -t:], model.logits(batch), atol=1e-4, rtol=1e-4)
        return
    from securefed.models.encoder import pool

    features = pool(out.last_hidden_state[:, -t:], batch.attention_mask)
    torch.testing.assert_close(
        features @ model.parameters["head.weight"].T + model.parameters["head.bias"],
        model.logits(batch),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_machine_starts_from_the_same_adapter(adapter: str, bert: str) -> None:
    first, second, other = (load(bert, adapter=adapter, seed=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first.read(first.layout), second.read(second.layout))
    assert first.base_digest == second.base_digest
    if adapter != "ia3":  # scales start at one whatever the seed
        assert not np.array_equal(first.read(first.layout), other.read(other.layout))


def test_ia3_starts_as_the_base_itself(bert: str) -> None:
    from transformers import AutoModel

    model, batch = load(bert, adapter="ia3")
    base = AutoModel.from_pretrained(bert).eval()
    model.module.eval()
    out = model.module.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask)  # type: ignore[union-attr,operator]  # a text model
    expected = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)


def test_more_virtual_tokens_than_positions_are_refused(bert: str) -> None:
    with pytest.raises(
        ModelError, match=r"virtual_tokens=20 and data\.max_length=16 need more than the 32 positions"
    ):
        load(bert, adapter="prompt", virtual_tokens=20)


def test_targets_that_do_not_exist_are_refused(bert: str) -> None:
    with pytest.raises(ModelError, match="no module named 'nothing'"):
        load(bert, adapter="ia3", targets=("nothing",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.adapter": "prompt", "model.layers": 1}, 'set model.layers = "all"'),
        ({"model.adapter": "prefix", "model.targets": ["query"]}, "leave model.targets out"),
        ({"model.adapter": "prompt", "model.gradient_checkpointing": True}, "gradient_checkpointing = false"),
        ({"model.adapter": "prefix", "model.task": "seq2seq"}, "use ia3 or a LoRA adapter"),
        ({"model.adapter": "ia3", "model.dropout": 0.1}, "set model.dropout = 0"),
        ({"model.adapter": "prompt", "model.virtual_tokens": 0}, "at least 1"),
    ],
)
def test_options_an_adapter_does_not_have_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config({"train": {"steps": 1}}, options)
