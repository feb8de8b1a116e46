"""DP-SGD: equal to the definition, noise of the right size, and every known trap closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed.crypto.entropy import SystemEntropy
from securefed.data.batch import Encoded, collate
from securefed.errors import ModelError, PrivacyError
from securefed.models import TaskModel
from securefed.training import dp as dp_sgd
from securefed.training.dp import DPWork, KeyedDPOptimizer, Seen, per_sample_gradients, trained_root
from securefed.training.local import LocalResult, LocalWork, train_locally
from tests.entropy import SeededEntropy
from tests.securefed.training.setups import bert, images, logistic, stirred, texts, train


def play(
    model: TaskModel,
    data: Encoded,
    start: Any,
    dp: DPWork,
    *,
    entropy: Any = None,
    names: Any = None,
    **changes: Any,
) -> LocalResult:
    work = LocalWork(0, 0, tuple(names or model.layout.names))
    return train_locally(
        model, data, start, work, train(**changes), dp=dp, entropy=entropy or SystemEntropy(), seed=0
    )


def by_definition(model: TaskModel, data: Encoded, start: Any, clip: float, rate: float) -> Any:
    """One full-batch step by the book: each record alone, clipped, added, divided."""
    model.write(start, model.layout)
    model.set_trainable(model.layout.names)
    total = np.zeros(model.layout.size)
    for i in range(len(data)):
        for p in model.parameters.values():
            p.grad = None
        model.losses(collate(data, [i])).sum().backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.parameters.items()}
        g = model.layout.flatten(grads).astype(np.float64)
        total += g * min(1.0, clip / max(np.linalg.norm(g), 1e-30))
    return start - rate * total / len(data)


@pytest.mark.parametrize("clip", [1e3, 0.05])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_step_without_noise_is_the_definition(tmp_path: Path, kind: str, clip: float) -> None:
    model = logistic() if kind == "images" else bert(tmp_path)
    data = images() if kind == "images" else texts(model)
    start = stirred(model)
    expected = by_definition(model, data, start, clip, 0.5)
    found = play(model, data, start, DPWork(0.0, clip, 1.0, float(len(data))), physical_batch=7)
    np.testing.assert_allclose(found.vector, expected, atol=2e-5)
    assert np.abs(found.vector - start).max() > 1e-4, "something was learned"


def test_physical_batches_change_nothing(tmp_path: Path) -> None:
    model = bert(tmp_path)
    data, start = texts(model), stirred(model)
    dp = DPWork(1.0, 0.1, 0.5, 6.0)
    whole = play(model, data, start, dp, entropy=SeededEntropy(1), physical_tokens=10_000, steps=3)
    cut = play(model, data, start, dp, entropy=SeededEntropy(1), physical_tokens=16, steps=3)
    np.testing.assert_allclose(whole.vector, cut.vector, atol=1e-6)
    assert whole.steps == cut.steps == 3


def test_one_record_moves_the_sum_by_at_most_the_clip() -> None:
    """Neighbours by one record, whatever it is: the released sum (no noise) differs by <= C, after rounding."""
    model = logistic()
    start = stirred(model)
    data = images(30)
    assert data.images is not None
    assert data.labels is not None
    for scale in (1.0, 1e4, 1e30, 0.0):
        extra = np.concatenate([data.images, data.images[:1] * np.float32(scale)])
        more = Encoded(images=extra, labels=np.append(data.labels, 1))
        dp = DPWork(0.0, 0.3, 1.0, 1.0)
        with_it = play(model, more, start, dp, learning_rate=1.0).vector.astype(np.float64)
        without = play(model, data, start, dp, learning_rate=1.0).vector.astype(np.float64)
        assert np.linalg.norm(with_it - without) <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_released_noise_has_the_size_it_claims_and_another_size_is_noticed(factor: float) -> None:
    """Zero gradients: what is released is the noise. 48 coordinates x 200 draws = 9,600 values; the standard
    deviation's relative error is 0.72 %, so a bound of 4 % fails by chance once in 10^7 runs."""
    model = logistic()
    start = np.zeros(model.layout.size, np.float32)
    data = images(1)
    released = []
    for _ in range(200):
        dp = DPWork(2.0 * factor, 0.5, 1e-9, 4.0)  # nobody is ever drawn
        released.append(play(model, data, start, dp, learning_rate=1.0).vector)
    found = float(np.std(np.concatenate(released)))
    right = 2.0 * 0.5 / 4.0
    assert (abs(found / right - 1) < 0.04) == (factor == 1.0)


def test_batches_are_poisson_samples() -> None:
    """200 steps over 40 records at q = 0.3: mean 12, variance 8.4; bounds of five standard errors."""
    model = logistic()
    sizes = [play(model, images(), stirred(model), DPWork(1.0, 1.0, 0.3, 12.0)).examples for _ in range(200)]
    assert abs(np.mean(sizes) - 12) < 5 * np.sqrt(8.4 / 200)
    assert 4.5 < np.var(sizes) < 13.5


# ------------------------------------------------------------------------------------------- the traps


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_empty_batches_are_steps_of_noise_that_count(tmp_path: Path, kind: str) -> None:
    model = logistic() if kind == "images" else bert(tmp_path)
    data = images() if kind == "images" else texts(model)
    result = play(model, data, stirred(model), DPWork(1.0, 1.0, 1e-9, 1.0), steps=5)
    assert (result.steps, result.examples) == (5, 0)
    assert result.diagnostics["empty_batches"] == 5
    assert not np.array_equal(result.vector, stirred(model))


def test_a_second_round_works_on_the_same_model_and_hooks_are_gone_between(tmp_path: Path) -> None:
    model = bert(tmp_path)
    for _ in range(3):
        play(model, texts(model), stirred(model), DPWork(1.0, 1.0, 0.5, 6.0))
        assert not hasattr(model.module, "autograd_grad_sample_hooks")
        assert not any(m._forward_hooks or m._backward_hooks for m in model.module.modules())


def test_hooks_are_gone_after_a_failure(tmp_path: Path) -> None:
    model = bert(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), per_sample_gradients(model.module):
        raise RuntimeError("boom")
    assert not hasattr(model.module, "autograd_grad_sample_hooks")


def test_hooks_twice_are_refused_and_the_first_ones_stay(tmp_path: Path) -> None:
    model = bert(tmp_path)
    model.set_trainable(model.layout.names)
    with per_sample_gradients(model.module):
        with pytest.raises(ModelError, match="already"), per_sample_gradients(model.module):
            pass
        assert hasattr(model.module, "autograd_grad_sample_hooks")


def test_hooks_lie_on_the_trained_part_alone_and_other_hooks_inside_are_noticed(tmp_path: Path) -> None:
    model = bert(tmp_path)
    model.set_trainable(tuple(n for n in model.layout.names if model.part_of[n] == "head"))
    head: Any = model.module.head
    assert trained_root(model.module) is head
    with per_sample_gradients(model.module):
        hooked = [m for m in model.module.modules() if m._forward_hooks]
        assert hooked == [head]
        model.set_trainable(model.layout.names)
        assert trained_root(model.module) is model.module
        with pytest.raises(ModelError, match="already"), per_sample_gradients(model.module):
            pass


def test_a_module_that_was_let_through_before_is_not_looked_through_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = logistic()
    looks: list[nn.Module] = []
    monkeypatch.setattr(dp_sgd, "refuse_unsupported", looks.append)
    with per_sample_gradients(model.module):
        pass
    with per_sample_gradients(model.module, known=True):
        pass
    assert looks == [model.module]


@pytest.mark.parametrize(("wide", "narrow"), [(17, 3), (3, 17), (5, 5)])
@pytest.mark.parametrize("shape", [(4,), (4, 6)])
def test_a_linear_layers_rows_are_each_records_own_gradient(
    wide: int, narrow: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(wide, narrow)
    given, weights = torch.randn(*shape, wide), torch.randn(*shape, narrow)
    with per_sample_gradients(layer):
        (layer(given) * weights).sum().backward()
        weight, bias = layer.weight.grad_sample, layer.bias.grad_sample
    for i in range(4):
        one = nn.Linear(wide, narrow)
        one.load_state_dict(layer.state_dict())
        (one(given[i]) * weights[i]).sum().backward()
        torch.testing.assert_close(weight[i], one.weight.grad)
        torch.testing.assert_close(bias[i], one.bias.grad)


def test_a_model_left_in_eval_mode_is_put_into_training_mode(tmp_path: Path) -> None:
    model = bert(tmp_path)
    model.module.eval()
    start = stirred(model)
    assert not np.array_equal(play(model, texts(model), start, DPWork(0.0, 1.0, 1.0, 12.0)).vector, start)


def test_non_reentrant_checkpointing_is_refused(tmp_path: Path) -> None:
    model = bert(tmp_path)
    backbone: Any = model.module.backbone
    backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ModelError, match="use_reentrant=True"):
        play(model, texts(model), stirred(model), DPWork(1.0, 1.0, 0.5, 6.0))


def test_reentrant_checkpointing_is_accepted_and_gives_the_same_step(tmp_path: Path) -> None:
    plain, saving = bert(tmp_path / "a"), bert(tmp_path / "b", gradient_checkpointing=True)
    start, dp = stirred(plain), DPWork(0.0, 0.1, 1.0, 12.0)
    one = play(plain, texts(plain), start, dp).vector
    two = play(saving, texts(saving), start, dp).vector
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_batch_norm_is_refused_with_the_reason() -> None:
    model = logistic()
    model.module.add_module("norm", nn.BatchNorm1d(3))
    with pytest.raises(ModelError, match="mixes records"):
        play(model, images(), stirred(model), DPWork(1.0, 1.0, 0.5, 20.0))


def test_tied_trained_tensors_are_refused() -> None:
    model = logistic()
    linear = next(m for m in model.module.modules() if isinstance(m, nn.Linear))
    twin = nn.Linear(linear.in_features, linear.out_features)
    twin.weight = linear.weight
    model.module.add_module("twin", twin)
    with pytest.raises(ModelError, match="one trained tensor"):
        play(model, images(), stirred(model), DPWork(1.0, 1.0, 0.5, 20.0))


@pytest.fixture
def peft_bert(tmp_path: Path) -> Any:
    from transformers import AutoModel

    from tests.securefed.models import tiny

    def build(**options: Any) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        base = AutoModel.from_pretrained(tiny.tiny_bert(tmp_path))
        made: nn.Module = get_peft_model(base, LoraConfig(r=2, **options))
        return made

    return build


def test_dora_is_refused_with_the_reason(peft_bert: Any) -> None:
    with (
        pytest.raises(ModelError, match="DoRA"),
        per_sample_gradients(peft_bert(target_modules=["query"], use_dora=True)),
    ):
        pass


def test_lora_on_an_embedding_is_refused_with_the_way_out(peft_bert: Any) -> None:
    with (
        pytest.raises(ModelError, match="embedding"),
        per_sample_gradients(peft_bert(target_modules=["word_embeddings"])),
    ):
        pass


def test_a_record_with_a_non_finite_gradient_adds_nothing_and_poisons_nothing() -> None:
    model = logistic()
    data, start = images(10), stirred(model)
    assert data.images is not None
    poisoned = replace(data, images=data.images.copy())
    assert poisoned.images is not None
    poisoned.images[3] = np.inf
    clean = Encoded(images=np.delete(data.images, 3, 0), labels=np.delete(data.labels, 3))  # type: ignore[arg-type]  # labels are given
    dp = DPWork(0.0, 0.5, 1.0, 10.0)
    found = play(model, poisoned, start, dp)
    assert found.diagnostics["non_finite_gradients"] == 1
    np.testing.assert_allclose(found.vector, play(model, clean, start, dp).vector, atol=1e-6)


def test_the_noise_is_the_streams_and_torchs_generator_is_not_touched(tmp_path: Path) -> None:
    model = bert(tmp_path)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    dp = DPWork(1.0, 1.0, 0.5, 6.0)
    one = play(model, texts(model), stirred(model), dp, entropy=SeededEntropy(1)).vector
    assert torch.equal(torch.get_rng_state(), state), "noise from torch's Mersenne Twister can be predicted"
    torch.manual_seed(0)
    two = play(model, texts(model), stirred(model), dp, entropy=SeededEntropy(2)).vector
    assert not np.array_equal(one, two)
    torch.manual_seed(99)
    assert np.array_equal(one, play(model, texts(model), stirred(model), dp, entropy=SeededEntropy(1)).vector)


def test_noise_is_fresh_in_every_round_and_for_every_client() -> None:
    model, start = logistic(), np.zeros(51, np.float32)
    dp, entropy = DPWork(1.0, 1.0, 1e-9, 1.0), SeededEntropy(5)
    seen = {
        train_locally(
            model,
            images(2),
            start,
            LocalWork(c, r, tuple(model.layout.names)),
            train(),
            dp=dp,
            entropy=entropy,
            seed=0,
        ).vector.tobytes()
        for c in range(3)
        for r in range(3)
    }
    assert len(seen) == 9


@pytest.mark.parametrize(
    "dp",
    [
        DPWork(-1.0, 1.0, 0.5, 1.0),
        DPWork(np.nan, 1.0, 0.5, 1.0),
        DPWork(1.0, 0.0, 0.5, 1.0),
        DPWork(1.0, 1.0, 0.0, 1.0),
        DPWork(1.0, 1.0, 0.5, 0.0),
    ],
)
def test_a_mechanism_that_bounds_nothing_is_refused(dp: DPWork) -> None:
    model = logistic()
    with pytest.raises(PrivacyError):
        play(model, images(), stirred(model), dp)


def test_dp_without_entropy_is_refused() -> None:
    model = logistic()
    work = LocalWork(0, 0, tuple(model.layout.names))
    with pytest.raises(PrivacyError, match="entropy"):
        train_locally(
            model,
            images(),
            stirred(model),
            work,
            train(),
            dp=DPWork(1.0, 1.0, 0.5, 20.0),
            entropy=None,
            seed=0,
        )


def test_clipping_holds_in_float32_for_awkward_norms() -> None:
    """Random directions and lengths around the clip: no clipped record is longer than the clip."""
    rng = np.random.default_rng(0)
    p = nn.Parameter(torch.zeros(1000))
    optimizer = KeyedDPOptimizer(
        torch.optim.SGD([p], lr=1.0), DPWork(0.0, 0.7, 1.0, 1.0), SeededEntropy(0).stream("x"), Seen()
    )
    for _ in range(200):
        g = rng.standard_normal(1000).astype(np.float32) * np.float32(10.0 ** rng.uniform(-4, 10))
        setattr(p, "grad_sample", torch.from_numpy(g)[None])  # noqa: B010  # torch's type does not know it
        p.summed_grad = None  # type: ignore[attr-defined]  # Opacus' attribute
        optimizer.clip_and_accumulate()
        assert float(p.summed_grad.double().norm()) <= 0.7  # type: ignore[attr-defined]  # Opacus' attribute
