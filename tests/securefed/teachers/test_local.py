"""A language model on this machine as a teacher: the likelihood of words, against the obvious way; SmolLM2 knows sentiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from securefed.config import ModelConfig
from securefed.data.batch import Batch
from securefed.errors import ModelError
from securefed.models import TaskModel, load_model
from securefed.teachers import Labeller
from securefed.teachers.local import local_teacher
from tests.securefed.models import tiny

WORDS = {"negative": " dull film", "positive": " good"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    folder = tiny.tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")
    config = ModelConfig(name=str(folder), task="causal-lm", adapter="lora", device="cpu")
    return load_model(config, max_length=32)


@torch.no_grad()
def one_by_one(model: TaskModel, prompt: str, word: str) -> float:
    """Mean log-likelihood of the word's tokens, each from a pass of its own."""
    before: list[int] = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    found = []
    for token in model.tokenizer(word, add_special_tokens=False)["input_ids"]:
        ids = torch.tensor([before])
        logits = model.logits(Batch(input_ids=ids, attention_mask=torch.ones_like(ids)))
        found.append(float(logits[0, -1].log_softmax(-1)[token]))
        before = [*before, token]
    return sum(found) / len(found)


def test_probabilities_are_the_words_likelihoods(model: TaskModel) -> None:
    model.module.eval()
    teacher = local_teacher(model, WORDS, "{text} the film is", calibrated=False)
    answer = teacher.ask("never again")
    assert isinstance(answer, Mapping)
    scores = torch.tensor([one_by_one(model, "never again the film is", w) for w in WORDS.values()])
    expected = scores.double().softmax(0)
    assert [answer["negative"], answer["positive"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_calibration_makes_a_prompt_without_text_undecided(model: TaskModel) -> None:
    teacher = local_teacher(model, WORDS, "{text} the film is")
    answer = teacher.ask("")
    assert isinstance(answer, Mapping)
    assert list(answer.values()) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_it_needs_no_policy_and_feeds_a_labeller(model: TaskModel) -> None:
    labels = Labeller(local_teacher(model, WORDS, "{text} is"), tuple(WORDS))(["good", "bad"], private=True)
    assert labels.known.all()


def test_what_cannot_teach_is_refused(model: TaskModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a prompt with \{text\}"):
        local_teacher(model, WORDS, "no place for it")
    with pytest.raises(ModelError, match="two verbalizers"):
        local_teacher(model, {"one": " good"}, "{text}")
    with pytest.raises(ModelError, match="is empty"):
        local_teacher(model, {"a": "", "b": " good"}, "{text}")
    bag = load_model(ModelConfig(name="bag", adapter="full", device="cpu"), classes=2)
    with pytest.raises(ModelError, match='task = "causal-lm"'):
        local_teacher(bag, WORDS, "{text}")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.dataset
def test_smollm2_labels_real_sentences_better_than_chance(
    require_model: Callable[[str], str], require_dataset: Callable[[str], Any]
) -> None:
    """200 sentences: chance gives 0.5 +- 0.035, so 0.65 fails by chance less than once in 1e4."""
    name = require_model("smollm2")
    test = require_dataset("sentiment").test
    sample = test.take(list(range(0, len(test), len(test) // 200))[:200])
    model = load_model(ModelConfig(name=name, task="causal-lm", adapter="lora", rank=1, layers=1))
    teacher = local_teacher(
        model, {"negative": " terrible", "positive": " great"}, "Review: {text}\nAll in all, it was"
    )
    labels = Labeller(teacher, ("negative", "positive"))(sample.texts or (), private=False)
    assert float((labels.classes == sample.labels).mean()) > 0.65
