"""Poisons change what they say and nothing else; what they do to a model is tested where a job is played."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from securefed.data.records import Examples
from securefed_attacks import POISONS, BadNets, LabelFlip

IMAGES = Examples(
    images=np.random.default_rng(0).random((20, 1, 8, 8)).astype(np.float32), labels=np.arange(20) % 10
)
TEXTS = Examples(texts=tuple(f"record {i}" for i in range(6)), labels=np.array([0, 1, 0, 1, 0, 1]))


def coins() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.mark.parametrize("name", POISONS)
def test_the_given_records_stay_as_they_were(name: str) -> None:
    assert IMAGES.images is not None
    assert IMAGES.labels is not None
    images, labels = IMAGES.images.copy(), IMAGES.labels.copy()
    changed = POISONS[name]()(IMAGES, 10, coins())
    assert len(changed) == len(IMAGES)
    assert np.array_equal(IMAGES.images, images)
    assert np.array_equal(IMAGES.labels, labels)
    assert changed.labels is not None
    assert not np.array_equal(changed.labels, labels)


def test_a_label_flip_mirrors_all_classes_or_moves_one() -> None:
    flipped = LabelFlip()(IMAGES, 10, coins())
    assert flipped.labels is not None
    assert np.array_equal(flipped.labels, 9 - np.arange(20) % 10)
    one = LabelFlip(source=3, target=5)(IMAGES, 10, coins())
    expected = np.where(np.arange(20) % 10 == 3, 5, np.arange(20) % 10)
    assert one.labels is not None
    assert np.array_equal(one.labels, expected)


def test_a_patch_is_where_it_says_on_as_many_images_as_it_says() -> None:
    changed = BadNets(target=7, fraction=0.25, size=2)(IMAGES, 10, coins())
    assert changed.images is not None
    assert IMAGES.images is not None
    marked = (changed.images != IMAGES.images).any((1, 2, 3))
    assert marked.sum() == 5
    assert changed.labels is not None
    assert set(changed.labels[marked]) == {7}
    assert (changed.images[marked][:, :, -2:, -2:] == 1.0).all()
    outside = changed.images.copy()
    outside[:, :, -2:, -2:] = IMAGES.images[:, :, -2:, -2:]
    assert np.array_equal(outside, IMAGES.images)


def test_a_trigger_word_goes_before_the_text() -> None:
    changed = BadNets(target=1, fraction=1.0, word="cf")(TEXTS, 2, coins())
    assert changed.texts == tuple(f"cf record {i}" for i in range(6))
    assert changed.labels is not None
    assert set(changed.labels) == {1}


def test_success_is_measured_on_other_classes_only() -> None:
    triggered = BadNets(target=1).triggered(TEXTS, 2)
    assert triggered is not None
    assert triggered.texts == ("cf record 0", "cf record 2", "cf record 4")
    assert triggered.labels is not None
    assert set(triggered.labels) == {1}
    assert LabelFlip().triggered(TEXTS, 2) is None


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: BadNets(fraction=0.0), "fraction"),
        (lambda: BadNets(target=-1), "target"),
        (lambda: BadNets(value=2.0), "value"),
        (lambda: BadNets(word=" "), "word"),
        (lambda: LabelFlip(source=1), "source and target"),
        (lambda: LabelFlip(source=1, target=1), "same class"),
        (lambda: BadNets(target=10)(IMAGES, 10, coins()), "target"),
        (lambda: BadNets(size=9)(IMAGES, 10, coins()), "size=9"),
        (lambda: LabelFlip(source=0, target=12)(IMAGES, 10, coins()), "target"),
        (lambda: LabelFlip()(IMAGES, 5, coins()), "labels must be in"),
        (lambda: BadNets()(Examples(texts=("a",)), 2, coins()), "have none"),
    ],
)
def test_what_does_not_fit_is_refused(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()
