from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import Batch, collate
from securefed.errors import ModelError
from securefed.models import TaskModel, load_model
from tests.securefed.models import tiny


def batch_of(model: TaskModel, n: int = 6) -> Batch:
    return collate(model.encode(tiny.examples(n), 16), range(n))


def shake(model: TaskModel) -> None:
    """Random trainable tensors, so that adapters and head do something."""
    noise = np.random.default_rng(1).normal(0, 0.2, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_logits_are_the_head_on_the_normalized_mean_of_the_last_hidden_states(
    kind: str, folders: dict[str, str]
) -> None:
    from transformers import AutoModel

    model = load_model(ModelConfig(name=folders[kind], adapter="head"), classes=3, max_length=16)
    shake(model)
    batch = batch_of(model)
    oracle = AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        hidden = oracle(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    kept = [h[m.bool()] for h, m in zip(hidden, batch.attention_mask, strict=True)]
    if kind != "bert":  # a decoder's sink is not pooled, and its other states are scaled to length one
        kept = [F.normalize(h[min(1, len(h) - 1) :], dim=-1) for h in kept]
    rows = [h.mean(0) for h in kept]
    features = torch.stack([row / row.norm() for row in rows])
    expected = F.linear(features, model.parameters["head.weight"], model.parameters["head.bias"])
    torch.testing.assert_close(model.logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_the_head_starts_at_zero_so_that_every_class_is_as_likely(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=4, max_length=16)
    batch = collate(model.encode(tiny.examples(4, classes=4), 16), range(4))
    torch.testing.assert_close(model.losses(batch), torch.full((4,), float(np.log(4))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cached_prefix_gives_the_same_logits_at_every_stage(dtype: str, bert: str) -> None:
    config = ModelConfig(name=bert, dtype=dtype)  # type: ignore[arg-type]  # parametrize gives plain strings
    model = load_model(config, classes=2, max_length=16)
    shake(model)
    batch = batch_of(model)
    full = model.logits(batch)
    assert model.depth == 3
    for cut in range(1, model.depth + 1):
        hidden = model.prefix(batch, cut)
        assert hidden.dtype == torch.float32
        assert not hidden.requires_grad
        assert hidden.dim() == (2 if cut == model.depth else 3)
        cached = Batch(hidden=hidden, depth=cut, attention_mask=batch.attention_mask, labels=batch.labels)
        torch.testing.assert_close(model.logits(cached), full, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.losses(cached), model.losses(batch), rtol=1e-5, atol=1e-6)


def test_a_prefix_can_be_extended_from_a_lower_one(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    batch = batch_of(model)
    lower = Batch(hidden=model.prefix(batch, 1), depth=1, attention_mask=batch.attention_mask)
    torch.testing.assert_close(model.prefix(lower, 2), model.prefix(batch, 2))
    torch.testing.assert_close(model.prefix(lower, 3), model.prefix(batch, 3))
    upper = Batch(hidden=model.prefix(batch, 2), depth=2, attention_mask=batch.attention_mask)
    with pytest.raises(ModelError, match="after layer 2 cannot give"):
        model.prefix(upper, 1)


def test_cached_states_padded_further_give_the_same_logits(bert: str) -> None:
    """The trainer pads a batch anew: records of other lengths come together later."""
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    shake(model)
    alone = batch_of(model, 1)
    hidden = model.prefix(alone, 1)
    wider = torch.cat([hidden, torch.full((1, 4, hidden.shape[-1]), 9.0)], 1)
    mask = torch.cat([alone.attention_mask, torch.zeros(1, 4, dtype=torch.int64)], 1)
    padded = Batch(hidden=wider, depth=1, attention_mask=mask)
    torch.testing.assert_close(model.logits(padded), model.logits(alone), rtol=1e-5, atol=1e-6)


def test_a_record_means_the_same_in_any_batch(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    shake(model)
    encoded = model.encode(tiny.examples(), 16)
    together = model.losses(collate(encoded, range(6)))
    for i in range(6):
        torch.testing.assert_close(model.losses(collate(encoded, [i]))[0], together[i], rtol=1e-4, atol=1e-5)


def test_cut_is_the_lowest_layer_that_trains(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    names = model.layout.names
    assert model.cut(names) == 0
    assert model.cut([n for n in names if ".layer.1." in n or n.startswith("head.")]) == 1
    assert model.cut(["head.weight", "head.bias"]) == model.depth == 3
    assert model.cut([]) == 3
    with pytest.raises(ModelError, match="not a trainable tensor"):
        model.cut(["encoder.layer.9.lora_A"])


def test_full_fine_tuning_caches_nothing(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, adapter="full"), classes=2, max_length=16)
    assert model.cut(model.layout.names) == 0
    with pytest.raises(ModelError, match="no cacheable stage"):
        model.prefix(batch_of(model), 0)


def test_all_weights_of_the_top_layer_leave_what_lies_below_to_the_cache(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, adapter="full", layers=1), classes=2, max_length=16)
    trained = {n for n, part in model.part_of.items() if part == "base"}
    assert trained
    assert all(".layer.1." in n for n in trained), trained
    assert model.cut(model.layout.names) == 1
    with pytest.raises(ModelError, match="more than the 2 layers"):
        load_model(ModelConfig(name=bert, adapter="full", layers=3), classes=2, max_length=16)


def test_a_decoder_caches_its_pooled_features_alone(llama: str) -> None:
    model = load_model(ModelConfig(name=llama), classes=2, max_length=16)
    batch = batch_of(model)
    assert model.depth == 1
    assert model.cut(["head.bias"]) == 1
    assert model.cut(model.layout.names) == 0
    cached = Batch(hidden=model.prefix(batch, 1), depth=1, labels=batch.labels)
    torch.testing.assert_close(model.logits(cached), model.logits(batch))


def test_with_dropout_nothing_is_cached_and_every_dropout_has_the_probability(
    folders: dict[str, str],
) -> None:
    for kind, task in (
        ("bert", "classification"),
        ("llama", "causal-lm"),
        ("gpt2", "causal-lm"),
        ("t5", "seq2seq"),
    ):
        config = replace(ModelConfig(dropout=0.3), name=folders[kind], task=task)  # type: ignore[arg-type]  # as above
        model = load_model(config, classes=2, max_length=16)
        found = [m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)]
        assert found == [0.3] * len(found)
        assert len(found) > 0
        assert model.depth == 0
        encoded = model.encode(tiny.examples(targets=True), 16)
        shake(model)
        batch = collate(encoded, range(6))
        assert not torch.equal(model.losses(batch), model.losses(batch))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_without_dropout_training_mode_is_deterministic(kind: str, folders: dict[str, str]) -> None:
    task = {"bert": "classification", "t5": "seq2seq"}.get(kind, "causal-lm")
    config = replace(ModelConfig(), name=folders[kind], task=task)  # type: ignore[arg-type]  # as above
    model = load_model(config, classes=2, max_length=16)
    assert model.module.training
    batch = collate(model.encode(tiny.examples(targets=True), 16), range(6))
    trained = model.losses(batch)
    model.module.eval()
    assert torch.equal(trained, model.losses(batch))


def test_long_texts_take_the_fused_attention_and_agree(bert: str) -> None:
    from securefed.models.backbone import load_backbone

    def load(length: int) -> str:
        backbone = load_backbone(
            Path(bert),
            "classification",
            dtype="float32",
            dropout=0.0,
            max_length=length,
            device=torch.device("cpu"),
        )
        return str(backbone.config._attn_implementation)

    assert load(16) == "eager"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("securefed.models.backbone.EAGER_UP_TO", 8)
        assert load(16) == "sdpa"
        fused = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    eager = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    batch = batch_of(eager)
    torch.testing.assert_close(
        fused.prefix(batch, 2)[batch.attention_mask == 1],
        eager.prefix(batch, 2)[batch.attention_mask == 1],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
def test_labels_outside_the_range_are_refused(labels: list[int], bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    records = replace(tiny.examples(2), labels=np.array(labels))
    with pytest.raises(ModelError, match="labels must be 0 to 1"):
        model.encode(records, 16)
    with pytest.raises(ModelError, match="needs a label"):
        model.encode(replace(records, labels=None), 16)
