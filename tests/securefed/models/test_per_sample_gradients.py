"""Opacus' hooks on every kind of model we load, against autograd run on one record at a time."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks

from securefed.config import ModelConfig
from securefed.data.batch import Batch, collate
from securefed.data.records import Examples
from securefed.models import TaskModel, load_model
from tests.securefed.models import tiny

CASES = {
    "bert-rolora": ("bert", ModelConfig()),
    "bert-ffa": ("bert", ModelConfig(adapter="ffa")),
    "bert-all-linears": ("bert", ModelConfig(adapter="lora", targets=("query", "key", "value", "dense"))),
    "bert-top-layer-rslora": ("bert", ModelConfig(layers=1, rslora=True, rank=4)),
    "bert-bfloat16": ("bert", ModelConfig(dtype="bfloat16")),
    "bert-head": ("bert", ModelConfig(adapter="head")),
    "bert-head-of-three": ("bert", ModelConfig(head_layers=(0, 1, 2))),
    "llama-head-of-two": ("llama", ModelConfig(head_layers=2)),
    "bert-full": ("bert", ModelConfig(adapter="full")),
    "bert-checkpointing": ("bert", ModelConfig(gradient_checkpointing=True)),
    "llama-classification": ("llama", ModelConfig()),
    "llama-rolora": ("llama", ModelConfig(task="causal-lm")),
    "llama-ffa": ("llama", ModelConfig(task="causal-lm", adapter="ffa")),
    "llama-bfloat16": ("llama", ModelConfig(task="causal-lm", dtype="bfloat16")),
    "llama-sampled-vocabulary": ("llama", ModelConfig(task="causal-lm", vocabulary_sample=16)),
    "llama-tied-full": ("llama", ModelConfig(task="causal-lm", adapter="full")),
    "llama-checkpointing": ("llama", ModelConfig(task="causal-lm", gradient_checkpointing=True)),
    "gpt2-transposed": ("gpt2", ModelConfig(task="causal-lm")),
    "gpt2-full": ("gpt2", ModelConfig(task="causal-lm", adapter="full")),
    "bert-prompt": ("bert", ModelConfig(adapter="prompt", virtual_tokens=3)),
    "bert-prefix": ("bert", ModelConfig(adapter="prefix", virtual_tokens=3)),
    "bert-ia3": ("bert", ModelConfig(adapter="ia3")),
    "bert-ia3-bfloat16": ("bert", ModelConfig(adapter="ia3", dtype="bfloat16")),
    "llama-prompt-classification": ("llama", ModelConfig(adapter="prompt", virtual_tokens=3)),
    "llama-prompt": ("llama", ModelConfig(task="causal-lm", adapter="prompt", virtual_tokens=3)),
    "llama-prefix": ("llama", ModelConfig(task="causal-lm", adapter="prefix", virtual_tokens=3)),
    "llama-ia3": ("llama", ModelConfig(task="causal-lm", adapter="ia3")),
    "gpt2-prompt": ("gpt2", ModelConfig(task="causal-lm", adapter="prompt", virtual_tokens=3)),
    "gpt2-prefix": ("gpt2", ModelConfig(task="causal-lm", adapter="prefix", virtual_tokens=3)),
    "gpt2-ia3": ("gpt2", ModelConfig(task="causal-lm", adapter="ia3")),
    "t5-ia3": ("t5", ModelConfig(task="seq2seq", adapter="ia3")),
    "t5-rolora": ("t5", ModelConfig(task="seq2seq")),
    "t5-full": ("t5", ModelConfig(task="seq2seq", adapter="full")),
}


def load(folder: str, config: ModelConfig) -> tuple[TaskModel, Batch]:
    """The model with random non-zero trainable tensors (B = 0 would hide A's gradient) and a padded batch."""
    config = replace(config, name=folder, rank=min(config.rank, 4))
    classes = 2 if config.task == "classification" else 0
    model = load_model(config, classes=classes, unit="example", max_length=16)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.1, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)
    encoded = model.encode(tiny.examples(5, targets=config.task == "seq2seq"), 16)
    return model, collate(encoded, range(5))


def by_hooks(model: TaskModel, batch: Batch) -> dict[str, torch.Tensor]:
    hooks = GradSampleHooks(model.module, loss_reduction="sum")
    try:
        model.losses(batch).sum().backward()
        return {n: p.grad_sample.clone() for n, p in model.parameters.items() if p.requires_grad}
    finally:
        hooks.cleanup()
        model.module.zero_grad()


def one_by_one(model: TaskModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Each record alone, in the padding it had (a slice of the batch)."""
    rows = []
    for i in range(len(batch)):
        parts = {
            name: tensor[i : i + 1]
            for name in ("input_ids", "attention_mask", "labels", "images", "hidden", "below")
            if (tensor := getattr(batch, name)) is not None
        }
        model.module.zero_grad()
        model.losses(Batch(**parts, depth=batch.depth)).sum().backward()
        rows.append(
            {n: p.grad.clone() for n, p in model.parameters.items() if p.requires_grad and p.grad is not None}
        )
    model.module.zero_grad()
    return {n: torch.stack([row[n] for row in rows]) for n in rows[0]}


def assert_agree(model: TaskModel, batch: Batch, tolerance: float) -> None:
    hooked, expected = by_hooks(model, batch), one_by_one(model, batch)
    assert hooked.keys() == expected.keys() == {n for n, p in model.parameters.items() if p.requires_grad}
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in hooked.items():
        assert gradient.dtype == torch.float32
        assert gradient.shape == expected[name].shape, name
        scale = float(expected[name].abs().max())
        if not name.endswith("key.bias"):  # softmax does not see it: its gradient is zero
            assert scale > 1e-7 * largest, f"{name} does not train"
        assert float((gradient - expected[name]).abs().max()) <= tolerance * scale + 1e-7 * largest, name


@pytest.mark.parametrize("case", CASES)
def test_hooks_give_the_gradient_of_each_record(case: str, folders: dict[str, str]) -> None:
    kind, config = CASES[case]
    model, batch = load(folders[kind], config)
    assert_agree(model, batch, 3e-2 if config.dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize("part", ["A", "B"])
def test_hooks_follow_the_turns_of_a_and_b(part: str, bert: str) -> None:
    model, batch = load(bert, ModelConfig())
    model.set_trainable([n for n in model.layout.names if model.part_of[n] in (part, "head")])
    assert_agree(model, batch, 1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hooks_work_from_cached_hidden_states(checkpointing: bool, bert: str) -> None:
    model, batch = load(bert, ModelConfig(layers=1, gradient_checkpointing=checkpointing))
    cut = model.cut(model.layout.names)
    assert cut == 1
    cached = Batch(
        hidden=model.prefix(batch, cut), depth=cut, attention_mask=batch.attention_mask, labels=batch.labels
    )
    assert_agree(model, cached, 1e-4)
    from_tokens, from_cache = by_hooks(model, batch), by_hooks(model, cached)
    for name, gradient in from_tokens.items():
        torch.testing.assert_close(from_cache[name], gradient, rtol=1e-4, atol=1e-6)


def test_hooks_work_from_cached_states_with_a_head_that_reads_below_them(bert: str) -> None:
    model, batch = load(bert, ModelConfig(layers=1, head_layers=(0, 1, 2)))
    hidden, below = model.stage(batch, 1)
    cached = Batch(
        hidden=hidden, below=below, depth=1, attention_mask=batch.attention_mask, labels=batch.labels
    )
    assert_agree(model, cached, 1e-4)
    from_tokens, from_cache = by_hooks(model, batch), by_hooks(model, cached)
    for name, gradient in from_tokens.items():
        torch.testing.assert_close(from_cache[name], gradient, rtol=1e-4, atol=1e-6)


def test_hooks_work_from_pooled_features(bert: str) -> None:
    model, batch = load(bert, ModelConfig())
    model.set_trainable(["head.weight", "head.bias"])
    pooled = Batch(hidden=model.prefix(batch, model.depth), depth=model.depth, labels=batch.labels)
    assert_agree(model, pooled, 1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "logistic"])
def test_hooks_work_on_small_nets(name: str) -> None:
    model = load_model(ModelConfig(name=name, adapter="full", hidden=8), classes=3, image_shape=(1, 12, 12))
    rng = np.random.default_rng(0)
    images = rng.random((4, 1, 12, 12), np.float32)
    encoded = model.encode(Examples(images=images, labels=np.array([0, 1, 2, 0])), 1)
    assert_agree(model, collate(encoded, range(4)), 1e-4)


def test_non_reentrant_checkpointing_would_break_the_hooks(bert: str) -> None:
    """The trap that `use_reentrant=True` avoids; if this stops failing, the setting can go."""
    model, batch = load(bert, ModelConfig())
    backbone = model.module.backbone
    backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    hooks = GradSampleHooks(model.module, loss_reduction="sum")
    with contextlib.suppress(TypeError):
        model.losses(batch).sum().backward()
    assert any(p.grad_sample is None for n, p in model.parameters.items() if model.part_of[n] in "AB")
    hooks.cleanup()
