"""Local training without DP: equal to plain PyTorch, repeatable, and each option does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.errors import ModelError
from securefed.models import TaskModel
from securefed.training.dp import DPWork
from securefed.training.local import LocalWork, train_locally
from securefed.training.optimizers import rate_factor
from tests.entropy import SeededEntropy
from tests.securefed.training.setups import bert, images, logistic, stirred, texts, train


def play(
    model: TaskModel,
    data: Any,
    start: Any,
    *,
    client: int = 0,
    round: int = 0,
    names: Any = None,
    seed: int = 0,
    **changes: Any,
) -> Any:
    work = LocalWork(client, round, tuple(names or model.layout.names))
    return train_locally(model, data, start, work, train(**changes), dp=None, entropy=None, seed=seed)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_full_batch_steps_equal_plain_pytorch(optimizer: str) -> None:
    model, data = logistic(), images(20)
    start = stirred(model)
    found = play(
        model, data, start, optimizer=optimizer, batch_size=20, steps=5, learning_rate=0.1, weight_decay=0.01
    )
    weights = {n: torch.nn.Parameter(t) for n, t in model.layout.unflatten(start).items()}
    made = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    plain = made(list(weights.values()), lr=0.1, weight_decay=0.01)
    matrix = next(w for w in weights.values() if w.dim() == 2)
    bias = next(w for w in weights.values() if w.dim() == 1)
    assert data.images is not None
    x, y = torch.from_numpy(data.images).flatten(1), torch.from_numpy(np.asarray(data.labels))
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(x @ matrix.T + bias, y).backward()
        plain.step()
    expected = model.layout.flatten({n: w.detach() for n, w in weights.items()})
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)
    assert (found.steps, found.examples) == (5, 100)


def test_epochs_see_every_record_once_each() -> None:
    model = logistic()
    result = play(model, images(50), stirred(model), steps=0, epochs=3, batch_size=16)
    assert (result.steps, result.examples) == (12, 150)


def test_the_same_seed_client_and_round_repeat_and_any_other_differs() -> None:
    model, data = logistic(), images(50)
    start = stirred(model)
    options: dict[str, Any] = {"steps": 0, "epochs": 1, "batch_size": 8}
    base = play(model, data, start, **options).vector
    np.testing.assert_array_equal(base, play(model, data, start, **options).vector)
    for other in ({"seed": 1}, {"client": 1}, {"round": 1}):
        assert not np.array_equal(base, play(model, data, start, **options, **other).vector), other


def test_dropout_repeats_and_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    model = bert(tmp_path, dropout=0.5)
    data, start = texts(model), stirred(model)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = play(model, data, start, steps=2).vector
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.testing.assert_array_equal(one, play(model, data, start, steps=2).vector)
    assert not np.array_equal(one, play(model, data, start, steps=2, round=1).vector)


def test_accumulation_equals_one_large_batch() -> None:
    model, data = logistic(), images(32)
    start = stirred(model)
    large = play(model, data, start, steps=3, batch_size=16)
    small = play(model, data, start, steps=3, batch_size=4, accumulate=4)
    np.testing.assert_allclose(large.vector, small.vector, atol=1e-6)


def test_only_the_named_tensors_move(tmp_path: Path) -> None:
    model = bert(tmp_path)
    start, names = stirred(model), [n for n, part in model.part_of.items() if part in ("B", "head")]
    moved = play(model, texts(model), start, names=names, steps=2).vector != start
    for name in model.layout.names:
        assert moved[model.layout.slice_of(name)].any() == (name in names), name


def test_head_and_client_have_their_own_rates(tmp_path: Path) -> None:
    model = bert(tmp_path)
    start, head = stirred(model), model.layout.slice_of("head.weight")
    rest = model.layout.slice_of(next(n for n, part in model.part_of.items() if part == "B"))

    def step(**changes: Any) -> Any:
        return play(model, texts(model), start, batch_size=12, **changes).vector - start

    base, own = step(learning_rate=0.1), step(learning_rate=0.1, head_learning_rate=0.3)
    np.testing.assert_allclose(own[head], 3 * base[head], rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(own[rest], base[rest], rtol=1e-3, atol=1e-7)
    override = step(learning_rate=0.1, client_learning_rate={"0": 0.2, "1": 9.0})
    np.testing.assert_allclose(override[head], 2 * base[head], rtol=1e-2, atol=1e-6)


def test_a_phases_rate_multiplies_every_rate_of_the_job() -> None:
    model, data = logistic(), images(20)
    start, options = stirred(model), train(batch_size=20, steps=1, learning_rate=0.1)
    moved = [
        train_locally(
            model,
            data,
            start,
            LocalWork(0, 0, tuple(model.layout.names), rate=rate),
            options,
            dp=None,
            entropy=None,
            seed=0,
        ).vector
        - start
        for rate in (1.0, 0.25)
    ]
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], rtol=1e-3, atol=1e-7)


def test_fedprox_adds_the_pull_to_the_global_model() -> None:
    """Two full-batch SGD steps by hand: the pull acts from the second step on."""
    model, data = logistic(), images(20)
    start = stirred(model)
    one = play(model, data, start, batch_size=20, steps=1, learning_rate=0.1).vector
    free = play(model, data, start, batch_size=20, steps=2, learning_rate=0.1).vector
    pulled = play(model, data, start, batch_size=20, steps=2, learning_rate=0.1, proximal_mu=0.7).vector
    np.testing.assert_allclose(free - pulled, 0.1 * 0.7 * (one - start), atol=1e-6)


def test_fedprox_under_dp_is_the_same_pull_after_the_noise() -> None:
    model, data = logistic(), images(20)
    start, work = stirred(model), LocalWork(0, 0, tuple(model.layout.names))
    dp = DPWork(1.0, 1.0, 0.5, 10.0)

    def step(**changes: Any) -> Any:
        config = train(learning_rate=0.1, **changes)
        return train_locally(model, data, start, work, config, dp=dp, entropy=SeededEntropy(3), seed=0).vector

    one, free, pulled = step(steps=1), step(steps=2), step(steps=2, proximal_mu=0.7)
    np.testing.assert_allclose(free - pulled, 0.1 * 0.7 * (one - start), atol=1e-6)


def test_schedules_warm_up_and_fall() -> None:
    assert [rate_factor("constant", s, 4, 2) for s in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert [rate_factor("linear", s, 4, 0) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = [rate_factor("cosine", s, 10, 0) for s in range(10)]
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)


def test_a_diverging_client_is_stopped_with_its_number_and_the_way_out() -> None:
    model = logistic()
    with pytest.raises(ModelError, match=r"client 3.*learning_rate"):
        play(model, images(10), stirred(model), client=3, steps=50, learning_rate=1e38, batch_size=10)


def test_arguments_are_left_as_they_were() -> None:
    model = logistic()
    start = stirred(model)
    before = start.copy()
    play(model, images(10), start, steps=2)
    np.testing.assert_array_equal(start, before)


def test_a_pull_towards_another_model_is_dittos_gradient() -> None:
    """Li et al. 2021, algorithm 1: v - rate (grad F(v) + lambda (v - w)), from the first step on."""
    model, data = logistic(), images(20)
    start, w = stirred(model), stirred(model) + np.float32(0.3)
    work = LocalWork(0, 0, tuple(model.layout.names), 1, w)
    options = train(batch_size=20, steps=1, learning_rate=0.1)
    free = train_locally(model, data, start, work, options, dp=None, entropy=None, seed=0).vector
    pulled = train_locally(
        model,
        data,
        start,
        work,
        train(batch_size=20, steps=1, learning_rate=0.1, proximal_mu=0.5),
        dp=None,
        entropy=None,
        seed=0,
    ).vector
    np.testing.assert_allclose(pulled, free - 0.1 * 0.5 * (start - w), atol=1e-6)


def test_two_phases_of_one_round_see_batches_and_noise_of_their_own() -> None:
    """The same noise twice would cancel in the difference of the two phases."""
    assert LocalWork(3, 5, ()).labels == (3, 5)
    assert LocalWork(3, 5, (), 1).labels == (3, 5, 1)
    model, data = logistic(), images(50)
    start = stirred(model)
    names, options = tuple(model.layout.names), train(steps=1)
    dp = DPWork(1.0, 1.0, 0.5, 25.0)
    vectors = [
        train_locally(
            model,
            data,
            start,
            LocalWork(0, 0, names, phase),
            options,
            dp=dp,
            entropy=SeededEntropy(0),
            seed=0,
        ).vector
        for phase in (0, 1, 1)
    ]
    assert np.array_equal(vectors[1], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
