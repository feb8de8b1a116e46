"""A decoder run layer by layer says what it says in one pass, whatever family it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from securefed.config import ModelConfig
from securefed.data.batch import Batch, collate
from securefed.errors import ModelError
from securefed.models import TaskModel, load_model
from tests.securefed.models import tiny
from tests.securefed.training.setups import stirred


def saved(folder: Path, family: str, **changes: Any) -> str:
    """A tiny decoder of this family with a tokenizer."""
    import transformers

    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "eos_token_id": 3,
        **changes,
    }
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for p in model.parameters():
            torch.nn.init.normal_(p, 0.0, 0.3)
    model.save_pretrained(folder)
    tiny.tokenizer(pad=False).save_pretrained(folder)
    return str(folder)


def loaded(name: str, **changes: Any) -> tuple[TaskModel, Batch]:
    model = load_model(ModelConfig(name=name, task="causal-lm", rank=2, **changes), max_length=16)
    model.write(stirred(model), model.layout)
    return model, collate(model.encode(tiny.examples(), 16), range(6))


PLAIN: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
}


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_going_on_from_any_layer_gives_the_logits_of_one_pass(tmp_path: Path, family: str, cut: int) -> None:
    model, batch = loaded(saved(tmp_path, family, **PLAIN[family]))
    assert model.depth == 3
    hidden, beside = model.stage(batch, cut)
    assert beside is None
    assert batch.attention_mask is not None
    keep = batch.attention_mask.bool()
    with torch.no_grad():
        whole = model.logits(batch)
        continued = model.logits(
            Batch(hidden=hidden, depth=cut, attention_mask=batch.attention_mask, labels=batch.labels)
        )
    torch.testing.assert_close(continued[keep], whole[keep], rtol=1e-4, atol=1e-5)


def test_a_stage_above_the_states_at_hand_is_refused(tmp_path: Path) -> None:
    model, batch = loaded(saved(tmp_path, "Llama"))
    hidden = model.prefix(batch, 2)
    with pytest.raises(ModelError, match="after layer 2 cannot give those after layer 1"):
        model.prefix(Batch(hidden=hidden, depth=2, attention_mask=batch.attention_mask), 1)
    for cut in (0, 4):
        with pytest.raises(ModelError, match="no cacheable stage"):
            model.prefix(batch, cut)


def test_what_lies_below_the_lowest_adapter_can_be_kept(tmp_path: Path) -> None:
    name = saved(tmp_path, "Llama")
    for layers, cut in ((1, 2), (2, 1), ("all", 0)):
        model, _ = loaded(name, layers=layers)
        assert model.cut(model.layout.names) == cut
    assert model.cut(()) == 3


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Mistral", {"sliding_window": 4}), ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1})],
)
def test_layers_that_look_back_a_limited_distance_are_left_to_the_library(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model, _ = loaded(saved(tmp_path, family, **changes))
    assert model.depth == 0


def test_other_families_virtual_tokens_and_dropout_have_no_stages(llama: str, gpt2: str) -> None:
    assert loaded(gpt2)[0].depth == 0
    assert loaded(llama, adapter="prompt")[0].depth == 0
    model = load_model(ModelConfig(name=llama, task="causal-lm", rank=2, dropout=0.1), max_length=16)
    assert model.depth == 0
