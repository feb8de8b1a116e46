"""A client's part of a step: what one record can add, before and after rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.data.batch import Encoded
from securefed.errors import ModelError, PrivacyError
from securefed.privacy.design import Cohort, design
from securefed.privacy.distributed import DistributedSkellam
from securefed.privacy.step_noise import StepNoise
from securefed.training.client import ClientJob
from securefed.training.step import StepResult, step
from tests.entropy import SeededEntropy
from tests.securefed.training.setups import bert, images, logistic, stirred, texts, train

CLIP, EXPECTED = 0.5, 10.0
NOISE = StepNoise(
    kind="central", noise_multiplier=1.0, sample_rate=1.0, clip=CLIP, expected=EXPECTED, records=40
)


def job(model: Any) -> ClientJob:
    names = tuple(model.layout.names)
    return ClientJob(0, 0, names, names, stirred(model), 1.0)


def played(data: Encoded, noise: StepNoise = NOISE, **changes: Any) -> StepResult:
    model = logistic()
    return step(model, data, job(model), train(learning_rate=0.1), noise, SeededEntropy(0), **changes)


def without(data: Encoded, i: int) -> Encoded:
    """The neighbour: record i is not there; every other one is."""
    assert data.images is not None
    assert data.labels is not None
    return Encoded(images=np.delete(data.images, i, 0), labels=np.delete(data.labels, i))


def integers(size: int) -> StepNoise:
    cohort = Cohort(dimension=size, clip=CLIP / EXPECTED, clients=3, min_survivors=3, bits=20, vectors=40)
    return replace(NOISE, kind="skellam", mechanisms={size: design(DistributedSkellam, cohort, 1.0)})


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_record_moves_a_bare_sum_by_at_most_the_clip_after_rounding(scale: float) -> None:
    data = images()
    assert data.images is not None
    large = Encoded(images=data.images * np.float32(scale), labels=data.labels)
    whole = played(large).update.vector.astype(np.float64)
    moved = [
        float(np.linalg.norm(whole - played(without(large, i)).update.vector.astype(np.float64)))
        for i in range(0, 40, 7)
    ]
    assert 0.99 * CLIP / EXPECTED < max(moved) <= CLIP / EXPECTED, "it binds, and it holds"


def test_rows_are_each_clipped_and_add_up_to_the_sum() -> None:
    model = logistic()
    found = played(images(), integers(model.layout.size)).update
    assert found.rows is not None
    assert found.rows.shape == (40, model.layout.size)
    assert np.linalg.norm(found.rows.astype(np.float64), axis=1).max() <= CLIP / EXPECTED * (1 + 1e-7)
    np.testing.assert_allclose(found.vector, played(images()).update.vector, atol=1e-6)


def test_a_batch_of_nobody_is_noise_alone() -> None:
    model = logistic()
    rare = replace(integers(model.layout.size), sample_rate=1e-12)
    found = played(images(), rare).update
    assert found.rows is not None
    assert found.rows.shape == (0, model.layout.size)
    mechanism = (rare.mechanisms or {})[model.layout.size]
    words = mechanism.encode_sum(found.rows, SeededEntropy(1).stream("x"))
    assert words.shape == (model.layout.size,)
    assert words.any()


def test_a_share_of_real_noise_is_in_before_anything_is_rounded() -> None:
    shared = replace(NOISE, kind="gaussian", min_survivors=6, corrupt=2)
    bare, noised = played(images()).update.vector, played(images(), shared).update.vector
    deviation = float(np.std(noised - bare))
    assert deviation == pytest.approx(CLIP / EXPECTED / 2, rel=0.3)  # 51 coordinates; 1 / sqrt(4 honest)
    assert np.abs(noised).max() < shared.farthest


def test_the_part_of_a_text_classifier_is_the_same_with_its_frozen_layers_cached(tmp_path: Path) -> None:
    from securefed.training.frozen_cache import FrozenCache

    model = bert(tmp_path, adapter="lora", layers=1)
    data = texts(model)
    noise = replace(NOISE, records=12)
    parts = [
        step(
            model,
            data,
            job(model),
            train(learning_rate=0.1),
            noise,
            SeededEntropy(0),
            cache=cache,
            check=True,
        )
        for cache in (None, FrozenCache(64))
    ]
    np.testing.assert_allclose(parts[0].update.vector, parts[1].update.vector, atol=1e-5)
    assert np.linalg.norm(parts[0].update.vector) > 0
    assert set(parts[0].diagnostics) >= {"loss", "clipped_share"}


def test_a_record_that_is_not_finite_adds_nothing() -> None:
    data = images()
    assert data.images is not None
    data.images[3] = np.nan
    spoiled = played(data)
    np.testing.assert_array_equal(spoiled.update.vector, played(without(data, 3)).update.vector)
    assert spoiled.diagnostics["non_finite_gradients"] == 1


def test_numbers_that_promise_nothing_are_refused() -> None:
    with pytest.raises(PrivacyError, match="corrupt < min_survivors"):
        replace(NOISE, min_survivors=2, corrupt=2)
    with pytest.raises(PrivacyError, match="too long for float32"):
        replace(NOISE, records=1 << 22)
    with pytest.raises(PrivacyError, match="no noise was designed"):
        integers(51).event(50)
    with pytest.raises(PrivacyError, match="abort the round"):
        replace(NOISE, min_survivors=3).check_survivors(2)


def test_ghost_clipping_takes_the_same_step_and_refuses_to_write_rows() -> None:
    """The same records, the same clip and the same noise, without a row."""
    drawn = replace(NOISE, sample_rate=0.3)
    hooked = played(images(), drawn).update.vector
    np.testing.assert_allclose(
        played(images(), drawn, mode="ghost", check=True).update.vector, hooked, atol=1e-6
    )
    empty = played(images(), replace(NOISE, sample_rate=1e-12), mode="ghost").update.vector
    np.testing.assert_array_equal(empty, played(images(), replace(NOISE, sample_rate=1e-12)).update.vector)
    with pytest.raises(ModelError, match="each record's own row"):
        played(images(), integers(logistic().layout.size), mode="ghost")
