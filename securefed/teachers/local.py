"""A language model on this machine as a teacher: each class by the likelihood of a word that stands for it.

Nothing leaves the site. The words are verbalizers in the sense of Schick and Schuetze 2021, "Exploiting Cloze Questions for Few Shot
Text Classification and Natural Language Inference" (arXiv 2001.07676): class -> what the model would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from securefed.errors import ModelError
from securefed.teachers.answer import Teacher

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


def local_teacher(
    model: TaskModel, verbalizers: Mapping[str, str], prompt: str, *, name: str = "", calibrated: bool = True
) -> Teacher:
    """A teacher that gives every class a probability: softmax of its word's log-likelihood after the prompt.

    Args:
        model: a causal language model (`load_model` with `task = "causal-lm"`), with its tokenizer.
        verbalizers: class -> the words that stand for it, as they continue the prompt (with the space before them).
        prompt: with `{text}` where the record goes; braces in a record stay as they are.
        calibrated: take off the likelihood of each word after the prompt with no text, as words are not equally common
            (Zhao et al. 2021, "Calibrate Before Use", arXiv 2102.09690).

    Raises:
        ModelError: no causal language model, fewer than two classes, or a prompt without `{text}`.
    """
    if model.task != "causal-lm" or model.tokenizer is None:
        raise ModelError(
            f'a local teacher continues text, model.task={model.task} does not; load it with task = "causal-lm"'
        )
    if len(verbalizers) < 2 or "{text}" not in prompt:
        raise ModelError("a local teacher needs two verbalizers or more, and a prompt with {text} in it")
    words = {label: _ids(model, word) for label, word in verbalizers.items()}
    empty = (
        _scores(model, prompt.replace("{text}", "").strip(), words) if calibrated else np.zeros(len(words))
    )

    def ask(text: str) -> Mapping[str, float]:
        scores = _scores(model, prompt.replace("{text}", text), words) - empty
        shares = np.exp(scores - scores.max())
        return dict(zip(words, (shares / shares.sum()).tolist(), strict=True))

    return Teacher(name or f"local:{model.name}", ask, leaves_site=False)


def _ids(model: TaskModel, text: str) -> list[int]:
    found: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not found:
        raise ModelError("a verbalizer is empty; give each class a word")
    return found


@torch.no_grad()
def _scores(
    model: TaskModel, prompt: str, words: Mapping[str, list[int]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-likelihood per token of each class's word after the prompt, float64 (k,)."""
    from securefed.data.batch import Batch

    before = _ids(model, prompt)
    longest = max(len(w) for w in words.values())
    rows = torch.zeros(len(words), len(before) + longest, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for i, word in enumerate(words.values()):
        whole = torch.tensor([*before, *word])
        rows[i, : len(whole)], mask[i, : len(whole)] = whole, 1
    training = model.module.training
    model.module.eval()
    try:
        logits = model.logits(Batch(input_ids=rows, attention_mask=mask)).float().log_softmax(-1).cpu()
    finally:
        model.module.train(training)
    found = np.empty(len(words))
    for i, word in enumerate(words.values()):
        places = torch.arange(len(before) - 1, len(before) - 1 + len(word))
        found[i] = float(logits[i, places, torch.tensor(word)].mean())
    return found
