"""What a LoRA round can give away, counted before any attack runs: unknown tokens against known combinations.

The rows of an observed A (or of B, seen through A) are known combinations of the first layer's inputs. They
pin the inputs' span down once there are at least as many rows as different inputs. Embeddings stay frozen
under LoRA, so the inputs are the same in every local step and SGD only adds more combinations of them;
optimizers that rescale single entries (Adam and its kin) leave the span, though not far enough to be safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Observed = Literal["gradient", "delta"]
RESCALING = ("adam", "adamw", "adagrad", "rmsprop", "yogi")
PLAIN = ("sgd",)


@dataclass(frozen=True)
class LeakageBudget:
    """A prediction, to be proved or refuted on the update itself.

    Attributes:
        unknowns: different tokens in the batch. equations: combinations of their vectors that are seen.
        verdict: "exact" (the bag of tokens follows), "ranking" (true tokens come first, without certainty) or
            "nothing" (from the first layer).
        reason: why, in words.
    """

    unknowns: int
    equations: int
    verdict: Literal["exact", "ranking", "nothing"]
    reason: str


def lora_budget(
    *,
    rank: int,
    modules: int,
    tokens: int,
    observed: Observed,
    optimizer: str,
    steps: int = 1,
    b_is_zero: bool = True,
) -> LeakageBudget:
    """Whether an observed LoRA update gives its tokens away.

    Args:
        rank: r. modules: adapted projections that read the first layer's input (query, key, value: up to 3).
        tokens: different tokens of the client's local data in the round.
        observed: one gradient, or the change after local training. steps: local steps.
        optimizer: the client's: "sgd" (with or without momentum), "adam", "adamw" ...
        b_is_zero: the round begins with B = 0, as a fresh adapter does.

    Raises:
        ValueError: counts below one, or an optimizer that is not known to keep or to leave the span.
    """
    if min(rank, modules, tokens, steps) < 1:
        raise ValueError(
            f"counts are at least 1: rank={rank}, modules={modules}, tokens={tokens}, steps={steps}"
        )
    name = optimizer.lower()
    if name not in (*RESCALING, *PLAIN):
        raise ValueError(f"optimizer {optimizer!r} is not known; one of {', '.join((*PLAIN, *RESCALING))}")
    first = b_is_zero and (observed == "gradient" or steps == 1)
    if first:
        # dL/dA = B^T delta x^T vanishes with B; dL/dB = delta (A x)^T shows r dimensions of the inputs.
        exact = tokens < rank
        reason = (
            f"B was zero, so A did not move; B shows the inputs through {rank} dimensions, and {tokens} tokens "
            + ("do not fill them" if exact else "fill them all")
        )
        verdict: Literal["exact", "ranking", "nothing"] = "exact" if exact and name in PLAIN else "nothing"
        return LeakageBudget(tokens, rank - 1, verdict, reason)
    equations = rank * modules
    if name in RESCALING:
        return LeakageBudget(
            tokens,
            equations,
            "ranking",
            f"{name} rescales single entries: the rows leave the inputs' span, true tokens still come first",
        )
    if tokens <= equations:
        return LeakageBudget(
            tokens,
            equations,
            "exact",
            f"{equations} combinations of {tokens} unknown inputs: their span, and so each token, follows",
        )
    return LeakageBudget(
        tokens, equations, "nothing", f"{equations} combinations do not span {tokens} different inputs"
    )
