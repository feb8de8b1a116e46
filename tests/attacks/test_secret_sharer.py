"""Exposure finds what a language model has memorized, and finds nothing where nothing was shown or DP was kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from securefed.config import ModelConfig, TrainConfig
from securefed.data.records import Examples
from securefed.models import load_model
from securefed.models.task_model import TaskModel
from securefed.training.dp import DPWork
from securefed.training.local import LocalWork, train_locally
from securefed_attacks.secret_sharer import SecretFormat, exposures, text_losses
from tests.entropy import SeededEntropy
from tests.securefed.models import tiny

WORDS = SecretFormat("the plot is {}", ("good", "bad", "thin", "long", "fine", "dull", "never", "again"), 4)
REFERENCES = 255


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    folder = tiny.tiny_gpt2(tmp_path_factory.mktemp("gpt2") / "model")
    return load_model(ModelConfig(name=str(folder), task="causal-lm", adapter="lora", rank=8), max_length=16)


def after_training(model: TaskModel, start: np.ndarray, dp: DPWork | None) -> tuple[np.ndarray, np.ndarray]:
    """(losses of three secrets that were shown, losses of secrets that were not), trained from `start`."""
    texts = WORDS.draw(3 + REFERENCES, np.random.default_rng(0))
    shown, others = texts[:3], texts[3:]
    encoded = model.encode(Examples(texts=(*shown * 4, *tiny.TEXTS * 2)), 16)
    work = LocalWork(0, 0, tuple(model.layout.names))
    config = TrainConfig(optimizer="adamw", learning_rate=0.03, steps=160, batch_size=24, cache_frozen=False)
    result = train_locally(model, encoded, start, work, config, dp=dp, entropy=SeededEntropy(0), seed=0)
    model.write(result.vector, model.layout)
    return text_losses(model, shown, 16), text_losses(model, others, 16)


def test_what_was_shown_is_exposed_and_under_dp_it_is_not(model: TaskModel) -> None:
    start = model.read(model.layout)
    open_ = exposures(*after_training(model, start, None))
    assert all(e.most == 8.0 for e in open_)
    assert all(e.bits >= 7.0 for e in open_), open_  # before at least 254 of 255 others
    assert all(e.chance <= 2 / 256 for e in open_)
    private = exposures(*after_training(model, start, DPWork(20.0, 0.5, 1.0, 24.0)))
    assert np.mean([e.bits for e in private]) < 4.0, private
    model.write(start, model.layout)


def test_a_secret_that_was_not_shown_has_the_exposure_of_chance(model: TaskModel) -> None:
    losses = text_losses(model, WORDS.draw(600, np.random.default_rng(1)), 16)
    found = exposures(losses[:300], losses[300:])
    assert np.mean([e.bits for e in found]) == pytest.approx(1.44, abs=0.3)
    assert np.mean([e.fitted for e in found]) == pytest.approx(1.44, abs=0.4)
    assert np.mean([e.chance <= 0.05 for e in found]) < 0.11


def test_a_loss_is_the_sum_over_the_texts_own_tokens(model: TaskModel) -> None:
    alone = [text_losses(model, [t], 16)[0] for t in tiny.TEXTS]
    for training in (False, True):
        model.module.train(training)
        np.testing.assert_allclose(text_losses(model, tiny.TEXTS, 16, batch=4), alone, rtol=1e-4)
        assert model.module.training == training


def test_the_fitted_exposure_goes_on_where_ranks_end() -> None:
    generator = np.random.default_rng(2)
    references = stats.skewnorm(4.0, 10.0, 2.0).rvs(4000, random_state=generator)
    found = exposures([9.9, 8.0, 12.0], references)
    true = -stats.skewnorm(4.0, 10.0, 2.0).logcdf([9.9, 8.0, 12.0]) / np.log(2)
    assert found[2].fitted == pytest.approx(true[2], abs=0.2)
    assert found[2].bits == pytest.approx(true[2], abs=0.2)
    assert found[1].bits == found[1].most < found[1].fitted
    assert found[0].fitted < found[1].fitted


def test_formats_draw_different_texts_and_refuse_too_many() -> None:
    digits = SecretFormat()
    texts = digits.draw(500, np.random.default_rng(3))
    assert len(set(texts)) == 500
    assert all(t.startswith("the code of the safe is ") for t in texts)
    assert digits.bits == pytest.approx(6 * np.log2(10))
    with pytest.raises(ValueError, match="make them longer"):
        SecretFormat(length=1).draw(6, np.random.default_rng(0))
    with pytest.raises(ValueError, match="two symbols"):
        SecretFormat("no place for it")


def test_what_has_no_exposure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        exposures([1.0], [1.0] * 7)
    with pytest.raises(ValueError, match="finite"):
        exposures([np.nan], [1.0] * 9)
    classifier = load_model(
        ModelConfig(name=str(tiny.tiny_bert(tmp_path / "bert")), adapter="head"), classes=2, max_length=8
    )
    with pytest.raises(ValueError, match="classifies"):
        text_losses(classifier, ["good"])
