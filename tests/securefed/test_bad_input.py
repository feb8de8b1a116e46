"""What would void a guarantee is refused at every depth where it can be said, and each time with what to do instead.

Depths: a loop (`make_private`), a Trainer, any code (`federate`), a job (`run`). A loss that sums, and records that
touch each other in it, can only be seen at step one: `wrapping/test_private.py`, `wrapping/test_trainer.py`.
A job and `federate` have no loader or loss of the user's, and client-level clipping bounds any module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import securefed as sf
from securefed.errors import ModelError, SecureFedError
from securefed.privacy.ledger import Ledger
from tests.securefed.test_federation import CLIENT, PRIVATE
from tests.securefed.wrapping.test_federate import federate
from tests.securefed.wrapping.test_private import RECORDS, data, private
from tests.securefed.wrapping.test_trainer import trainer


def loop(folder: Path, **changes: Any) -> Any:
    return private(**changes)


def trained(folder: Path, **changes: Any) -> Any:
    return trainer(folder, **changes).train()


def job(folder: Path, base: dict[str, Any] = PRIVATE, **changes: Any) -> Any:
    privacy = {**base["privacy"], **changes}
    if "epsilon" in changes and "noise_multiplier" not in changes:
        privacy.pop("noise_multiplier")
    return sf.run({**base, "privacy": privacy}, folder=folder / "job")


def client_job(folder: Path, **changes: Any) -> Any:
    return job(folder, CLIENT, **changes)


def any_code(folder: Path, **changes: Any) -> Any:
    if "epsilon" in changes and "noise_multiplier" not in changes:
        changes["noise_multiplier"] = None
    return federate(folder, **changes)


LOADER = {"base": DataLoader(data(), batch_size=8)}
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    # an order, where the account counts random batches
    (loop, LOADER, "shuffle=True"),
    (trained, {"train_sampling_strategy": "sequential"}, 'leave it at "random"'),
    (trained, {"train_sampling_strategy": "group_by_length"}, "orders the records"),
    # delta that allows whole records, or clients, to be published
    (loop, {"delta": 1 / RECORDS}, "below 1/records = 1/40"),
    (trained, {"delta": 1 / RECORDS}, "below 1/records = 1/40"),
    (job, {"delta": 0.01}, "largest has"),
    (any_code, {"delta": 1 / 20}, "below 1/clients = 1/20"),
    (client_job, {"delta": 1 / 40}, "1/40"),
    # a target below what one step costs
    (loop, {"epsilon": 1e-9, "delta": 1e-12}, "out of reach"),
    (loop, {"site_epsilon": 1e-4}, "add noise"),
    (trained, {"epsilon": 1e-9, "delta": 1e-12}, "out of reach"),
    (job, {"epsilon": 1e-9, "delta": 1e-12}, "out of reach"),
    (job, {"epsilon": 1e-4, "noise_multiplier": 1.0}, "raise the budget or add noise"),
    (any_code, {"epsilon": 1e-9, "delta": 1e-12}, "out of reach"),
    (any_code, {"site_epsilon": 1e-4}, "raise the budget or add noise"),
    (client_job, {"epsilon": 1e-4, "noise_multiplier": 1.0}, "raise the budget or add noise"),
    # a finite epsilon without noise
    (loop, {"epsilon": 1.0, "noise_multiplier": 0.0}, "no noise"),
    (trained, {"epsilon": 1.0, "noise_multiplier": 0.0}, "no noise"),
    (job, {"epsilon": 1.0, "noise_multiplier": 0.0}, "raise it or leave it out"),
    (any_code, {"epsilon": 1.0, "noise_multiplier": 0.0}, "not both"),
    (any_code, {"noise_multiplier": 0.0}, "no noise; raise it"),
    (client_job, {"epsilon": 1.0, "noise_multiplier": 0.0}, "raise it or leave it out"),
]


@pytest.mark.parametrize(
    ("depth", "changes", "words"), REFUSED, ids=lambda v: v.__name__ if callable(v) else None
)
def test_it_is_refused_with_what_to_do_and_nothing_is_spent(
    depth: Any, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    if depth is loop and "noise_multiplier" in changes:
        with pytest.raises(SecureFedError, match=words):
            sf.make_private(
                model := nn.Linear(6, 2),
                torch.optim.SGD(model.parameters(), lr=1.0),
                DataLoader(data(), batch_size=8, shuffle=True),
                delta=1e-3,
                max_grad_norm=1.0,
                steps=1,
                **changes,
            )
    else:
        with pytest.raises(SecureFedError, match=words):
            depth(tmp_path, **changes)
    with Ledger.site() as ledger:
        assert ledger.events() == ledger.events(unit="client") == ()
    assert not (tmp_path / "job").exists()


class WithBatchNorm(nn.Module):
    """A classifier as the Hugging Face Trainer takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 4)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, input_ids: Any, labels: Any = None, attention_mask: Any = None) -> Any:
        logits = self.head(self.norm(self.embed(input_ids).mean(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class WithSharedTensors(WithBatchNorm):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Linear(4, 4)  # type: ignore[assignment]  # in BatchNorm's place
        self.again = nn.Linear(4, 4)
        self.again.weight = self.norm.weight


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("depth", "model", "words"),
    [
        (loop, lambda: nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)), "GroupNorm or LayerNorm"),
        (trained, WithBatchNorm, "GroupNorm or LayerNorm"),
        (loop, tied, "freeze it or untie it"),
        (trained, WithSharedTensors, "freeze it or untie it"),
    ],
)
def test_a_model_whose_records_or_tensors_are_not_separate_is_refused(
    depth: Any, model: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        depth(tmp_path, model=model())
