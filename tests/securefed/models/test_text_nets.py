"""Small text nets: the same ids everywhere, padding that changes nothing, a gradient for each record, a way to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models import TaskModel, load_model, load_result
from securefed.models.text_nets import VOCABULARY, hash_tokens
from securefed.training.dp import GRAD_SAMPLE, per_sample_gradients
from tests.securefed.models.tiny import examples

KNOWN = [789, 1617, 2377, 2240]
NAMES = ("bag", "transformer")


def net(name: str, hidden: int = 8) -> TaskModel:
    return load_model(ModelConfig(name=name, adapter="full", hidden=hidden, device="cpu"), classes=2)


def test_a_words_id_is_the_same_in_every_process() -> None:
    """Known answers: `hash()` of a string would differ from process to process. Written down from a first run."""
    assert hash_tokens("A fine film!", 8).tolist() == KNOWN


def test_ids_leave_the_filler_free_and_keep_to_the_length() -> None:
    ids = hash_tokens(" ".join(f"word{i}" for i in range(500)), 40)
    assert ids.shape == (40,)
    assert ids.min() >= 1
    assert ids.max() < VOCABULARY
    assert hash_tokens("   ", 5).shape == (1,)


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_change_a_records_logits(name: str) -> None:
    model = net(name)
    data = model.encode(examples(6), 16)
    together = model.logits(collate(data, range(6)))
    alone = torch.cat([model.logits(collate(data, [i])) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_records_gradient_is_that_of_its_own_loss(name: str) -> None:
    model = net(name)
    data = model.encode(examples(4), 16)
    model.set_trainable(model.layout.names)
    with per_sample_gradients(model.module):
        model.losses(collate(data, range(4))).sum().backward()
        rows = {n: getattr(p, GRAD_SAMPLE).clone() for n, p in model.parameters.items()}
    for i in range(4):
        model.module.zero_grad()
        model.losses(collate(data, [i])).sum().backward()
        for n, p in model.parameters.items():
            assert p.grad is not None
            torch.testing.assert_close(rows[n][i], p.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_draws_it_and_a_folder_keeps_it(name: str, tmp_path: Path) -> None:
    model = net(name)
    vector = model.read(model.layout)
    np.testing.assert_array_equal(vector, net(name).read(model.layout))
    model.write(vector + np.float32(0.5), model.layout)
    model.save_adapter(tmp_path / "out")
    opened = load_result(tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(opened.read(opened.layout), vector + np.float32(0.5))
    data = model.encode(examples(3), 16)
    torch.testing.assert_close(opened.logits(collate(data, range(3))), model.logits(collate(data, range(3))))


def test_what_they_cannot_read_or_be_is_refused() -> None:
    with pytest.raises(ModelError, match="read texts"):
        net("bag").encode(
            Examples(images=np.zeros((1, 1, 4, 4), np.float32), labels=np.zeros(1, np.int64)), 8
        )
    with pytest.raises(ModelError, match="must be a multiple of"):
        net("transformer", hidden=10)
    with pytest.raises(ModelError, match='adapter = "full"'):
        load_model(ModelConfig(name="bag", adapter="lora", device="cpu"), classes=2)
    with pytest.raises(ModelError, match="between 1 and 512"):
        net("bag").encode(examples(2), 600)
