"""The self-check passes honest training and stops each known way of training a lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed.crypto.entropy import SystemEntropy
from securefed.errors import SelfCheckError
from securefed.models import TaskModel
from securefed.training import local, self_check
from securefed.training.dp import DPWork
from securefed.training.local import LocalWork, train_locally
from tests.entropy import SeededEntropy
from tests.securefed.training.setups import bert, images, logistic, stirred, texts, train

DP = DPWork(1.0, 1.0, 0.5, 6.0)


def play(
    model: TaskModel, start: Any, names: Any = None, dp: DPWork = DP, check: bool = True, seed: int = 1
) -> Any:
    data = texts(model) if model.tokenizer is not None else images(12)
    work = LocalWork(0, 0, tuple(names or model.layout.names))
    entropy = SeededEntropy(seed)
    return train_locally(model, data, start, work, train(), dp=dp, entropy=entropy, seed=0, check=check)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("adapter", ["rolora", "ffa", "lora", "head", "full"])
def test_honest_training_passes_and_is_not_changed_by_the_check(
    tmp_path: Path, adapter: str, mode: str
) -> None:
    model = bert(tmp_path, adapter=adapter)
    start = model.read(model.layout)
    dp = DPWork(1.0, 1.0, 0.5, 6.0, mode)
    checked = play(model, start, dp=dp).vector
    np.testing.assert_array_equal(checked, play(model, start, dp=dp, check=False).vector)


def test_a_round_of_a_alone_while_b_is_zero_is_no_failure(tmp_path: Path) -> None:
    model = bert(tmp_path)
    names = [n for n, part in model.part_of.items() if part == "A"]
    play(model, model.read(model.layout), names)


def test_an_empty_first_batch_is_checked_all_the_same(tmp_path: Path) -> None:
    model = bert(tmp_path)
    play(model, stirred(model), dp=DPWork(1.0, 1.0, 1e-9, 1.0))


def test_a_tensor_without_per_sample_gradients_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path)
    original = model.losses

    def losing(batch: Any, label_smoothing: float = 0.0) -> torch.Tensor:
        head: Any = model.module.head
        head._forward_hooks.clear()  # what a second wrapper or an early exit does to Opacus' hooks
        return original(batch, label_smoothing)

    monkeypatch.setattr(model, "losses", losing)
    with pytest.raises(SelfCheckError, match="per-sample gradients"):
        play(model, stirred(model))


def test_per_sample_gradients_that_autograd_does_not_give_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from securefed.training.dp import RowHooks

    original = RowHooks.GRAD_SAMPLERS[nn.Linear]

    def doubled(layer: Any, activations: Any, backprops: Any) -> Any:
        return {p: 2 * g for p, g in original(layer, activations, backprops).items()}

    monkeypatch.setitem(RowHooks.GRAD_SAMPLERS, nn.Linear, doubled)
    model = logistic()
    with pytest.raises(SelfCheckError, match="differs from autograd"):
        play(model, stirred(model))


def test_gradients_of_another_batch_size_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from securefed.training.dp import RowHooks

    original = RowHooks.GRAD_SAMPLERS[nn.Linear]

    def summed(layer: Any, activations: Any, backprops: Any) -> Any:
        return {p: g.sum(0, keepdim=True) for p, g in original(layer, activations, backprops).items()}

    monkeypatch.setitem(RowHooks.GRAD_SAMPLERS, nn.Linear, summed)
    model = logistic()
    with pytest.raises(SelfCheckError):
        play(model, stirred(model))


def test_an_optimizer_that_holds_other_tensors_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known corruption: gradients and noise are right, and the weights that are used never move."""
    original = local.make_optimizer

    def on_copies(parameters: Any, part_of: Any, config: Any, work: Any) -> Any:
        optimizer = original(parameters, part_of, config, work)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return optimizer

    monkeypatch.setattr(local, "make_optimizer", on_copies)
    model = logistic()
    with pytest.raises(SelfCheckError, match="did not change"):
        play(model, stirred(model))


def test_an_adapter_that_is_trained_but_not_used_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = logistic()
    frozen = torch.ones(2, 3)
    monkeypatch.setattr(self_check, "_answer", lambda *_: frozen)  # the model's answer does not depend on it
    with pytest.raises(SelfCheckError, match="answers as before"):
        play(model, stirred(model))


def test_a_record_with_a_non_finite_gradient_does_not_stop_the_run() -> None:
    """It adds nothing; an abort would tell that it is there."""
    model, data = logistic(), images(12)
    assert data.images is not None
    data.images[0] = np.inf
    work = LocalWork(0, 0, tuple(model.layout.names))
    train_locally(
        model, data, stirred(model), work, train(), dp=DP, entropy=SeededEntropy(1), seed=0, check=True
    )


def test_the_check_releases_nothing_and_draws_nothing(tmp_path: Path) -> None:
    """With a stream that counts, the check takes not one byte of the noise."""
    model = bert(tmp_path)
    drawn: list[int] = []

    class Counting:
        def stream(self, *context: Any) -> Any:
            inner = SystemEntropy().stream(*context)

            class Stream:
                def normal(self, n: int) -> Any:
                    drawn.append(n)
                    return inner.normal(n)

                def bernoulli(self, n: int, p: float) -> Any:
                    return inner.bernoulli(n, p)

            return Stream()

    work = LocalWork(0, 0, tuple(model.layout.names))
    entropy: Any = Counting()
    train_locally(
        model, texts(model), stirred(model), work, train(), dp=DP, entropy=entropy, seed=0, check=True
    )
    assert sum(drawn) == model.layout.size
