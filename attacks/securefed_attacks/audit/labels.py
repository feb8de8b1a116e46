"""The section on labels: how often each class was trained on, read from the last layer's bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.target import Target

LAST = ("head.bias", "classifier.bias", "score.bias", "fc.bias", "classifier.out_proj.bias")


@dataclass(frozen=True)
class Labels:
    """Shares of classes among the members: read from the update, true, and guessed without it.

    Attributes:
        error: half the summed difference of shares to the truth, 0 to 1. prior_error: of the non-members'
            shares, the guess without the update. why_not: why nothing was read, "" where something was.
    """

    estimated: tuple[float, ...] = ()
    true: tuple[float, ...] = ()
    error: float | None = None
    prior_error: float | None = None
    why_not: str = ""


def count_labels(
    target: Target,
    captured: Captured,
    recipe: Recipe,
    members: NDArray[np.int64],
    others: NDArray[np.int64],
) -> Labels:
    """Class shares from the bias: with cross-entropy and softmax its gradient is mean(p) - mean(y).

    So mean(y) = mean(p) + change / (rate x steps) for plain SGD, mean(p) taken over non-members and halfway
    between the two states (the sign trick of Zhao et al. 2020, "iDLG", arXiv 2001.02610, for whole batches).
    """
    labels = target.encoded.labels
    if target.kind == "causal-lm" or labels is None:
        return Labels(why_not="the candidates have no class labels")
    bias = _last_bias(target, captured)
    if bias is None:
        return Labels(why_not="the last layer's bias is not in the update")
    if not recipe.plain or recipe.momentum or recipe.steps is None or recipe.learning_rate is None:
        return Labels(
            why_not="it takes plain SGD of known rate and steps; other optimizers rescale the bias's change"
        )
    if not len(members) or not len(others):
        return Labels(why_not="it takes members to compare with and non-members for the mean prediction")
    change = captured.update[bias].double().numpy()
    predicted = (
        _mean_prediction(target, captured.before.tensors, others)
        + _mean_prediction(target, captured.after.tensors, others)
    ) / 2
    estimated = np.clip(predicted + change / (recipe.learning_rate * recipe.steps), 0, None)
    estimated = estimated / max(estimated.sum(), 1e-12)
    k = len(change)
    true, prior = _shares(labels[members], k), _shares(labels[others], k)
    return Labels(
        tuple(map(float, estimated)),
        tuple(map(float, true)),
        float(np.abs(estimated - true).sum() / 2),
        float(np.abs(prior - true).sum() / 2),
    )


def _last_bias(target: Target, captured: Captured) -> str | None:
    labels = target.encoded.labels
    assert labels is not None
    biases = [n for n, u in captured.update.items() if n.endswith("bias") and u.ndim == 1]
    named = [n for n in biases if n.endswith(LAST)]
    wide = [n for n in biases if captured.update[n].numel() > labels.max()]
    order = list(captured.before.tensors)
    if named:
        return named[-1]
    return max(wide, key=order.index, default=None) if target.kind == "plain" else None


@torch.no_grad()
def _mean_prediction(
    target: Target, state: dict[str, torch.Tensor], rows: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float64]:
    weights = target.effective(state)
    found = [
        target.forward(weights, target.batch([int(r) for r in block]))[0].double().softmax(1).sum(0)
        for block in np.array_split(np.asarray(rows), max(1, len(rows) // 32))
    ]
    mean: NDArray[np.float64] = (torch.stack(found).sum(0) / len(rows)).numpy()
    return mean


def _shares(labels: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.bincount(labels, minlength=k)[:k] / max(1, len(labels))
    return counts
