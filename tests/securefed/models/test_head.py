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
from securefed.models import TaskModel, load_model, load_result
from tests.securefed.models import tiny


def shaken(folder: str, **changes: Any) -> tuple[TaskModel, Batch]:
    """Random trainable tensors, so that adapters and head do something, and a batch."""
    model = load_model(ModelConfig(**{"name": folder, "rank": 2, **changes}), classes=2, max_length=16)
    noise = np.random.default_rng(1).normal(0, 0.2, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)
    return model, collate(model.encode(tiny.examples(6), 16), range(6))


def sized(states: torch.Tensor, kind: str) -> torch.Tensor:
    """A decoder's states are scaled to length one before their mean is taken."""
    return states if kind == "bert" else F.normalize(states, dim=-1)


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
        sink = 0 if kind == "bert" else 1  # a decoder's first position is not pooled
        means = [
            sized(h[m.bool()][min(sink, int(m.sum()) - 1) :], kind).mean(0)
            for h, m in zip(out.hidden_states[i], batch.attention_mask, strict=True)
        ]
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


@pytest.mark.parametrize("adapter", ["head", "lora"])
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_what_lies_above_the_layers_read_is_left_out_and_the_same_is_read(
    kind: str, adapter: str, folders: dict[str, str]
) -> None:
    model, batch = shaken(folders[kind], adapter=adapter, layers=1, head_layers=(0, 1))
    whole = load_model(
        ModelConfig(name=folders[kind], adapter=adapter, rank=2, layers=[0], head_layers=(0, 1, 2)),
        classes=2,
        max_length=16,
    )
    assert model.module.cut
    assert not whole.module.cut
    assert sum(p.numel() for p in model.module.parameters()) < sum(
        p.numel() for p in whole.module.parameters()
    )
    for name, parameter in model.parameters.items():
        if not name.startswith("head."):
            whole.parameters[name].data.copy_(parameter.data)
    read, beside = model.module.features(batch), whole.module.features(batch)
    torch.testing.assert_close(read * 2**0.5, beside[:, : read.shape[1]] * 3**0.5)


def test_all_weights_are_not_trained_below_a_head_that_leaves_out_the_last_layer(bert: str) -> None:
    with pytest.raises(ModelError, match="whose weights would not train"):
        load_model(ModelConfig(name=bert, adapter="full", head_layers=(1,)), classes=2, max_length=16)


def test_an_adapter_in_a_model_that_was_cut_off_is_read_back_from_its_folder(
    bert: str, tmp_path: Any
) -> None:
    model, batch = shaken(bert, head_layers=(0, 1), layers=1)
    model.save_adapter(tmp_path)
    again = load_result(tmp_path, base=bert, device="cpu")
    torch.testing.assert_close(again.logits(batch), model.logits(batch))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_size_of_a_decoders_first_state_does_not_reach_the_head(
    kind: str, folders: dict[str, str]
) -> None:
    model, batch = shaken(folders[kind], adapter="head", head_layers=(0,))
    before = model.module.features(batch)
    table = model.module.backbone.get_input_embeddings()
    first = torch.tensor(sorted({int(row[0]) for row in batch.input_ids}))
    once = [
        i
        for i, row in enumerate(batch.input_ids)
        if batch.attention_mask[i].sum() > 1 and not torch.isin(row[1:], first).any()
    ]
    assert once
    with torch.no_grad():
        table.weight[first] *= 1000
    torch.testing.assert_close(model.module.features(batch)[once], before[once])


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


def test_a_model_that_was_cut_off_has_another_digest_than_the_whole_one_read_at_its_end(bert: str) -> None:
    def load(asked: Any) -> TaskModel:
        return load_model(ModelConfig(name=bert, adapter="head", head_layers=asked), classes=2, max_length=16)

    assert load((1,)).module.cut
    assert load((1,)).base_digest != load(1).base_digest


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (3, "more than the 2"),
        ((0, 3), "some of 0"),
        ((-1, 2), "some of 0"),
        ((), "some of 0"),
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


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("adapter", ["lora", "prompt", "prefix", "ia3"])
def test_adapters_of_a_model_that_was_cut_off_open_as_the_readme_says(
    kind: str, adapter: str, folders: dict[str, str], tmp_path: Any
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    model, batch = shaken(folders[kind], adapter=adapter, head_layers=(1,), virtual_tokens=3)
    model.save_adapter(tmp_path)
    told = (tmp_path / "README.md").read_text(encoding="utf-8")
    again = load_result(tmp_path, base=folders[kind], device="cpu")
    torch.testing.assert_close(again.logits(batch), model.logits(batch))
    assert ("PeftModel.from_pretrained" in told) == (adapter != "prefix")
    assert ("first token" in told) == (kind == "llama" and adapter != "prompt")
    if adapter == "prefix":
        return
    opened = PeftModel.from_pretrained(AutoModel.from_pretrained(folders[kind]), str(tmp_path)).eval()
    ids, mask = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        hidden = opened(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        hidden, keep = sized(hidden[:, -ids.shape[1] :], kind), mask.clone()
        if "first token" in told:
            keep[keep.sum(1) > 1, 0] = 0
        features = F.normalize((hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True), dim=-1)
    expected = F.linear(features, model.parameters["head.weight"], model.parameters["head.bias"])
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-4, atol=1e-5)
