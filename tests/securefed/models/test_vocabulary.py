"""The loss over a sampled vocabulary: exact where it samples all, close where it does not, and one record's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.errors import ConfigError, ModelError
from securefed.models import TaskModel, load_model
from securefed.models.vocabulary import SampledVocabulary
from tests.securefed.models import tiny
from tests.securefed.training.setups import stirred


def points(
    n: int = 200, width: int = 12, tokens: int = 1000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, next tokens and an output layer."""
    rng = np.random.default_rng(0)
    hidden = torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32))
    weight = torch.from_numpy(rng.normal(size=(tokens, width)).astype(np.float32))
    return hidden, torch.from_numpy(rng.integers(0, tokens, n)), weight


def oracle(sample: SampledVocabulary, hidden: torch.Tensor, label: int, weight: torch.Tensor) -> float:
    """By hand, one prediction: the common tokens, the weighted rest, and the label once with weight one."""
    rows, total = sample.rows.tolist(), 0.0
    scale = dict(zip(rows, sample.log_weights.double().exp().tolist(), strict=True))
    for token in rows:
        if token != label:
            total += scale[token] * math.exp(float(hidden.double() @ weight[token].double()))
    own = float(hidden.double() @ weight[label].double())
    return math.log(total + math.exp(own)) - own


def test_each_loss_is_what_the_sum_by_hand_gives() -> None:
    hidden, labels, weight = points()
    sample = SampledVocabulary(1000, 100, seed=3)
    found = sample.losses(hidden, labels, weight)
    assert {bool(sample.place[y] >= 0) for y in labels} == {True, False}  # labels in and out of the sample
    for i in range(40):
        assert float(found[i]) == pytest.approx(
            oracle(sample, hidden[i], int(labels[i]), weight), rel=1e-4, abs=1e-5
        )


def test_a_sample_of_all_tokens_is_the_exact_loss_and_gradient() -> None:
    hidden, labels, weight = points()
    hidden.requires_grad_()
    exact = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    found = SampledVocabulary(1000, 1000, seed=0).losses(hidden, labels, weight)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_the_normalizer_is_right_in_the_mean_over_seeds() -> None:
    hidden, labels, weight = points(n=20)
    exact = F.cross_entropy(hidden @ weight.T, labels, reduction="none").exp()
    drawn = torch.stack(
        [SampledVocabulary(1000, 200, seed=s).losses(hidden, labels, weight).exp() for s in range(400)]
    )
    error = drawn.std(0) / math.sqrt(400)
    assert bool(((drawn.mean(0) - exact).abs() < 5 * error).all())  # 20 means at 5 sigma: false alarm 1e-5


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    first, again, other = (SampledVocabulary(1000, 100, seed=s).rows for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[:50], torch.arange(50))
    assert len(set(first.tolist())) == 100


def test_each_round_has_tokens_of_its_own_and_draws_them_again_alike() -> None:
    first, again = SampledVocabulary(1000, 100, seed=3), SampledVocabulary(1000, 100, seed=3)
    seen = []
    for round in (0, 1, 7):
        first.draw(round)
        again.draw(9)
        again.draw(round)
        torch.testing.assert_close(first.rows, again.rows)
        assert first.rows[:50].tolist() == list(range(50))
        assert len(set(first.rows.tolist())) == 100
        seen.append(frozenset(first.rows[50:].tolist()))
        hidden, labels, weight = points(20)
        found = first.losses(hidden, labels, weight)
        assert float(found[0]) == pytest.approx(
            oracle(first, hidden[0], int(labels[0]), weight), rel=1e-4, abs=1e-5
        )
    assert len(set(seen)) == 3


@pytest.mark.parametrize("redrawn", [True, False])
def test_a_sample_that_stays_is_learned_by_heart_and_one_that_is_drawn_anew_is_not(redrawn: bool) -> None:
    """Plain descent on what the output layer reads, towards labels that say nothing: the exact loss cannot fall far."""
    hidden, labels, weight = points(n=64, width=48, tokens=2000)
    shift = torch.zeros(48, requires_grad=True)
    sample = SampledVocabulary(2000, 40, seed=0)

    def exact() -> float:
        return float(F.cross_entropy((hidden + shift) @ weight.T, labels).detach())

    before = exact()
    for round in range(150):
        sample.draw(round if redrawn else 0)
        (gradient,) = torch.autograd.grad(sample.losses(hidden + shift, labels, weight).mean(), shift)
        with torch.no_grad():
            shift -= 0.05 * gradient
    assert (exact() < before) == redrawn


@pytest.mark.parametrize("size", [1, 1001])
def test_a_sample_larger_than_the_vocabulary_or_of_one_token_is_refused(size: int) -> None:
    with pytest.raises(ModelError, match="between 2 and the model's 1000"):
        SampledVocabulary(1000, size, seed=0)


def model_of(llama: str, sample: int) -> TaskModel:
    model = load_model(
        ModelConfig(name=llama, task="causal-lm", rank=2, vocabulary_sample=sample), max_length=16
    )
    model.write(stirred(model), model.layout)
    return model


def test_training_takes_the_sample_and_evaluation_all(llama: str) -> None:
    exact, whole, part = (model_of(llama, size) for size in (0, 64, 16))
    batch = collate(exact.encode(tiny.examples(), 16), range(6))
    torch.testing.assert_close(whole.losses(batch), exact.losses(batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(part.losses(batch), exact.losses(batch), atol=1e-3)
    part.module.eval()
    torch.testing.assert_close(part.losses(batch), exact.losses(batch))
    part.module.train()


def test_a_records_loss_does_not_depend_on_the_others_in_its_batch(llama: str) -> None:
    model = model_of(llama, 16)
    encoded = model.encode(tiny.examples(), 16)
    together = model.losses(collate(encoded, range(6)))
    alone = torch.cat([model.losses(collate(encoded, [i])) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_models_whose_output_layer_is_not_plain_and_frozen_are_refused(llama: str, gpt2: str) -> None:
    with pytest.raises(ModelError, match="gpt2"):
        load_model(ModelConfig(name=gpt2, task="causal-lm", vocabulary_sample=16), max_length=16)
    with pytest.raises(ModelError, match="plain frozen output layer"):
        load_model(
            ModelConfig(name=llama, task="causal-lm", targets=("lm_head",), vocabulary_sample=16),
            max_length=16,
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"task": "classification"}}, "causal language models"),
        ({"model": {"adapter": "full"}}, "frozen output layer"),
        ({"model": {"adapter": "prompt"}}, "virtual tokens"),
        ({"model": {"vocabulary_sample": 1}}, "at least 2"),
        ({"train": {"steps": 1, "label_smoothing": 0.1}}, "label_smoothing"),
    ],
)
def test_jobs_that_a_sample_does_not_go_with_are_refused(
    change: dict[str, dict[str, object]], words: str
) -> None:
    from securefed.config import load_config

    job: dict[str, dict[str, object]] = {
        "model": {"name": "smollm2", "task": "causal-lm", "vocabulary_sample": 64},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match=words):
        load_config({k: v | change.get(k, {}) for k, v in job.items()})
