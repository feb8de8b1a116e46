"""Training texts that a language model recites: many are sampled, and those stand first that the model finds too likely.

Carlini, Tramer, Wallace, Jagielski, Herbert-Voss, Lee, Roberts, Brown, Song, Erlingsson, Oprea and Raffel, "Extracting
training data from large language models", USENIX Security 2021 (arXiv 2012.07805): section 4.1 (sample with top-k), 5.1 (a
temperature that falls, for variety at the start), 5.2 (rank by perplexity against another model, against zlib, against the text in lower case,
by the likeliest window). After fine-tuning, the model that it began from is the other model: what became likely
only since is what was learnt.

Adversary: has the fine-tuned model (every client of a federation does) and, for the ratio, the one before. Nothing of the
training data; prompts are whatever the adversary makes up.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sampled:
    """What the model said: tokens (without the prompt's padding) and the text, each once."""

    ids: tuple[Ids, ...] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn.

    Attributes:
        count: texts. length: tokens of each, prompt included. top_k: a token is one of the k likeliest.
        hot: temperature of the first token; it falls evenly to 1 over the first `cooling` tokens.
        batch: texts at once. seed: of the draw.
    """

    count: int = 200
    length: int = 32
    top_k: int = 40
    hot: float = 1.0
    cooling: int = 10
    batch: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.top_k, self.cooling, self.batch) < 1 or self.length < 2 or self.hot < 1:
            raise ValueError(
                f"sampling needs positive counts, length >= 2 and a hot temperature >= 1; got {self}"
            )


def sample_texts(model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling) -> Sampled:
    """Texts of the model's own, without repetitions.

    Args:
        model: a causal language model of Hugging Face, in evaluation mode. prompts: begins of texts, taken in turn.

    Raises:
        ValueError: no prompt, or one that fills the whole length.
    """
    if not prompts:
        raise ValueError("sampling needs at least one prompt; the token that begins texts will do")
    starts = [tuple(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prompts]
    if not all(0 < len(s) < sampling.length for s in starts):
        raise ValueError(f"a prompt has between 1 and {sampling.length - 1} tokens; one has not")
    generator, found = torch.Generator().manual_seed(sampling.seed), dict[Ids, None]()
    for k, start in enumerate(starts):
        mine = sampling.count // len(starts) + (k < sampling.count % len(starts))
        for size in [sampling.batch] * (mine // sampling.batch) + [mine % sampling.batch]:
            if size:
                drawn = _drawn(model, torch.tensor([start]).repeat(size, 1), sampling, generator)
                found.update(
                    dict.fromkeys(_until_end(row, tokenizer.eos_token_id, len(start)) for row in drawn)
                )
    ids = tuple(i for i in found if len(i) > 1)
    return Sampled(ids, tuple(tokenizer.decode(i, skip_special_tokens=True) for i in ids))


def _drawn(model: Any, ids: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> list[list[int]]:
    past, new = None, ids
    with torch.no_grad():
        for step in range(sampling.length - ids.shape[1]):
            out = model(input_ids=new, past_key_values=past, use_cache=True)
            past = out.past_key_values
            heat = 1 + (sampling.hot - 1) * max(0.0, 1 - step / sampling.cooling)
            best = (out.logits[:, -1].float() / heat).topk(min(sampling.top_k, out.logits.shape[-1]))
            choice = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            new = best.indices.gather(1, choice)
            ids = torch.cat([ids, new], 1)
    rows: list[list[int]] = ids.tolist()
    return rows


def _until_end(row: list[int], end: int | None, start: int) -> Ids:
    """A row up to the first end of text behind its prompt."""
    return tuple(row[: row.index(end, start)] if end in row[start:] else row)


def perplexities(model: Any, ids: Sequence[Ids], window: int = 0, batch: int = 25) -> Floats:
    """Mean loss a token of each text in nats, (n,): the log of its perplexity.

    Args:
        ids: texts of two tokens or more. window: 0 for the whole text, else the likeliest run of so many tokens.
    """
    found = np.empty(len(ids))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        longest = max(len(ids[i]) for i in rows)
        table = torch.tensor([[*ids[i], *[0] * (longest - len(ids[i]))] for i in rows])
        mask = torch.tensor([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in rows])
        with torch.no_grad():
            logits = model(input_ids=table, attention_mask=mask).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), table[:, 1:], reduction="none"
        )
        for i, row in zip(rows, losses.double().numpy(), strict=True):
            found[i] = _mean_loss(row[: len(ids[i]) - 1], window)
    return found


def _mean_loss(losses: Floats, window: int) -> float:
    if not window or len(losses) <= window:
        return float(losses.mean())
    return float(np.convolve(losses, np.full(window, 1 / window), "valid").min())


def rank_texts(
    model: Any, tokenizer: Any, sampled: Sampled, *, before: Any = None, window: int = 10
) -> Mapping[str, Floats]:
    """Order -> a score for each text, (n,), higher for "recited".

    "perplexity" (minus its log), "zlib" (bytes of the packed text over the log), "lowercase" (the log of the text in lower case over
    the text's own), "window" (the likeliest run) and, with the model `before`, "reference" (its log over this one's).
    """
    own = np.maximum(perplexities(model, sampled.ids), 1e-6)
    small = [
        tuple(tokenizer(t.lower(), add_special_tokens=False)["input_ids"]) or i
        for t, i in zip(sampled.texts, sampled.ids, strict=True)
    ]
    small = [s if len(s) > 1 else i for s, i in zip(small, sampled.ids, strict=True)]
    packed = np.array([float(len(zlib.compress(t.encode()))) for t in sampled.texts])
    orders = {
        "perplexity": -own,
        "zlib": packed / own,
        "lowercase": perplexities(model, small) / own,
        "window": -perplexities(model, sampled.ids, window),
    }
    if before is not None:
        orders["reference"] = perplexities(before, sampled.ids) / own
    return orders


def longest_shared(text: Ids, training: Sequence[Ids]) -> int:
    """Tokens of the longest run of a text that stands in a training text: what an extraction is judged by."""
    return max((_shared(text, other) for other in training), default=0)


def _shared(a: Ids, b: Ids) -> int:
    best, previous = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0] * (len(b) + 1)
        for j, y in enumerate(b):
            if x == y:
                row[j + 1] = previous[j] + 1
        best, previous = max(best, *row), row
    return best
