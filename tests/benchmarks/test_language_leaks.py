"""The bench of a fine-tuned language model: what is learnt, what is scored, and that scores are the model's own losses."""

from __future__ import annotations

from pathlib import Path

import torch

from securefed.config import ModelConfig
from securefed.models import load_model
from securefed_attacks.language_membership import loss_score
from securefed_benchmarks import language_leaks as bench
from tests.securefed.models import tiny

TEXTS = ("the plot is thin but", "never ends", "not bad", "the long very dull plot never ends")


def test_secrets_stand_among_the_mails_as_often_as_they_say() -> None:
    shown = {1: ("a", "b"), 4: ("c", "d"), 16: ("e", "f")}
    data = bench.Corpus(("mail",), ("other",), shown, ("g",))
    counts = {text: data.training.count(text) for text in "abcdefg"}
    assert counts == {"a": 1, "b": 1, "c": 4, "d": 4, "e": 16, "f": 16, "g": 0}
    assert data.training.count("mail") == 1
    assert "other" not in data.training
    assert "mail" not in repr(data)


def test_scores_are_the_models_own_losses_and_fall_for_what_is_learnt(tmp_path: Path) -> None:
    folder = tiny.tiny_llama(tmp_path / "base")
    model = load_model(
        ModelConfig(name=str(folder), task="causal-lm", adapter="lora", rank=2, device="cpu"),
        max_length=bench.LENGTH,
    )
    before = bench.scored(model, TEXTS)
    ids = torch.tensor([model.tokenizer(TEXTS[3])["input_ids"][: bench.LENGTH]])
    with torch.no_grad():
        guessed = model.module.backbone(input_ids=ids).logits[0, :-1].log_softmax(-1)
    own = guessed.gather(-1, ids[0, 1:, None]).mean()
    torch.testing.assert_close(loss_score(before)[3].float(), own.float(), rtol=1e-3, atol=1e-4)
    bench.learnt(model, TEXTS[:2] * 4, steps=12, seed=0)
    gained = loss_score(bench.scored(model, TEXTS)) - loss_score(before)
    assert float(gained[:2].mean()) > 0.1
