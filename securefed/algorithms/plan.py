"""What is trained and what is sent in each round, for each way to adapt a model (DESIGN decision 6).

The mean of products is not the product of means: averaging both LoRA factors gives a model that is
nobody's (as soon as clients take more than one step). `rolora` alternates the factors, so that each round's average is exact and linear, hence
right under any secure sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from securefed.config import Adapter
from securefed.errors import ConfigError


@dataclass(frozen=True)
class RoundPlan:
    """One round's work, the same for every client.

    Attributes:
        phase: "centre", "head", "A", "B", "AB", "adapter", "tangent" or "full", for people.
        train: names trained, inside the one clipped vector under DP.
        share: names sent to the server, a subset of `train`.
        progress: in [0, 1), how far the phase has come; drives the server's learning-rate schedule.
        scale: on the aggregate of a centre, where it is a mean of clipped features and not yet of features.
        anchors: after this round the head becomes the point at which tangents are taken (`anchoring`).
    """

    phase: str
    train: tuple[str, ...]
    share: tuple[str, ...]
    progress: float
    scale: float = 1.0
    anchors: bool = False


def plan_round(
    adapter: Adapter, part_of: Mapping[str, str], round: int, rounds: int, head_rounds: int = 0
) -> RoundPlan:
    """The plan of `round` of `rounds`.

    A head with a centre spends round 0 on it: what the cohort then sends is the mean of its features. The
    first `head_rounds` train the head alone: while every B is zero the features are those of the
    frozen model, so these rounds are cheap and give the adapter a useful gradient. Then:

    - `rolora` (Chen et al. 2024, "Robust Federated Finetuning of Foundation Models via Alternating
      Minimization of LoRA", arXiv 2409.02346): B in even rounds, A in odd ones, head in all.
    - `ffa` (Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", arXiv
      2403.12313): B only.
    - `lora`: A and B, averaged separately; inexact, kept as the reference it is in the field. With one
      local SGD step a round it is exact all the same: every client sends its gradient at one common point,
      and the mean of gradients is the gradient of the mean, for A as for B.
    - `fedsa` (Guo et al. 2024, "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
      arXiv 2410.01463): A and B are trained, A is sent, B stays.
    - `prompt`, `prefix`, `ia3`: the adapter and the head; plain averages, no factors.
    - `tangent`: the head alone, twice: on the model's features, then beside them on tangents at the head that the first
      `head_rounds` gave; each time after a round for the features' mean, where there is one.
    - `full`: everything. `head`: the head only.

    Raises:
        ConfigError: head rounds without a head, or as many as there are rounds.
    """
    servers = ("merged", "anchor")  # which no client trains
    part_of = {n: part for n, part in part_of.items() if part not in servers}
    names = sorted(n for n in part_of if part_of[n] != "centre")
    centre = tuple(n for n in part_of if part_of[n] == "centre")
    if centre:
        if rounds < 2:
            raise ConfigError("model.head_centre takes the first round and leaves none; raise rounds")
        if round == 0:
            return RoundPlan("centre", centre, centre, 0.0)
        round, rounds = round - 1, rounds - 1
    head = tuple(n for n in names if part_of[n] == "head")
    if adapter == "tangent":
        return _tangent(head, centre, round, rounds, head_rounds)
    if head_rounds and not head:
        raise ConfigError("algorithm.head_rounds needs a model with a head; set it to 0 for language models")
    if adapter != "head" and head_rounds >= rounds:
        raise ConfigError(
            f"algorithm.head_rounds={head_rounds} leaves none of rounds={rounds} for the adapter; lower it"
        )
    if round < head_rounds:
        return RoundPlan("head", head, head, round / head_rounds)
    step, progress = round - head_rounds, (round - head_rounds) / (rounds - head_rounds)

    def of(*parts: str) -> tuple[str, ...]:
        return tuple(n for n in names if part_of[n] in parts)

    if adapter == "rolora":
        phase = "A" if step % 2 else "B"
        return RoundPlan(phase, of(phase, "head"), of(phase, "head"), progress)
    if adapter == "ffa":
        return RoundPlan("B", of("B", "head"), of("B", "head"), progress)
    if adapter == "fedsa":
        return RoundPlan("AB", of("A", "B", "head"), of("A", "head"), progress)
    if adapter == "lora":
        return RoundPlan("AB", of("A", "B", "head"), of("A", "B", "head"), progress)
    if adapter == "head":
        return RoundPlan("head", head, head, progress)
    if adapter in ("prompt", "prefix", "ia3"):
        return RoundPlan("adapter", tuple(names), tuple(names), progress)
    return RoundPlan("full", tuple(names), tuple(names), progress)


def _tangent(
    head: tuple[str, ...], centre: tuple[str, ...], round: int, rounds: int, head_rounds: int
) -> RoundPlan:
    """A round of the adapter `tangent`, counted after the first centre's."""
    if head_rounds < 1:
        raise ConfigError(
            "adapter tangent takes gradients at a head that is trained first; set algorithm.head_rounds to at least 1"
        )
    left = rounds - head_rounds - bool(centre)
    if left < 1:
        means = " beside two rounds for means" if centre else ""
        raise ConfigError(
            f"algorithm.head_rounds={head_rounds}{means} leaves none of rounds={rounds + bool(centre)} for the tangents; lower it"
        )
    if round < head_rounds:
        return RoundPlan("head", head, head, round / head_rounds, anchors=round == head_rounds - 1)
    step = round - head_rounds - bool(centre)
    if step < 0:
        return RoundPlan("centre", centre, centre, 0.0)
    return RoundPlan("tangent", head, head, step / left)


def local_names(adapter: Adapter, part_of: Mapping[str, str]) -> tuple[str, ...]:
    """Names that each client keeps to itself: B under `fedsa`, none otherwise."""
    return tuple(sorted(n for n, part in part_of.items() if adapter == "fedsa" and part == "B"))
