"""Membership in a language model's training data, from the probabilities of a text's tokens.

`min_k_plus_plus` needs the model alone (Zhang et al., "Min-K%++: improved baseline for pre-training data detection from large
language models", ICLR 2025, arXiv 2404.02936); `min_k` is its forerunner (Shi et al., "Detecting pretraining data
from large language models", ICLR 2024, arXiv 2310.16789). `reference` subtracts what the base model found likely already (after
Carlini et al., "Extracting training data from large language models", USENIX Security 2021): after fine-tuning the base is
the natural reference, and a federation's first model is one.

Adversary: sees the final model's probabilities; for `reference` also the model before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A text batch under one model.

    Attributes:
        log_probability: of each next token, (n, l - 1). mean, spread: of the log probability under the model's own
            distribution at that place, (n, l - 1). mask: which places count.
    """

    log_probability: torch.Tensor = field(repr=False)
    mean: torch.Tensor = field(repr=False)
    spread: torch.Tensor = field(repr=False)
    mask: torch.Tensor = field(repr=False)


def token_scores(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> TokenScores:
    """What the attacks need of a model's output.

    Args:
        logits: (n, l, v), of the model in evaluation mode. ids: (n, l). mask: (n, l), false at padding on the right.

    Raises:
        ValueError: other shapes, or a text without a second token.
    """
    if logits.shape[:2] != ids.shape or mask.shape != ids.shape or ids.shape[1] < 2:
        raise ValueError(
            "needs logits (n, l, v), ids and mask (n, l) with l >= 2; got "
            f"{tuple(logits.shape)}, {tuple(ids.shape)}, {tuple(mask.shape)}"
        )
    counted = mask[:, 1:].bool()
    if not bool(counted.any(1).all()):
        raise ValueError("a text of one token has no next token to score; leave it out")
    logs = logits[:, :-1].double().log_softmax(-1)
    p = logs.exp()
    mean = (p * logs).sum(-1)
    variance = (p * logs.square()).sum(-1) - mean.square()
    own = logs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return TokenScores(own, mean, variance.clamp_min(0).sqrt(), counted)


def loss_score(scores: TokenScores) -> torch.Tensor:
    """The average log probability, (n,): the baseline."""
    return _average(scores.log_probability, scores.mask)


def min_k(scores: TokenScores, share: float = 0.2) -> torch.Tensor:
    """The average over the least likely share of tokens, (n,)."""
    return _least(scores.log_probability, scores.mask, share)


def min_k_plus_plus(scores: TokenScores, share: float = 0.2) -> torch.Tensor:
    """The same of log probabilities standardized by the model's own distribution at each place, (n,)."""
    standard = (scores.log_probability - scores.mean) / scores.spread.clamp_min(1e-9)
    return _least(standard, scores.mask, share)


def reference(scores: TokenScores, before: TokenScores) -> torch.Tensor:
    """How much likelier the text became, per token, (n,).

    Raises:
        ValueError: scores of other texts.
    """
    if not torch.equal(scores.mask, before.mask):
        raise ValueError("both models must score the same texts")
    return loss_score(scores) - loss_score(before)


def _average(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.where(mask, torch.zeros_like(values)).sum(1) / mask.sum(1)


def _least(values: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the tokens must be above 0 and at most 1")
    kept = (mask.sum(1).double() * share).ceil().long().clamp_min(1)
    order = values.masked_fill(~mask, float("inf")).sort(1).values
    first = torch.arange(values.shape[1], device=values.device)[None] < kept[:, None]
    return order.where(first, torch.zeros_like(order)).sum(1) / kept
