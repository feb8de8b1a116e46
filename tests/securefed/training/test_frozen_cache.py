"""Cached frozen layers: the same training to float tolerance, never a stale state, never over the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from securefed.data.batch import Encoded
from securefed.models import TaskModel
from securefed.training import frozen_cache
from securefed.training.dp import DPWork
from securefed.training.frozen_cache import FrozenCache, usable_cut
from securefed.training.local import LocalWork, train_locally
from securefed.training.metrics import predict
from tests.entropy import SeededEntropy
from tests.securefed.training.setups import bert, llama, stirred, texts, train

BOUNDS = {"physical_tokens": 64, "physical_batch": 4}


def parts(model: TaskModel, *wanted: str) -> tuple[str, ...]:
    return tuple(n for n, part in model.part_of.items() if part in wanted)


def play(
    model: TaskModel, data: Any, start: Any, names: tuple[str, ...], cache: FrozenCache | None, dp: bool
) -> Any:
    mechanism = DPWork(1.0, 1.0, 0.5, 6.0) if dp else None
    entropy = SeededEntropy(2) if dp else None
    return train_locally(
        model,
        data,
        start,
        LocalWork(0, 0, names),
        train(steps=3),
        dp=mechanism,
        entropy=entropy,
        seed=0,
        cache=cache,
    ).vector


@pytest.mark.parametrize("dp", [False, True])
@pytest.mark.parametrize("wanted", [("head",), ("B", "head"), ("A", "B", "head")])
@pytest.mark.parametrize("head_layers", [1, (0, 1, 2)])
def test_training_with_the_cache_equals_training_without(
    tmp_path: Path, wanted: tuple[str, ...], dp: bool, head_layers: Any
) -> None:
    model = bert(tmp_path, layers=1, head_layers=head_layers)
    data, names = texts(model), parts(model, *wanted)
    for start in (model.read(model.layout), stirred(model)):
        cache = FrozenCache(64)
        model.write(start, model.layout)
        found = play(model, data, start, names, cache, dp)
        np.testing.assert_allclose(found, play(model, data, start, names, None, dp), atol=1e-5)
        assert cache.size_bytes > 0


@pytest.mark.parametrize("dp", [False, True])
@pytest.mark.parametrize("sample", [0, 16])
def test_a_language_models_training_and_perplexity_are_the_same_from_cached_states(
    tmp_path: Path, sample: int, dp: bool
) -> None:
    model = llama(tmp_path, vocabulary_sample=sample)
    data, names = texts(model), parts(model, "A", "B")
    for start in (model.read(model.layout), stirred(model)):
        cache = FrozenCache(64)
        model.write(start, model.layout)
        before = predict(model, data, **BOUNDS, cache=cache)
        found = play(model, data, start, names, cache, dp)
        assert not np.allclose(found, start, atol=1e-4)
        np.testing.assert_allclose(found, play(model, data, start, names, None, dp), atol=1e-5)
        model.write(start, model.layout)
        plain = predict(model, data, **BOUNDS)
        np.testing.assert_allclose(before.losses, plain.losses, atol=1e-5)
        np.testing.assert_array_equal(before.counts, plain.counts)


def test_a_language_models_frozen_layers_are_passed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(tmp_path)
    data, cache = texts(model), FrozenCache(64)
    start = stirred(model)
    first = play(model, data, start, parts(model, "A", "B"), cache, dp=False)
    below = model.module.backbone.model.layers[0]
    monkeypatch.setattr(below, "forward", lambda *_, **__: pytest.fail("a frozen layer ran again"))
    again = play(model, data, start, parts(model, "A", "B"), cache, dp=False)
    np.testing.assert_array_equal(first, again)


def test_head_rounds_start_from_features_while_b_is_zero_and_not_after(tmp_path: Path) -> None:
    model = bert(tmp_path, layers=1)
    assert usable_cut(model, parts(model, "head")) == model.depth
    model.write(stirred(model), model.layout)
    assert usable_cut(model, parts(model, "head")) < model.depth


def test_a_changed_adapter_below_the_cut_is_never_answered_from_the_old_state(tmp_path: Path) -> None:
    """Adapters in every layer and only the head trained: no state above them may outlive a change."""
    model = bert(tmp_path, layers="all")
    data, cache = texts(model), FrozenCache(64)
    first = predict(model, data, **BOUNDS, cache=cache).losses
    model.write(stirred(model), model.layout)
    cached, plain = predict(model, data, **BOUNDS, cache=cache).losses, predict(model, data, **BOUNDS).losses
    np.testing.assert_allclose(cached, plain, atol=1e-5)
    assert not np.allclose(first, plain, atol=1e-4)


def test_features_are_computed_on_top_of_hidden_states_that_stay_for_the_next_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path, layers=1)
    data, cache = texts(model), FrozenCache(64)
    cache.states(model, data, parts(model, "head"), **BOUNDS)
    monkeypatch.setattr(model, "stage", lambda *_: pytest.fail("computed again"))
    hidden = cache.states(model, data, parts(model, "B", "head"), **BOUNDS)
    assert hidden is not None
    assert len(hidden.hidden) == len(data)


def test_what_the_head_reads_below_the_cut_is_kept_beside_it_and_counted(tmp_path: Path) -> None:
    narrow, wide = bert(tmp_path, layers=1), bert(tmp_path, layers=1, head_layers=(0, 1, 2))
    sizes = []
    for model in (narrow, wide):
        states = FrozenCache(64).states(model, texts(model), parts(model, "B", "head"), **BOUNDS)
        assert states is not None
        sizes.append(states.size_bytes)
    assert sizes[1] - sizes[0] == 12 * 16 * 4  # one float32 vector of 16 for each of 12 records: layer 0's


def test_nothing_is_cached_beyond_the_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bert(tmp_path, layers=1)
    data, cache = texts(model), FrozenCache(0)
    assert cache.states(model, data, parts(model, "B", "head"), **BOUNDS) is None
    assert cache.states(model, data, parts(model, "B", "head"), **BOUNDS) is None
    assert cache.size_bytes == 0
    assert sum("cache_mib" in r.message for r in caplog.records) == 1


def test_states_are_hidden_in_the_repr(tmp_path: Path) -> None:
    model = bert(tmp_path, layers=1)
    cache = FrozenCache(64)
    states = cache.states(model, texts(model), parts(model, "head"), **BOUNDS)
    assert "tensor" not in repr(cache) + repr(states)


def test_states_of_another_model_or_of_another_reading_of_the_texts_are_never_used(tmp_path: Path) -> None:
    one, other = bert(tmp_path / "a", layers=1), bert(tmp_path / "b", layers=1)
    with torch.no_grad():
        for p in other.module.backbone.embeddings.parameters():
            p.mul_(1.5)
    other.base_digest = "of other weights"
    data, cache, head = texts(one), FrozenCache(64), parts(one, "head")
    first = cache.states(one, data, head, **BOUNDS)
    second = cache.states(other, data, head, **BOUNDS)
    fresh = FrozenCache(64).states(other, data, head, **BOUNDS)
    assert first is not None
    assert second is not None
    assert fresh is not None
    assert torch.equal(second.pooled, fresh.pooled)  # type: ignore[arg-type]  # pooled: a head alone trains
    assert not torch.allclose(first.pooled, second.pooled, atol=1e-4)  # type: ignore[arg-type]  # as above

    read_otherwise = Encoded(tokens=tuple(t[::-1].copy() for t in data.tokens), labels=data.labels)  # type: ignore[union-attr]  # texts
    third = cache.states(one, read_otherwise, head, **BOUNDS)
    assert third is not None
    assert not torch.allclose(first.pooled, third.pooled, atol=1e-4)  # type: ignore[arg-type]  # as above


def test_a_long_pass_says_that_it_goes_on_and_a_short_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = bert(tmp_path, layers=1)
    data = texts(model)
    caplog.set_level("INFO")
    FrozenCache(64).states(model, data, parts(model, "head"), **BOUNDS)
    assert "frozen layers" not in caplog.text
    monkeypatch.setattr(frozen_cache, "SAY_EVERY", 0.0)
    FrozenCache(64).states(model, data, parts(model, "head"), **BOUNDS)
    assert f"frozen layers: {len(data)} records so far" in caplog.text
