"""A head that reads several layers: what it computes, what is cached for it, what its adapters get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.config import ModelConfig, load_config
from securefed.data.batch import Batch, collate
from securefed.errors import ConfigError, ModelError
from securefed.models import TaskModel, load_model
from tests.securefed.models import tiny


def shaken(folder: str, **changes: Any) -> tuple[TaskModel, Batch]:
    """Random trainable tensors, so that adapters and head do something, and a batch."""
    model = load_model(ModelConfig(**{"name": folder, "rank": 2, **changes}), classes=2, max_length=16)
    noise = np.random.default_rng(1).normal(0, 0.2, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)
    return model, collate(model.encode(tiny.examples(6), 16), range(6))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize(("asked", "reads"), [(2, (1, 2)), ((0, 2), (0, 2)), ((2, 0, 1), (0, 1, 2))])
def test_logits_are_the_head_on_each_layers_normalized_mean_side_by_side(
    kind: str, asked: Any, reads: tuple[int, ...], folders: dict[str, str]
) -> None:
    from transformers import AutoModel

    model, batch = shaken(folders[kind], adapter="head", head_layers=asked)
    oracle = AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        out = oracle(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        )
    columns = []
    for i in reads:
        means = [h[m.bool()].mean(0) for h, m in zip(out.hidden_states[i], batch.attention_mask, strict=True)]
        columns.append(torch.stack([mean / mean.norm() for mean in means]))
    features = torch.cat(columns, 1) / len(reads) ** 0.5
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    expected = F.linear(features, model.parameters["head.weight"], model.parameters["head.bias"])
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_middle_layer_alone_can_be_read_by_a_head_without_adapters(bert: str) -> None:
    model, batch = shaken(bert, adapter="head", head_layers=(1,))
    whole = model.prefix(batch, model.depth)
    hidden = model.prefix(batch, 1)
    means = [h[m.bool()].mean(0) for h, m in zip(hidden, batch.attention_mask, strict=True)]
    torch.testing.assert_close(whole, torch.stack([mean / mean.norm() for mean in means]))


@pytest.mark.parametrize("asked", [2, (0, 2), (0, 1, 2)])
def test_every_stage_continues_to_the_same_logits_with_what_lies_beside_it(asked: Any, bert: str) -> None:
    model, batch = shaken(bert, head_layers=asked)
    full, reads = model.logits(batch), model.module.reads
    for cut in range(1, model.depth + 1):
        hidden, below = model.stage(batch, cut)
        before = 0 if cut == model.depth else sum(i < cut for i in reads)
        assert (0 if below is None else below.shape[1]) == before
        cached = Batch(hidden=hidden, depth=cut, below=below, attention_mask=batch.attention_mask)
        torch.testing.assert_close(model.logits(cached), full, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.prefix(cached, model.depth), model.prefix(batch, model.depth))


def test_states_without_what_the_head_reads_below_them_are_refused(bert: str) -> None:
    model, batch = shaken(bert, head_layers=(0, 2))
    alone = Batch(hidden=model.prefix(batch, 1), depth=1, attention_mask=batch.attention_mask)
    with pytest.raises(ModelError, match=r"TaskModel\.stage"):
        model.logits(alone)


def test_features_of_unit_norm_bound_the_heads_gradient_of_each_record(bert: str) -> None:
    """|softmax - onehot| <= sqrt(2) and |(features, 1)| = sqrt(2), whatever the weights: at most 2."""
    model, batch = shaken(bert, adapter="head", head_layers=2)
    model.write(50 * model.read(model.layout), model.layout)
    for i in range(len(batch)):
        model.module.zero_grad()
        model.losses(batch)[i].backward()
        norm = sum(float(p.grad.square().sum()) for p in model.parameters.values() if p.grad is not None)
        assert norm**0.5 <= 2 + 1e-5


def test_a_head_over_more_layers_is_another_function_of_the_same_vector(bert: str) -> None:
    def load(asked: Any) -> TaskModel:
        return load_model(ModelConfig(name=bert, rank=2, head_layers=asked), classes=2, max_length=16)

    assert load(1).module.reads == (2,)
    assert load(2).base_digest == load((1, 2)).base_digest
    assert len({load(asked).base_digest for asked in (1, 2, (0, 2))}) == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (3, "more than the 2"),
        ((0, 3), "some of 0"),
        ((-1, 2), "some of 0"),
        ((), "some of 0"),
        ((1,), "last layer"),
    ],
)
def test_layers_that_cannot_be_read_are_refused(asked: Any, message: str, bert: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(ModelConfig(name=bert, rank=2, head_layers=asked), classes=2, max_length=16)


@pytest.mark.parametrize(
    ("table", "message"),
    [({"head_layers": 0}, "last k >= 1"), ({"head_layers": 2, "task": "causal-lm"}, "is for classification")],
)
def test_a_head_that_cannot_be_is_refused_before_anything_is_read(
    table: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"train": {"steps": 1}, "model": table})


def test_the_readme_of_a_result_says_what_the_head_reads(bert: str, tmp_path: Any) -> None:
    model, _ = shaken(bert, head_layers=2)
    model.save_adapter(tmp_path)
    assert "[1, 2]" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert replace(model.config, head_layers=1) != model.config
