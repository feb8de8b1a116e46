"""`PrivateTrainer`: the arguments people have, the mechanism of `make_private`, checkpoints that keep the account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from securefed import PrivateTrainer
from securefed.errors import CheckpointError, PrivacyError
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from tests.entropy import SeededEntropy
from tests.securefed.models import tiny

RECORDS = 40


def records(n: int = RECORDS) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(n):
        ids = generator.integers(5, 20, generator.integers(3, 9))
        found.append({"input_ids": ids.tolist(), "labels": int(ids[0] % 2)})
    return found


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(r["input_ids"]) for r in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, r in enumerate(batch):
        k = len(r["input_ids"])
        ids[i, :k], mask[i, :k], labels[i, :k] = torch.tensor(r["input_ids"]), 1, torch.tensor(r["input_ids"])
    one = isinstance(batch[0]["labels"], int)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.tensor([r["labels"] for r in batch]) if one else labels,
    }


def lora(folder: Path, dropout: float = 0.1) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny.tiny_bert(folder), num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=dropout)
    return get_peft_model(base, config)


def arguments(folder: Path, **changes: Any) -> Any:
    from transformers import TrainingArguments

    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 0.05,
        "max_grad_norm": 0.5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 2,
        **changes,
    }
    return TrainingArguments(str(folder / "out"), **options)


def trainer(folder: Path, model: Any = None, data: Any = None, **changes: Any) -> PrivateTrainer:
    own = {
        k: changes.pop(k) for k in list(changes) if k in ("epsilon", "noise_multiplier", "delta", "entropy")
    }
    if "epsilon" not in own:
        own.setdefault("noise_multiplier", 1.0)
    return PrivateTrainer(
        lora(folder) if model is None else model,
        arguments(folder, **changes),
        train_dataset=records() if data is None else data,
        data_collator=collate,
        data_id="trainer",
        **{"delta": 1e-3, **own},
    )


def test_it_trains_counts_and_leaves_a_plain_model(tmp_path: Path) -> None:
    """Dropout, gradient accumulation, a linear schedule and bf16 as people have them."""
    made = trainer(tmp_path, epsilon=3.0, bf16=True)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad}
    made.train()
    assert made.private is not None
    assert made.state.global_step == made.private.steps_taken == 6
    assert all(not torch.equal(p, before[n]) for n, p in made.model.named_parameters() if n in before)
    assert 2.9 < made.private.epsilon() <= 3.0
    assert made.private.sample_rate == pytest.approx(8 / RECORDS)
    assert not hasattr(made.model, "autograd_grad_sample_hooks")
    rates = [line["learning_rate"] for line in made.state.log_history if "learning_rate" in line]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]
    assert "6 Gaussian steps" in made.private.statement().text()


def test_a_step_is_that_of_a_private_loop(tmp_path: Path) -> None:
    """Noise off, every record in every batch: the Trainer's step is the mean of the clipped gradients."""
    model = lora(tmp_path, dropout=0.0)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}
    expected = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in trained.items()}
    model.eval()  # no dropout in the base either
    for r in records():
        model.zero_grad()
        model(**collate([r])).loss.backward()
        norm = float(torch.cat([p.grad.flatten() for p in trained.values()]).double().norm())
        for n, p in trained.items():
            assert p.grad is not None
            expected[n] += p.grad.double() * min(1.0, 0.5 / norm)
    model.zero_grad()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    made = trainer(
        tmp_path,
        model,
        noise_multiplier=0.0,
        max_steps=1,
        per_device_train_batch_size=7,
        gradient_accumulation_steps=6,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
    )
    made.train()
    for n, p in trained.items():
        moved = (start[n] - p.detach()).double() * RECORDS
        torch.testing.assert_close(moved, expected[n], atol=2e-3, rtol=2e-3)


def test_empty_batches_are_steps(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=12,
        data=records(300),
    )
    made.train()
    assert made.private is not None
    assert made.private.steps_taken == made.state.global_step == 12


def test_training_again_is_a_new_run_on_the_same_account(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    runs = set()
    for _ in range(2):
        made.train()
        assert made.private is not None
        runs.add(made.private.run)
    assert len(runs) == 2
    assert made.private.statement().site_runs == 2


def test_a_resumed_training_is_the_same_run_and_keeps_its_spend(tmp_path: Path) -> None:
    first = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=6)
    first.train()
    assert first.private is not None
    checkpoint = tmp_path / "out" / "checkpoint-4"
    facts = json.loads((checkpoint / "privacy.json").read_text())
    assert (facts["taken"], facts["run"]) == (4, first.private.run)
    second = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=6)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.private is not None
    assert second.private.run == first.private.run
    assert second.private.steps_taken == second.state.global_step == 6
    events = Ledger.site().events(run=second.private.run)
    assert sum(e.steps for e in events if isinstance(e, SampledGaussian)) == 8, "six, and two again"


def test_a_checkpoint_without_an_account_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    first.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / "privacy.json").unlink()
    with pytest.raises(CheckpointError, match="spent"):
        trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def causal(folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny.tiny_llama(folder))
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]))


def test_a_language_model_averages_within_records_first(tmp_path: Path) -> None:
    texts = [{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in records()]
    made = trainer(tmp_path, causal(tmp_path), texts, max_steps=3)
    made.train()
    assert made.private is not None
    assert made.private.steps_taken == 3


def test_a_mean_over_all_tokens_couples_records_and_is_refused(tmp_path: Path) -> None:
    """What the Trainer itself would do: the loss of the model, divided by the batch's tokens."""
    texts = [{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in records()]
    texts[0]["labels"] = texts[0]["input_ids"] = [7]

    class Usual(PrivateTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss

    made = Usual(
        causal(tmp_path),
        arguments(tmp_path, per_device_train_batch_size=60, gradient_accumulation_steps=1),
        train_dataset=texts[1:],
        data_collator=collate,
        data_id="trainer",
        delta=1e-3,
        noise_multiplier=1.0,
        entropy=SeededEntropy(0),
    )
    with pytest.raises(PrivacyError, match=r"other records|sums over"):
        made.train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "use_reentrant",
        ),
        ({"delta": 0.5}, "1/40"),
    ],
)
def test_arguments_that_cannot_be_private_are_refused(tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        trainer(tmp_path, **changes).train()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"accountant": "gdp"}, "accountant is one of"),
        ({"delta": "1e-3"}, "delta must be a number"),
        ({"site_epsilon": True}, "site_epsilon must be a number"),
    ],
)
def test_what_is_mistyped_is_refused_before_the_first_step(tmp_path: Path, wrong: Any, words: str) -> None:
    asked = {"noise_multiplier": 1.0, "delta": 1e-3, **wrong}
    with pytest.raises(PrivacyError, match=words):
        PrivateTrainer(
            nn.Linear(2, 2), arguments(tmp_path), train_dataset=records(), data_id="trainer", **asked
        )
