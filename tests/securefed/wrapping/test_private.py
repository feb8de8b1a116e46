"""`make_private`: the released step is the definition, its noise and sampling are what is accounted, and what
would make the account untrue is refused or noticed."""

from __future__ import annotations

import copy
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from securefed import make_private
from securefed.cli import main
from securefed.errors import (
    BudgetExceeded,
    CheckpointError,
    DataError,
    ModelError,
    PrivacyError,
    SelfCheckError,
)
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.wrapping.private import Private
from securefed.wrapping.probe import StepOneCheck
from tests.entropy import SeededEntropy

RECORDS = 40


def data(records: int = RECORDS, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(records, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def loader(dataset: Any = None, batch: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset or data(), batch_size=batch, shuffle=True, **options)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def private(model: nn.Module | None = None, base: Any = None, **changes: Any) -> Private:
    model = model or net()
    optimizer = changes.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.5)
    options: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "max_grad_norm": 0.7,
        "steps": 5,
        "data_id": "tests",
        **changes,
    }
    if "epsilon" in options or "epochs" in options:
        options = {k: v for k, v in options.items() if not (k == "noise_multiplier" and "epsilon" in options)}
        options = {k: v for k, v in options.items() if not (k == "steps" and "epochs" in options)}
    return make_private(model, optimizer, loader() if base is None else base, **options)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def play(run: Private, loss: Loss | None = None, epochs: int = 1) -> list[int]:
    """The loop as people write it; the sizes of the batches it met."""
    loss = loss or nn.CrossEntropyLoss()
    sizes = []
    for _ in range(epochs):
        for x, y in run.loader:
            run.optimizer.zero_grad()
            loss(run.model(x), y).backward()
            run.optimizer.step()
            sizes.append(len(x))
    return sizes


def flat(model: nn.Module) -> np.ndarray[Any, Any]:
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])


def by_definition(model: nn.Module, dataset: TensorDataset, clip: float) -> np.ndarray[Any, Any]:
    """The sum over all records of the clipped gradient, one record at a time."""
    total = np.zeros(flat(model).size)
    for x, y in dataset:
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        g = np.concatenate(
            [p.grad.double().numpy().ravel() for p in model.parameters() if p.grad is not None]
        )
        total += g * min(1.0, clip / max(float(np.linalg.norm(g)), 1e-30))
    return total


# --------------------------------------------------------------------------------------- the mechanism


@pytest.mark.parametrize("clip", [100.0, 0.2])
@pytest.mark.parametrize("physical", [0, 7, 1])
def test_a_step_without_noise_is_the_definition_whatever_the_physical_batch(
    clip: float, physical: int
) -> None:
    model = net()
    expected = flat(model) - 0.5 * by_definition(copy.deepcopy(model), data(), clip) / RECORDS
    with private(
        model,
        loader(batch=RECORDS),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        steps=1,
        physical_batch=physical,
    ) as run:
        sizes = play(run)
    assert sum(sizes) == RECORDS + 1, "every record, and the first one alone before"
    np.testing.assert_allclose(flat(model), expected, atol=1e-6)
    assert not hasattr(model, "autograd_grad_sample_hooks"), "the model is plain again"


def test_a_first_record_without_gradient_does_not_make_its_batchs_second_part_look_coupled() -> None:
    """The check compares a part's first record with the one that was seen alone: only the first part begins with it."""
    model = nn.Linear(6, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    x, _ = data().tensors
    y = torch.ones(RECORDS, 1)
    y[0] = 0.0  # predicted exactly
    with private(model, loader(TensorDataset(x, y), batch=RECORDS), steps=2, physical_batch=7) as run:
        play(run, nn.MSELoss(), epochs=2)
    assert run.steps_taken == 2


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30, 0.0])
def test_one_record_more_moves_what_is_released_by_at_most_the_clip(scale: float) -> None:
    """Neighbouring data sets with noise off: the sums before division differ by at most max_grad_norm."""
    base = data()
    x, y = base.tensors
    more = TensorDataset(torch.cat([x, x[:1] * scale]), torch.cat([y, y[:1]]))
    ends = []
    for dataset in (base, more):
        model = net()
        start = flat(model)
        with private(
            model, loader(dataset, batch=len(dataset)), noise_multiplier=0.0, max_grad_norm=0.3, steps=1
        ) as run:
            play(run)
        ends.append((start - flat(model)) / 0.5 * len(dataset))
    assert np.linalg.norm(ends[0] - ends[1]) <= 0.3 * (1 + 1e-5)


class Silent(nn.Module):
    """Gradients are zero, so what is released is the noise; as many coordinates as are asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.line = nn.Linear(size, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.line(x.new_ones(len(x), self.line.in_features))
        return answer * 0.0 if self.training else answer


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_released_noise_has_the_size_that_is_accounted(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,002 values: the standard deviation's relative error is 0.5 %, so a bound of 3 % fails by chance once
    in 10^9 runs; a mechanism broken to 2/3 or 3/2 of its noise does not pass."""
    from securefed.training.dp import KeyedDPOptimizer

    honest = KeyedDPOptimizer.add_noise

    def broken(self: KeyedDPOptimizer) -> None:
        claimed, self.noise_multiplier = self.noise_multiplier, self.noise_multiplier * factor
        honest(self)
        self.noise_multiplier = claimed

    monkeypatch.setattr(KeyedDPOptimizer, "add_noise", broken)
    model = Silent(10_000)
    start = flat(model)
    with private(model, noise_multiplier=2.0, steps=1, max_grad_norm=0.5) as run:
        play(run)
    released = (start - flat(model)) / 0.5
    right = 2.0 * 0.5 / 8  # sigma x clip over the public denominator q N = 8
    assert (abs(float(np.std(released)) / right - 1) < 0.03) == (factor == 1.0)


def test_batches_are_poisson_samples_of_the_whole_data_set() -> None:
    """300 steps over 40 records at q = 0.2: mean 8, variance 6.4; bounds of five standard errors; every record
    is drawn about 60 times, +- 35."""
    with private(Silent(1), steps=300) as run:
        seen = np.zeros(RECORDS)
        rows = {tuple(x.tolist()): i for i, (x, _) in enumerate(data())}
        sizes = []
        for _ in range(60):
            for x, y in run.loader:
                run.optimizer.zero_grad()
                nn.functional.cross_entropy(run.model(x), y).backward()
                run.optimizer.step()
                if run._steps.released:
                    sizes.append(len(x))
                    for record in x:
                        seen[rows[tuple(record.tolist())]] += 1
    sizes += [0] * (300 - len(sizes))  # empty batches are steps, too
    assert abs(np.mean(sizes) - 8) < 5 * np.sqrt(6.4 / 300)
    assert 4.0 < np.var(sizes) < 9.0
    assert abs(seen - 60).max() < 35


def test_empty_batches_are_steps_that_count_and_move_the_model() -> None:
    model = net()
    start = flat(model)
    base = loader(data(1000), batch=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with private(model, base, optimizer=optimizer, steps=30, delta=1e-4) as run:
        schedule = run.schedule(torch.optim.lr_scheduler.StepLR(optimizer, 1, 1.0))
        sizes = []
        for x, y in run.loader:
            run.optimizer.zero_grad()
            nn.functional.cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
            schedule.step()
            sizes.append(len(x))
        assert run.steps_taken == 30
        assert len(sizes) < 30 + 1, "some of 30 batches of expected size 1 are empty"
        assert schedule.last_epoch == 30, "the schedule counts steps, shown or not"
    assert not np.array_equal(flat(model), start)


def test_the_noise_is_the_streams_and_the_same_stream_gives_the_same_model() -> None:
    ends = []
    for seed in (1, 1, 2):
        model = net()
        torch.manual_seed(7)
        with private(model, entropy=SeededEntropy(seed)) as run:
            play(run)
        ends.append(flat(model))
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_gradient_accumulation_changes_nothing_but_memory() -> None:
    ends = []
    for physical in (0, 3):
        model = net()
        with private(model, loader(batch=20), entropy=SeededEntropy(3), physical_batch=physical) as run:
            sizes = play(run)
            assert run.steps_taken == 2, "an epoch is records / batch_size steps"
        ends.append(flat(model))
    assert max(sizes) == 3
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_lora_in_a_text_model_learns_with_dicts_as_records(tmp_path: Path, mode: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from tests.securefed.models import tiny

    base = AutoModelForSequenceClassification.from_pretrained(tiny.tiny_bert(tmp_path), num_labels=2)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    ids = torch.randint(5, 20, (RECORDS, 6), generator=torch.Generator().manual_seed(0))
    texts = [{"input_ids": t, "labels": t[0] % 2} for t in ids]
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    with private(model, loader(texts), optimizer=optimizer, data_id=None, grad_sample_mode=mode) as run:
        for batch in run.loader:
            run.optimizer.zero_grad()
            run.model(**batch).loss.backward()
            run.optimizer.step()
        assert run.steps_taken == 5
    assert all(not torch.equal(p, b) for p, b in zip(trained, before, strict=True))


def test_worker_processes_load_what_was_drawn_in_this_one() -> None:
    with private(base=loader(num_workers=1), steps=5) as run:
        play(run)
        assert run.steps_taken == 5


def test_bf16_autocast_trains_and_passes_the_check() -> None:
    model = net()
    start = flat(model)
    with private(model) as run:
        for x, y in run.loader:
            run.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(run.model(x), y)
            loss.backward()
            run.optimizer.step()
    assert np.isfinite(flat(model)).all()
    assert not np.array_equal(flat(model), start)


def test_parameter_groups_keep_their_rates_and_frozen_parts_stay() -> None:
    model = net()
    for p in model[0].parameters():  # type: ignore[index]  # a Sequential
        p.requires_grad_(False)
    head = model[2]  # type: ignore[index]  # a Sequential
    frozen = flat(model[0])  # type: ignore[index]  # a Sequential
    groups = [{"params": [head.weight], "lr": 0.0}, {"params": [head.bias], "lr": 0.5}]
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    with private(model, optimizer=torch.optim.SGD(groups, lr=1.0)) as run:
        play(run)
    assert torch.equal(head.weight, weight), "a rate of 0 is a rate of 0"
    assert not torch.equal(head.bias, bias)
    assert np.array_equal(flat(model[0]), frozen)  # type: ignore[index]  # a Sequential


def test_dropout_does_not_disturb_the_check_and_comes_back_after_it() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Linear(30, 2))
    with private(model, steps=5) as run:
        play(run)
        assert model[1].p == 0.5


# ------------------------------------------------------------------------------------------ the account


def test_what_is_spent_is_what_the_accountant_says_of_the_steps() -> None:
    with private(epsilon=2.0, epochs=4) as run:
        assert run.epsilon() == 0.0
        play(run, epochs=4)
        right = epsilon_of([SampledGaussian(run.noise_multiplier, 0.2, 20)], 1e-3)
        assert run.epsilon() == pytest.approx(right)
        assert 1.9 < run.epsilon() <= 2.0
    assert Ledger.site().events(run=run.run, unit="example")
    text = run.statement().text()
    for word in (
        "one record",
        "by zero",
        "20 Gaussian steps",
        "data set tests",
        "holds against",
        "not covered",
    ):
        assert word in text, word


def test_the_command_line_prints_the_whole_statement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with private() as run:
        play(run)
        run.save(tmp_path)
    for name in (run.run, str(tmp_path)):
        assert main(["epsilon", name, "--delta", "1e-3"]) == 0
        assert capsys.readouterr().out.strip() == run.statement().text().strip()


def test_a_step_is_on_disk_as_spent_before_the_loop_sees_its_batch() -> None:
    with private(steps=3) as run:
        for spent, _ in enumerate(run.loader, start=1):
            events = Ledger.site().events(run=run.run)
            assert sum(e.steps for e in events if isinstance(e, SampledGaussian)) >= max(1, spent - 1)
            break


def test_the_loader_ends_with_the_plan_and_refuses_to_begin_again() -> None:
    with private(steps=7) as run:
        play(run, epochs=2)
        assert run.steps_taken == 7
        with pytest.raises(BudgetExceeded, match="planned steps are taken"):
            play(run)


def test_the_sites_budget_ends_the_loader_and_then_refuses() -> None:
    one = epsilon_of([SampledGaussian(1.0, 0.2, 3)], 1e-3)
    with private(steps=20, site_epsilon=one * 1.001) as run:
        play(run)
        assert run.steps_taken == 3
        with pytest.raises(BudgetExceeded, match="site"):
            play(run)
        assert run.steps_taken == 3
    with private(steps=20, site_epsilon=one * 1.001) as again, pytest.raises(BudgetExceeded, match="site"):
        play(again)


def test_runs_on_the_same_records_add_up_wherever_they_lie() -> None:
    order = torch.randperm(RECORDS)
    x, y = data().tensors
    names = []
    for dataset in (data(), TensorDataset(x[order], y[order])):
        with private(base=loader(dataset), data_id=None) as run:
            play(run)
            names.append(run.data_id)
    assert names[0] == names[1], "a shuffled copy is the same data set"
    assert run.statement().site_runs == 2
    assert run.statement().site_epsilon > run.epsilon()


def test_the_fingerprint_is_said_and_a_byte_changes_it(caplog: pytest.LogCaptureFixture) -> None:
    changed = data()
    changed.tensors[0][3, 2] += 1
    with caplog.at_level(logging.WARNING):
        first = private(data_id=None)
        first.close()
    assert first.data_id in caplog.text
    other = private(base=loader(changed), data_id=None)
    other.close()
    assert other.data_id != first.data_id


def test_augmented_records_have_no_fingerprint() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, i: int) -> Any:
            return torch.randn(6), torch.tensor(0)

    with pytest.raises(DataError, match="data_id"):
        private(base=loader(Noisy(torch.zeros(20))), data_id=None)


# -------------------------------------------------------------------------------------- stop and resume


def test_save_and_resume_go_on_where_it_stopped_and_lose_no_spend(tmp_path: Path) -> None:
    first = private(optimizer=None, steps=10, model=net())
    play(first)
    first.save(tmp_path)
    saved = flat(first.model)
    play(first)  # five more steps, which the crash forgets: they stay charged
    del first  # no close: a crash
    model = net(1)
    with private(model, steps=10).resume(tmp_path) as second:
        assert second.steps_taken == 5
        assert np.array_equal(flat(model), saved)
        play(second)
        assert second.steps_taken == 10
        steps = sum(e.steps for e in Ledger.site().events(run=second.run) if isinstance(e, SampledGaussian))
        assert steps == 15
        assert second.statement().site_runs == 1, "a resumed run is the same run"


def test_adam_and_its_schedule_resume_with_their_state(tmp_path: Path) -> None:
    def start(model: nn.Module) -> tuple[Private, Any]:
        run = private(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.01), steps=10)
        return run, run.schedule(torch.optim.lr_scheduler.LinearLR(run.optimizer, 1.0, 0.1, 10))

    def go(run: Private, schedule: Any) -> None:
        for x, y in run.loader:
            run.optimizer.zero_grad()
            nn.functional.cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
            schedule.step()

    run, schedule = start(net())
    go(run, schedule)
    run.save(tmp_path)
    run.close()
    again, later = start(net(1))
    again.resume(tmp_path)
    assert later.last_epoch == 5
    assert later.get_last_lr() == schedule.get_last_lr()
    old, new = run.optimizer.state_dict(), again.optimizer.state_dict()
    assert all(torch.equal(old["state"][i]["exp_avg"], new["state"][i]["exp_avg"]) for i in old["state"])
    go(again, later)
    assert again.steps_taken == 10
    again.close()


def test_no_noise_state_and_no_pickle_is_in_a_checkpoint(tmp_path: Path) -> None:
    with private() as run:
        play(run)
        folder = run.save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "state.safetensors"]
    text = (folder / "state.json").read_text()
    assert "noise multiplier" in text
    assert "stream" not in text
    assert "key" not in text


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"noise_multiplier": 2.0}, "noise multiplier"),
        ({"data_id": "other"}, "data set"),
        ({"steps": 6}, "plan"),
        ({"max_grad_norm": 1.0}, "clipping norm"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, changes: Any, word: str) -> None:
    with private() as run:
        play(run)
        run.save(tmp_path)
    with private(**changes) as other, pytest.raises(CheckpointError, match=word):
        other.resume(tmp_path)


def test_a_torn_checkpoint_is_passed_over_and_a_missing_one_is_said(tmp_path: Path) -> None:
    with private(steps=10) as run:
        play(run)
        run.save(tmp_path)
        play(run)
        newest = run.save(tmp_path)
    (newest / "state.safetensors").write_bytes(b"torn")
    with private(steps=10).resume(tmp_path) as again:
        assert again.steps_taken == 5
    with private() as other, pytest.raises(CheckpointError, match="no whole checkpoint"):
        other.resume(tmp_path / "nothing")


KILLED = """
import os, signal, sys, torch
from torch.utils.data import DataLoader, TensorDataset
from securefed import make_private
from securefed.cli import main
x = torch.arange(240.0).reshape(40, 6) / 240
model = torch.nn.Linear(6, 2)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0.5).long()), batch_size=20, shuffle=True)
run = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), loader, noise_multiplier=1.0, delta=1e-3,
                   max_grad_norm=1.0, steps=200, data_id="killed")
print(run.run, flush=True)
for epoch in range(100):
    for x, y in run.loader:
        run.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()
        if run.steps_taken == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_charged_every_step_it_took_and_at_most_one_portion_more() -> None:
    for taken in (1, 6):
        found = subprocess.run(
            [sys.executable, "-c", KILLED, str(taken)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert found.returncode == -9, found.stderr
        events = Ledger.site().events(run=found.stdout.strip())
        charged = sum(e.steps for e in events if isinstance(e, SampledGaussian))
        assert taken <= charged <= taken + 4, "a portion is a fiftieth of 200 steps"


# ------------------------------------------------------------------------------------------- refusals


def refused(kind: type[Exception], words: str, **changes: Any) -> None:
    with pytest.raises(kind, match=words):
        private(**changes)


def test_epsilon_or_noise_one_of_them() -> None:
    model, base = net(), loader()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    common: dict[str, Any] = {"delta": 1e-3, "max_grad_norm": 1.0, "steps": 1, "data_id": "tests"}
    with pytest.raises(PrivacyError, match="one of them"):
        make_private(model, optimizer, base, **common)
    with pytest.raises(PrivacyError, match="one of them"):
        make_private(model, optimizer, base, epsilon=1.0, noise_multiplier=1.0, **common)
    with pytest.raises(PrivacyError, match="adds no noise"):
        make_private(model, optimizer, base, epsilon=1.0, noise_multiplier=0.0, **common)
    for plan in ({}, {"steps": 1, "epochs": 1}, {"steps": 0}, {"epochs": -1}):
        with pytest.raises(PrivacyError, match="steps"):
            make_private(
                model,
                optimizer,
                base,
                noise_multiplier=1.0,
                delta=1e-3,
                max_grad_norm=1.0,
                data_id="t",
                **plan,
            )


def test_delta_must_be_below_one_over_the_records() -> None:
    refused(PrivacyError, "1/40", delta=1 / 40)
    refused(PrivacyError, "delta", delta=0.0)


def test_a_budget_below_what_one_step_costs_is_refused() -> None:
    refused(PrivacyError, "one step", site_epsilon=1e-4)
    refused(PrivacyError, "out of reach", epsilon=1e-9, delta=1e-12)


def test_an_ordered_or_weighted_or_endless_loader_is_refused() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    refused(PrivacyError, "shuffle=True", base=DataLoader(data(), batch_size=8))
    refused(PrivacyError, "IterableDataset", base=DataLoader(Endless(), batch_size=8))
    weights = WeightedRandomSampler([1.0] * RECORDS, RECORDS)
    refused(PrivacyError, "WeightedRandomSampler", base=DataLoader(data(), batch_size=8, sampler=weights))
    again = RandomSampler(data(), replacement=True)
    refused(PrivacyError, "replacement", base=DataLoader(data(), batch_size=8, sampler=again))
    refused(DataError, "DataLoader", base=[1, 2])


def test_models_whose_records_are_not_separate_are_refused() -> None:
    refused(ModelError, "mixes records", model=nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    refused(ModelError, "one trained tensor", model=tied)


def test_an_optimizer_that_does_not_fit_the_model_is_refused() -> None:
    model = net()
    refused(ModelError, "not the model's", optimizer=torch.optim.SGD(net().parameters(), lr=1.0))
    some = torch.optim.SGD(model[0].parameters(), lr=1.0)  # type: ignore[index]  # a Sequential
    refused(ModelError, "never learn", model=model, optimizer=some)


def test_a_model_cannot_be_made_private_twice_at_once() -> None:
    model = net()
    with private(model):
        refused(ModelError, "already", model=model)
    private(model).close()


# ----------------------------------------------------------------------------- loops that would void it


def test_a_loss_that_sums_is_refused_at_step_one() -> None:
    with private() as run, pytest.raises(PrivacyError, match='reduction="mean"'):
        play(run, nn.CrossEntropyLoss(reduction="sum"))
    assert run.steps_taken == 0


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0])),  # divides by the batch's sum of weights
        lambda out, y: nn.functional.cross_entropy(out - out.mean(0), y),  # records in each other's logits
    ],
)
def test_a_loss_that_couples_records_is_refused_at_step_one(loss: Loss) -> None:
    x, _ = data().tensors
    y = torch.zeros(RECORDS, dtype=torch.long)
    y[::2] = 1
    with (
        private(base=loader(TensorDataset(x, y), batch=30)) as run,
        pytest.raises(PrivacyError, match="other records"),
    ):
        play(run, loss)
    assert run.steps_taken == 0


def test_without_the_check_a_sum_would_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard, broken on purpose: nothing else stops the loop, so the check above is what does."""
    monkeypatch.setattr(StepOneCheck, "_see_reduction", lambda self, rows: None)
    with private() as run:
        play(run, nn.CrossEntropyLoss(reduction="sum"))
        assert run.steps_taken == 5


def loop(run: Private, between: Callable[[], None], x: torch.Tensor | None = None, steps: int = 1) -> None:
    """The loop with something done between backward and step, on other data than the loader's, or stepping oddly."""
    for mine, labels in run.loader:
        run.optimizer.zero_grad()
        batch = mine if x is None else x
        target = labels if x is None else torch.zeros(len(x), dtype=torch.long)
        nn.functional.cross_entropy(run.model(batch), target).backward()
        between()
        for _ in range(steps):
            run.optimizer.step()


def test_gradients_changed_between_backward_and_step_are_noticed() -> None:
    model = net()
    with private(model) as run, pytest.raises(SelfCheckError, match="clip_grad_norm_"):
        loop(run, lambda: void(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))


def void(_: Any) -> None:
    return None


def test_a_step_on_other_data_is_refused() -> None:
    x, y = data().tensors
    with private() as run:
        nn.functional.cross_entropy(run.model(x[:8]), y[:8]).backward()
        with pytest.raises(PrivacyError, match="not Poisson sampled"):
            run.optimizer.step()
        with pytest.raises(SelfCheckError, match="other records"):
            loop(run, lambda: None, x)


def test_the_optimizer_underneath_cannot_step_past_the_noise() -> None:
    """Out of habit: `optimizer.step()` where `private.optimizer.step()` is meant."""
    model = net()
    optimizer, start = torch.optim.SGD(model.parameters(), lr=0.5), flat(model)
    with private(model, optimizer=optimizer) as run:
        x, y = next(iter(run.loader))
        nn.functional.cross_entropy(model(x), y).backward()
        with pytest.raises(PrivacyError, match=r"private.optimizer.step"):
            optimizer.step()
    assert np.array_equal(flat(model), start)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()  # after the end it is theirs again
    assert not np.array_equal(flat(model), start)


@pytest.mark.parametrize("name", ["noise_multiplier", "max_grad_norm"])
def test_a_mechanism_changed_on_the_way_is_noticed(name: str) -> None:
    with private() as run:
        setattr(run.optimizer, name, 0.1)
        with pytest.raises(PrivacyError, match="not those that are accounted"):
            play(run)


def test_two_steps_on_a_batch_or_none_are_refused() -> None:
    with private() as run, pytest.raises(PrivacyError, match="without a batch"):
        loop(run, lambda: None, steps=2)
    with private() as run, pytest.raises(PrivacyError, match=r"no optimizer.step"):
        loop(run, lambda: None, steps=0)


def test_an_adapter_that_does_not_learn_is_noticed() -> None:
    """What is trained is not what answers: a second module is called, the trained one only touched by the loss."""

    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.adapter = nn.Linear(6, 2).requires_grad_(False), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.base(x)
            if self.training:  # merged for evaluation into weights that training never reaches
                answer = answer + self.adapter(x)
            return answer

    with private(Bypassed()) as run, pytest.raises(SelfCheckError, match="answers as before"):
        play(run)


def test_dropout_masks_do_not_follow_a_seed_that_somebody_knows() -> None:
    """Every batch has a secret seed of its own, whatever the script sets."""
    seeds = []
    with private(nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Linear(30, 2)), steps=5) as run:
        torch.manual_seed(0)
        for x, y in run.loader:
            seeds.append(torch.initial_seed())
            run.optimizer.zero_grad()
            nn.functional.cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
    assert 0 not in seeds
    assert len(set(seeds)) == len(seeds) >= 5


def test_a_trained_tensor_outside_the_forward_pass_is_noticed() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.used(x)
            return answer

    with private(Idle()) as run, pytest.raises(SelfCheckError, match="idle"):
        play(run)


def test_running_statistics_that_pass_by_the_noise_are_noticed() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(6, 2)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.mean.add_(x.mean(0).detach())
            answer: torch.Tensor = self.line(x)
            return answer

    with private(Counting()) as run, pytest.raises((PrivacyError, ModelError), match=r"mean|buffer"):
        play(run)


def test_a_closed_training_is_closed() -> None:
    run = private()
    run.close()
    run.close()
    with pytest.raises(PrivacyError, match="closed"):
        play(run)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"accountant": "gdp"}, "accountant is one of pld, prv, rdp"),
        ({"grad_sample_mode": "ghost"}, "grad_sample_mode is one of"),
        ({"physical_batch": 1.5}, "physical_batch must be a whole number"),
        ({"physical_batch": -1}, "physical_batch must be a whole number"),
        ({"delta": "1e-5"}, "delta must be a number"),
        ({"max_grad_norm": "1"}, "max_grad_norm must be a number"),
        ({"noise_multiplier": True}, "noise_multiplier must be a number"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be a finite number >= 0"),
        ({"steps": math.inf}, "whole numbers"),
        ({"steps": math.nan}, "whole numbers"),
        ({"data_id": 5}, "data_id is the data set's name"),
        ({"data_id": ""}, "data_id is the data set's name"),
    ],
)
def test_what_is_of_no_known_word_or_type_is_refused_at_once(wrong: dict[str, Any], said: str) -> None:
    """Not at the first question for an epsilon, when the training is over."""
    model = nn.Linear(4, 2)
    data = TensorDataset(torch.randn(64, 4), torch.zeros(64).long())
    asked: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "max_grad_norm": 1.0,
        "steps": 3,
        "data_id": "x",
        **wrong,
    }
    loader = DataLoader(data, batch_size=8, shuffle=True)
    with pytest.raises(PrivacyError, match=said):
        make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), loader, **asked)
