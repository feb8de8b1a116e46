"""Tangents: each record's own gradient at the anchor, zero without one, cached and saved like any feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from securefed.algorithms.anchoring import anchored
from securefed.config import ModelConfig, load_config
from securefed.data.batch import Batch, collate
from securefed.errors import ConfigError, ModelError
from securefed.models import TaskModel, load_model, load_result
from securefed.training.frozen_cache import FrozenCache
from tests.securefed.models import tiny

BOUNDS = {"physical_tokens": 256, "physical_batch": 8}


def tangent(folder: str, *, classes: int = 2, anchor: bool = True, **changes: Any) -> tuple[TaskModel, Any]:
    """A model that reads tangents of its lower layer, at a random head, and six records."""
    wanted = {"adapter": "tangent", "layers": (0, 1), "head_layers": (1, 2), "head_centre": True, **changes}
    model = load_model(ModelConfig(name=folder, **wanted), classes=classes, max_length=16)
    if anchor:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name in ("head.weight", "centre.weight"):
                p = model.parameters[name]
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        model.write(anchored(model.layout, model.read(model.layout)), model.layout)
    return model, model.encode(tiny.examples(6, classes=classes), 16)


def features(model: TaskModel, batch: Batch) -> torch.Tensor:
    return model.prefix(batch, model.depth)


@pytest.mark.parametrize("classes", [2, 3])
def test_tangents_are_each_records_gradient_of_the_anchors_answer_by_the_bias(
    classes: int, bert: str
) -> None:
    model, data = tangent(bert, classes=classes)
    found = features(model, collate(data, range(6)))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    module: Any = model.module
    width = module.anchor.weight.shape[1]
    inner = [module.backbone.encoder.layer[i].intermediate.dense.bias.requires_grad_() for i in (0, 1)]
    for i in range(6):  # autograd on the record alone, by the true biases
        pooled = module._pooled(collate(data, [i]).to(model.device))
        scores = F.normalize(pooled - module.anchor.centre, dim=-1) @ module.anchor.weight.T
        parts = [pooled[0].detach()]
        for score in scores[0]:
            parts += [F.normalize(g, dim=0) for g in torch.autograd.grad(score, inner, retain_graph=True)]
        assert len(scores[0]) == (1 if classes == 2 else classes)
        torch.testing.assert_close(found[i], F.normalize(torch.cat(parts), dim=0), rtol=1e-4, atol=1e-6)
        assert parts[0].numel() == width


def test_a_head_on_tangents_answers_as_the_model_with_these_biases_to_first_order(bert: str) -> None:
    model, data = tangent(bert)
    batch, module = collate(data, range(6)), model.module
    assert isinstance(module.anchor, torch.nn.Module)
    inner = module.backbone.encoder.layer[0].intermediate.dense

    def answer() -> torch.Tensor:
        with torch.no_grad():
            pooled = module._pooled(batch)
            return (F.normalize(pooled - module.anchor.centre, dim=-1) @ module.anchor.weight.T)[:, 0]

    with torch.enable_grad():
        bias = inner.bias.requires_grad_()
        slopes = []
        for i in range(6):
            pooled = module._pooled(collate(data, [i]))
            score = (F.normalize(pooled - module.anchor.centre, dim=-1) @ module.anchor.weight.T).sum()
            slopes.append(torch.autograd.grad(score, bias)[0])
    width, size = module.anchor.weight.shape[1], inner.out_features
    found = features(model, batch)[:, width : width + size]
    before, moved = answer(), torch.randn(size, generator=torch.Generator().manual_seed(0)) * 1e-3
    with torch.no_grad():
        bias += moved
    change = answer() - before
    by_features = (found / found.norm(dim=1, keepdim=True)) @ moved * torch.stack(slopes).norm(dim=1)
    torch.testing.assert_close(by_features, change, rtol=0.02, atol=2e-6)


def test_without_an_anchor_the_head_reads_the_pooled_states_and_zeros(bert: str) -> None:
    model, data = tangent(bert, anchor=False)
    plain = load_model(
        ModelConfig(name=bert, adapter="head", head_layers=(1, 2), head_centre=True), classes=2, max_length=16
    )
    batch = collate(data, range(6))
    found, wanted = features(model, batch), features(plain, batch)
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted)
    assert not found[:, wanted.shape[1] :].any()
    assert model.trained == model.layout.size - 2 * wanted.shape[1]  # the anchor's two tensors
    assert found.shape[1] == wanted.shape[1] + 2 * 24


def test_noise_in_the_centre_of_zeros_does_not_enter_the_first_heads_features(bert: str) -> None:
    model, data = tangent(bert, anchor=False)
    module: Any = model.module
    found = features(model, collate(data, range(6)))
    before = module.shifted(found)
    with torch.no_grad():
        width = module.anchor.weight.shape[1]
        model.parameters["centre.weight"][width:].normal_()
    torch.testing.assert_close(module.shifted(found), before)
    with torch.no_grad():
        model.parameters["anchor.weight"].fill_(0.1)
    assert not torch.allclose(module.shifted(found), before), "with an anchor it is the mean of tangents"


def test_a_records_tangents_do_not_depend_on_its_batch(bert: str) -> None:
    model, data = tangent(bert)
    together = features(model, collate(data, range(6)))
    for i in range(6):
        torch.testing.assert_close(features(model, collate(data, [i]))[0], together[i], rtol=1e-4, atol=1e-6)


def test_cached_tangents_are_those_of_their_anchor(bert: str) -> None:
    model, data = tangent(bert, layers=(1,))
    cache, head = FrozenCache(64), ("head.weight", "head.bias")
    first = cache.states(model, data, head, **BOUNDS)
    assert first is not None
    assert first.pooled is not None
    torch.testing.assert_close(first.pooled, features(model, collate(data, range(6))), rtol=1e-4, atol=1e-6)
    assert cache.states(model, data, head, **BOUNDS) is first
    with torch.no_grad():
        model.parameters["anchor.weight"].neg_()  # other gradients
    second = cache.states(model, data, head, **BOUNDS)
    assert second is not None
    assert second.pooled is not None
    width = model.parameters["anchor.weight"].shape[1]
    torch.testing.assert_close(second.pooled[:, :width], first.pooled[:, :width])
    torch.testing.assert_close(second.pooled[:, width:], -first.pooled[:, width:], rtol=1e-4, atol=1e-6)


def test_hooks_are_gone_after_a_pass_and_no_base_weight_has_a_gradient(bert: str) -> None:
    model, data = tangent(bert)
    model.set_trainable(["head.weight", "head.bias"])
    model.losses(collate(data, range(6))).sum().backward()
    backbone: Any = model.module.backbone
    assert not any(m._forward_hooks for m in backbone.modules())
    assert all(p.grad is None for p in backbone.parameters())
    assert model.parameters["anchor.weight"].grad is None
    assert model.parameters["head.weight"].grad is not None


def test_a_saved_result_holds_its_anchor(bert: str, tmp_path: Path) -> None:
    model, data = tangent(bert)
    with torch.no_grad():
        model.parameters["head.weight"].normal_()
    model.save_adapter(tmp_path)
    loaded, batch = load_result(tmp_path), collate(data, range(6))
    torch.testing.assert_close(loaded.logits(batch), model.logits(batch))
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "anchor.weight" in readme
    with torch.no_grad():
        loaded.parameters["anchor.weight"].neg_()
    assert not torch.allclose(loaded.logits(batch), model.logits(batch)), "the anchor is part of the result"


def test_other_layers_are_another_model(bert: str) -> None:
    digests = {tangent(bert, layers=layers, anchor=False)[0].base_digest for layers in [(0,), (1,), (0, 1)]}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (2,)}, "must be layers 0 to 1"),
        ({"layers": (1,), "head_layers": (0, 1)}, "the head reads nothing above layer 1"),
        ({"layers": 3}, "must be layers 0 to 1"),
        ({"layers": ()}, "must be layers 0 to 1"),
        ({"layers": "all", "head_layers": (0,)}, "which no layer's biases move; add a layer"),
    ],
)
def test_layers_that_nothing_read_lies_above_are_refused(
    changes: dict[str, Any], words: str, bert: str
) -> None:
    with pytest.raises(ModelError, match=words):
        tangent(bert, anchor=False, **changes)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_is_refused(kind: str, folders: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="adapter tangent knows the feed-forward layers of bert"):
        tangent(folders[kind], anchor=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.task": "causal-lm"}, "use a LoRA adapter"),
        ({"model.targets": ["query"]}, "leave model.targets out"),
        ({"model.dropout": 0.1}, "set model.dropout = 0"),
        ({"model.gradient_checkpointing": True}, "model.gradient_checkpointing = false"),
        ({"model.name": "mlp"}, 'set model.adapter = "full"'),
        ({"train.inspect_model": True}, "leave inspect_model out"),
    ],
)
def test_options_that_tangents_do_not_have_are_refused(changes: dict[str, Any], words: str) -> None:
    job = {"model.adapter": "tangent", "algorithm.head_rounds": 1, "train.steps": 1}
    with pytest.raises(ConfigError, match=words):
        load_config({"rounds": 4}, {**job, **changes})
