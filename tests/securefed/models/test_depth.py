"""Causal or not, and a model cut off: tried on families whose names and attributes differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from securefed.config import ModelConfig
from securefed.models import load_model
from securefed.models.depth import cut_off, is_causal
from tests.securefed.models import tiny

FAMILIES = {
    "bert": tiny.tiny_bert,
    "llama": tiny.tiny_llama,
    "gpt2": tiny.tiny_gpt2,
    "mpt": tiny.tiny_mpt,
    "phi": tiny.tiny_phi,
}
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=sorted(FAMILIES))
def family(request: Any) -> str:
    return str(request.param)


def base_of(family: str, folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(FAMILIES[family](folder, layers=3)).eval()


def test_a_decoder_is_known_as_one_whatever_its_attention_says(family: str, tmp_path: Path) -> None:
    assert is_causal(base_of(family, tmp_path)) == (family != "bert")


@torch.no_grad()
def test_the_states_of_a_model_that_was_cut_off_are_those_between_its_layers(
    family: str, tmp_path: Path
) -> None:
    base = base_of(family, tmp_path)
    before = base(input_ids=IDS, output_hidden_states=True).hidden_states
    assert cut_off(base, 2)
    assert torch.equal(base(input_ids=IDS).last_hidden_state, before[2])
    assert base.config.num_hidden_layers == 2


@torch.no_grad()
def test_a_model_that_would_put_out_something_else_is_left_whole(tmp_path: Path) -> None:
    """A final normalization under a name that nobody thought of."""
    base = base_of("phi", tmp_path)
    odd = nn.LayerNorm(16)
    base.odd_name, base.final_layernorm = odd, nn.Identity()
    base.register_forward_hook(lambda module, _, out: _normalized(module, out))
    before = base(input_ids=IDS, output_hidden_states=True)
    base.train()
    assert not cut_off(base, 2)
    assert base.training
    again = base.eval()(input_ids=IDS, output_hidden_states=True)
    assert base.config.num_hidden_layers == 3
    assert torch.equal(again.last_hidden_state, before.last_hidden_state)
    assert len(again.hidden_states) == 4


def _normalized(module: Any, out: Any) -> Any:
    out.last_hidden_state = module.odd_name(out.last_hidden_state)
    return out


def test_a_decoder_that_does_not_say_so_is_pooled_as_one(tmp_path: Path) -> None:
    config = ModelConfig(name=str(tiny.tiny_mpt(tmp_path)), adapter="head")
    assert load_model(config, classes=2, max_length=16).module.causal
