from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models import load_model
from tests.securefed.models import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_causal_loss_is_the_mean_over_the_records_own_tokens(kind: str, folders: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(ModelConfig(name=folders[kind], task="causal-lm"), max_length=16)
    encoded = model.encode(tiny.examples(), 16)
    assert encoded.tokens is not None
    losses, counts = model.losses(collate(encoded, range(6))), model.counts(collate(encoded, range(6)))
    oracle = AutoModelForCausalLM.from_pretrained(folders[kind]).eval()
    for loss, count, tokens in zip(losses, counts, encoded.tokens, strict=True):
        ids = torch.from_numpy(tokens)[None]  # alone: no padding at all
        expected = oracle(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        assert count == len(tokens) - 1


def test_the_end_of_text_is_learned_although_it_is_also_the_padding(llama: str) -> None:
    model = load_model(ModelConfig(name=llama, task="causal-lm"), max_length=16)
    encoded = model.encode(tiny.examples(), 16)
    assert encoded.tokens is not None
    assert encoded.pad_id == 3  # no padding token: end of text stands in
    assert all(t[-1] == 3 for t in encoded.tokens)
    batch = collate(encoded, range(6))
    assert batch.labels is not None
    assert (batch.labels == 3).sum() == 6


def test_a_truncated_record_has_no_end_of_text(llama: str) -> None:
    model = load_model(ModelConfig(name=llama, task="causal-lm"), max_length=4)
    encoded = model.encode(tiny.examples(2), 4)
    assert encoded.tokens is not None
    assert [len(t) for t in encoded.tokens] == [4, 4]
    assert encoded.tokens[0][-1] == 3  # three words and the end
    assert encoded.tokens[1][-1] != 3


def test_a_record_without_a_prediction_has_loss_and_gradient_zero(llama: str) -> None:
    model = load_model(ModelConfig(name=llama, task="causal-lm"), max_length=16)
    encoded = model.encode(Examples(texts=("", "good film")), 16)
    batch = collate(encoded, range(2))
    losses = model.losses(batch)
    assert losses[0] == 0
    assert model.counts(batch).tolist() == [0, 2]
    losses[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters.values())


def test_a_seq2seq_loss_equals_the_librarys_own_on_one_record(t5: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model = load_model(ModelConfig(name=t5, task="seq2seq"), max_length=16)
    encoded = model.encode(tiny.examples(targets=True), 16)
    assert encoded.tokens is not None
    assert encoded.targets is not None
    batch = collate(encoded, range(6))
    losses = model.losses(batch)
    oracle = AutoModelForSeq2SeqLM.from_pretrained(t5).eval()
    for i in range(6):
        source, target = (torch.from_numpy(x[i])[None] for x in (encoded.tokens, encoded.targets))
        torch.testing.assert_close(
            losses[i], oracle(input_ids=source, labels=target).loss, rtol=1e-4, atol=1e-5
        )
        assert model.counts(batch)[i] == len(encoded.targets[i])


def test_label_smoothing_leaves_padding_out(llama: str) -> None:
    model = load_model(ModelConfig(name=llama, task="causal-lm"), max_length=16)
    encoded = model.encode(tiny.examples(), 16)
    assert encoded.tokens is not None
    batch = collate(encoded, range(6))
    smoothed, logits = model.losses(batch, 0.1), model.logits(batch)
    for i, tokens in enumerate(encoded.tokens):
        target = torch.from_numpy(tokens[1:])
        expected = F.cross_entropy(logits[i, : len(target)], target, label_smoothing=0.1)
        torch.testing.assert_close(smoothed[i], expected)


def test_seq2seq_records_need_targets_and_language_models_texts(t5: str, llama: str) -> None:
    with pytest.raises(ModelError, match="target"):
        load_model(ModelConfig(name=t5, task="seq2seq"), max_length=16).encode(tiny.examples(), 16)
    images = Examples(images=np.zeros((1, 1, 2, 2), np.float32))
    with pytest.raises(ModelError, match="reads texts"):
        load_model(ModelConfig(name=llama, task="causal-lm"), max_length=16).encode(images, 16)


def test_encoder_decoders_cache_nothing(t5: str) -> None:
    model = load_model(ModelConfig(name=t5, task="seq2seq"), max_length=16)
    assert model.depth == model.cut(model.layout.names) == 0


def test_max_length_beyond_the_positions_is_refused_at_once(llama: str, t5: str) -> None:
    with pytest.raises(ModelError, match="32 positions"):
        load_model(ModelConfig(name=llama, task="causal-lm"), max_length=33)
    model = load_model(ModelConfig(name=llama, task="causal-lm"), max_length=16)
    with pytest.raises(ModelError, match="between 1 and"):
        model.encode(tiny.examples(), 33)
    load_model(ModelConfig(name=t5, task="seq2seq"), max_length=1000)  # positions are relative


@pytest.mark.model
def test_smollm2_knows_a_capital(require_model) -> None:  # type: ignore[no-untyped-def]  # fixture of the root conftest
    model = load_model(ModelConfig(name=require_model("smollm2"), task="causal-lm", layers=2), max_length=16)
    encoded = model.encode(Examples(texts=("The capital of France is Paris.",)), 16)
    with torch.no_grad():
        best = model.logits(collate(encoded, [0]))[0].argmax(-1)
    assert model.tokenizer.decode(best[4:5]) == " Paris"
    assert model.layout.names[0] == "model.layers.28.self_attn.q_proj.lora_A"
