"""Ghost clipping: the sums and norms of hooks without their rows, on every kind of model, and bounded after rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed.data.batch import Encoded
from securefed.errors import ModelError, SelfCheckError
from securefed.models import TaskModel
from securefed.training import ghost as ghost_module
from securefed.training.dp import DPWork, ghost_gradients, per_sample_gradients
from securefed.training.local import LocalResult, LocalWork, train_locally
from securefed.training.record_gradients import Lookups, Products
from tests.entropy import SeededEntropy
from tests.securefed.models import tiny
from tests.securefed.models.test_per_sample_gradients import CASES, load, one_by_one
from tests.securefed.training.setups import bert, images, logistic, stirred, texts, train

REFUSED = {
    "bert-checkpointing",
    "llama-checkpointing",
    "llama-tied-full",
    "gpt2-full",
}  # two passes, tied tensors


def play(model: TaskModel, data: Encoded, dp: DPWork, *, check: bool = True, **changes: Any) -> LocalResult:
    """A client's private steps from the same start, with the same batches and noise."""
    work = LocalWork(0, 0, tuple(model.layout.names))
    entropy = SeededEntropy(1)
    return train_locally(
        model, data, stirred(model), work, train(**changes), dp=dp, entropy=entropy, seed=0, check=check
    )


@pytest.mark.parametrize("case", sorted(set(CASES) - REFUSED))
def test_norms_and_weighted_sums_are_those_of_one_record_at_a_time(tmp_path: Path, case: str) -> None:
    kind, config = CASES[case]
    model, batch = load(str(getattr(tiny, f"tiny_{kind}")(tmp_path / "model")), config)
    expected = one_by_one(model, batch)
    parameters = {n: p for n, p in model.parameters.items() if p.requires_grad}
    weights = torch.rand(len(batch), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tolerance = 3e-2 if config.dtype == "bfloat16" else 1e-4
    with per_sample_gradients(model.module, "ghost") as found:
        assert found is not None
        found.backward(model.losses(batch))
        assert all(p.grad is None or not p.grad.any() for p in parameters.values())
        norms = found.squares(list(parameters.values())).sqrt()
        rows = torch.cat([expected[n].flatten(1) for n in expected], 1).double()
        torch.testing.assert_close(norms, rows.norm(dim=1), rtol=tolerance, atol=1e-7)
        for name, p in parameters.items():
            total = torch.zeros_like(p, dtype=torch.float64)
            found.add(weights, p, total)
            wanted = torch.tensordot(weights, expected[name].double(), 1)
            assert float((total - wanted).norm()) <= tolerance * float(wanted.norm()) + 1e-7, name


# ------------------------------------------------------------------------------------------- training with it


@pytest.mark.parametrize("adapter", ["lora", "rolora", "head", "full"])
def test_a_step_is_the_step_of_hooks(tmp_path: Path, adapter: str) -> None:
    model = bert(tmp_path, adapter=adapter)
    data, moved = texts(model), []
    for mode in ("hooks", "ghost"):
        dp = DPWork(1.0, 0.3, 0.5, 6.0, mode)
        found = play(model, data, dp, check=mode == "ghost", steps=3)
        moved.append(found.vector)
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4, atol=1e-5)


def test_an_empty_batch_is_a_step_of_noise() -> None:
    model = logistic()
    found = play(model, images(12), DPWork(1.0, 1.0, 1e-9, 1.0, "ghost"), steps=3)
    assert found.diagnostics["empty_batches"] == 3
    assert not np.array_equal(found.vector, stirred(model))


def test_a_record_whose_gradient_is_not_finite_adds_nothing() -> None:
    model = logistic()
    dp = DPWork(0.0, 1.0, 1.0, 12.0, "ghost")
    moved = []
    for spoilt in (np.inf, np.nan):
        data = images(12)
        assert data.images is not None
        data.images[3] = spoilt
        found = play(model, data, dp)
        assert found.diagnostics["non_finite_gradients"] == 1
        moved.append(found.vector)
    assert np.isfinite(moved[0]).all()
    np.testing.assert_array_equal(moved[0], moved[1])


def test_one_record_moves_the_sum_by_at_most_the_clip() -> None:
    model = logistic()
    clip = 0.1
    for seed in range(5):
        moved, data = [], images(13, seed=seed)
        assert data.images is not None
        assert data.labels is not None
        for records in (12, 13):
            dp = DPWork(0.0, clip, 1.0, 1.0, "ghost")
            found = play(
                model,
                Encoded(images=data.images[:records], labels=data.labels[:records]),
                dp,
                check=False,
                learning_rate=1.0,
            )
            moved.append(found.vector.astype(np.float64))
        assert 0 < np.linalg.norm(moved[1] - moved[0]) <= clip * (1 + 1e-5)


# ------------------------------------------------------------------------------------- broken on purpose


def test_norms_that_leave_out_pairs_of_positions_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known mistake: each position's norm by itself, so that what adds up over a text is clipped too late."""
    model = bert(tmp_path, adapter="full")

    def alone(self: Products) -> torch.Tensor:
        return (self.a.double().square().sum(2) * self.b.double().square().sum(2)).sum(1)

    monkeypatch.setattr(Products, "squares", alone)
    monkeypatch.setattr(ghost_module, "linear", lambda a, b: Products(b, a))
    with pytest.raises(SelfCheckError, match="records would be clipped too little"):
        _checked(model)


def test_sums_that_autograd_does_not_give_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path, adapter="full")
    original = Products.add
    monkeypatch.setattr(ghost_module, "linear", lambda a, b: Products(b, a))
    monkeypatch.setattr(Products, "add", lambda self, weights, total: original(self, 2 * weights, total))
    with pytest.raises(SelfCheckError, match="differs from autograd"):
        _checked(model)


def test_a_layer_whose_hook_was_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert(tmp_path)
    original = model.losses

    def losing(batch: Any, label_smoothing: float = 0.0) -> torch.Tensor:
        head: Any = model.module.head
        head._forward_hooks.clear()
        return original(batch, label_smoothing)

    monkeypatch.setattr(model, "losses", losing)
    with pytest.raises(SelfCheckError, match=r"head did not run in this forward pass"):
        _checked(model)


def _no_norm(self: Lookups) -> torch.Tensor:
    return torch.zeros(self.records, dtype=torch.float64)


def _positions_apart(b: torch.Tensor, words: torch.Tensor, padding: int | None) -> Lookups:
    record = torch.arange(len(b))[:, None].expand_as(words)
    return Lookups(b.double().flatten(0, 1), record.flatten(), words.flatten(), len(b))


def _weights_of_others(self: Products, weights: torch.Tensor, total: torch.Tensor) -> None:
    total.add_(torch.einsum("n,nto,nti->oi", weights.roll(1), self.b.double(), self.a.double()))


@pytest.mark.parametrize(
    ("owner", "method", "broken"),
    [
        (Lookups, "squares", _no_norm),
        (Lookups, "of", staticmethod(_positions_apart)),
        (Products, "add", _weights_of_others),
    ],
    ids=["an embedding's norm left out", "a word's positions squared apart", "another record's factor"],
)
def test_each_tensors_norm_and_the_sum_of_several_records_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, broken: Any
) -> None:
    """Faults that hide in a total over all tensors, or where records are weighed one at a time."""
    model = bert(tmp_path, adapter="full")
    texts_of = tiny.TEXTS
    monkeypatch.setattr(tiny, "TEXTS", tuple(f"{t} {t}" for t in texts_of))  # words that come twice
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises(SelfCheckError, match=r"clipped too little|differs from autograd"):
        _checked(model)


def _checked(model: TaskModel) -> None:
    play(model, texts(model), DPWork(1.0, 1.0, 0.5, 6.0, "ghost"))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(self.layer(x))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


class Unused(nn.Module):
    """One of its layers runs and reaches no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.idle(x)
        out: torch.Tensor = self.layer(x)
        return out


class InPlace(nn.Module):
    """Its layer's input is written to after it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        out: torch.Tensor = self.layer(x)
        x.mul_(2.0)
        return out


class Pairs(nn.Module):
    """A recurrent layer gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x[:, None])[0][:, 0]
        return out


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Twice, "ran twice"),
        (Tied, "serves two layers"),
        (Unused, "do not depend on the output of idle"),
        (InPlace, "input was changed after layer"),
        (Pairs, "more than one tensor"),
    ],
)
def test_a_tensor_that_serves_twice_is_refused(made: Any, said: str) -> None:
    module = made()
    with pytest.raises(SelfCheckError, match=said):
        ghost_gradients(module).backward(module(torch.randn(4, 3)).sum(1))


def test_records_that_cannot_be_told_apart_are_refused() -> None:
    layer = nn.Linear(3, 2)
    found = ghost_gradients(layer)
    with pytest.raises(SelfCheckError, match="cannot be told apart"):
        found.backward(layer(torch.randn(8, 3)).reshape(4, 2, 2).sum((1, 2)))
    with pytest.raises(SelfCheckError, match="did not run in this forward pass"):
        found.backward(torch.zeros(4))


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_models_that_run_or_hold_a_layer_twice_are_refused(tmp_path: Path, case: str) -> None:
    kind, config = CASES[case]
    model, _ = load(str(getattr(tiny, f"tiny_{kind}")(tmp_path / "model")), config)
    with (
        pytest.raises(ModelError, match=r"computes it twice|one trained tensor"),
        per_sample_gradients(model.module, "ghost"),
    ):
        pass


class Weighed(nn.Module):
    """Trained numbers of its own beside a trained layer: followed as one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0]))
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.scale
        return out


def test_a_part_with_numbers_of_its_own_is_followed_whole_and_ids_need_no_positions() -> None:
    part, x = Weighed(), torch.randn(4, 3)
    found = ghost_gradients(part)
    found.backward(part(x).square().sum(1))
    for p in part.parameters():
        rows = []
        for i in range(4):
            part.zero_grad()
            part(x[i : i + 1]).square().sum().backward()
            assert p.grad is not None
            rows.append(p.grad.double().clone())
            found._ran.clear()
        torch.testing.assert_close(found.rows(p, 4), torch.stack(rows), rtol=1e-5, atol=1e-6)
    found.remove()
    assert not hasattr(part, "ft_compute_sample_grad")
    table, ids = nn.Embedding(6, 3), torch.tensor([1, 1, 5])
    single = ghost_gradients(table)
    single.backward(table(ids).sum(1))
    assert single.rows(table.weight, 3)[:, :, 0].tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_nothing_stays_behind_where_a_model_is_refused_and_two_at_once_are(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 2, max_norm=1.0))
    with pytest.raises(ModelError, match="max_norm"):
        ghost_gradients(net)
    assert not any(m._forward_hooks for m in net.modules())
    model = bert(tmp_path)
    with per_sample_gradients(model.module, "ghost"):
        for mode in ("ghost", "hooks"):
            with pytest.raises(ModelError, match="already"), per_sample_gradients(model.module, mode):
                pass
    with per_sample_gradients(model.module, "ghost"):
        pass


def test_checkpointing_and_tables_that_change_as_they_are_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="max_norm"):
        ghost_gradients(nn.Embedding(4, 2, max_norm=1.0))
    model = bert(tmp_path, gradient_checkpointing=True)
    with pytest.raises(ModelError, match="computes it twice"), per_sample_gradients(model.module, "ghost"):
        pass


def test_hooks_are_gone_afterwards_and_after_a_failure(tmp_path: Path) -> None:
    model = bert(tmp_path, adapter="full")
    with pytest.raises(RuntimeError, match="boom"), per_sample_gradients(model.module, "ghost"):
        raise RuntimeError("boom")
    assert not any(m._forward_hooks for m in model.module.modules())
