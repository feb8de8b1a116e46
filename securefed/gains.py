"""Who gains and who loses: each client's model beside training alone and beside the global model.

Alone is a federation of one: the same rounds that the client took part in, the same plan, local work and server
step, no others and no noise (under example-level DP the clip stays, because the learning rates are made for it).
All of it reads the clients' own records: a diagnostic of a simulation, covered by no guarantee, never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed.algorithms.anchoring import anchored
from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.finetune import FineTune
from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.ranks import held, rank_of
from securefed.algorithms.server_optimizer import Moments
from securefed.checkpoint import State
from securefed.errors import DivergedError
from securefed.layout import Layout
from securefed.parts import Parts
from securefed.training.phases import Phases
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.training.metrics import Predictions

Answers = Mapping[int, "Predictions"]
"""Client -> predictions on its own test records."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Every client's own test records, predicted in up to three ways.

    Attributes:
        own: by the model that the run leaves the client with. together: by the global model; empty where the server has
            no whole one. alone: by the model that it would have without the others; a client whose training
            alone left the finite numbers is missing.
    """

    own: Answers
    together: Answers
    alone: Answers

    def row(self, clients: Sequence[int], classes: int) -> dict[str, Any]:
        """Scores over all records of these clients, and what the run gains over the other two."""
        found: dict[str, Any] = {}
        for name, answers in (("own", self.own), ("global", self.together), ("alone", self.alone)):
            held = [answers[k] for k in clients if k in answers]
            whole = held[0].joined(held[1:]).score(classes).values() if len(held) == len(clients) else {}
            found[name] = whole.get("accuracy", whole.get("perplexity"))
        better = 1.0 if classes else -1.0  # a lower perplexity is the better one
        for other in ("alone", "global"):
            known = found[other] is not None
            found[f"gain_over_{other}"] = better * (found["own"] - found[other]) if known else None
        return found


def gains(parts: Parts, state: State, kept: Layout, took: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """The report as plain values: a row for each client and each domain, the worst of both named.

    Args:
        kept: of what each client keeps to itself.
        took: client -> rounds in which its training counted, for training alone with the same work.
    """
    predict, shards = parts.evaluator.predictions, parts.assembly.shards
    own = predict(state.handed_out, state.local, kept)
    together = predict(state.handed_out, {}, kept) if parts.algorithm.whole else {}
    alone: dict[int, Predictions] = {}
    if (first := parts.initial) is not None and parts.config.evaluate.alone:
        whole = parts.model.layout
        for k in own:
            try:
                mine = train_alone(parts, k, took.get(k, ()), first, state.round)
            except DivergedError:
                continue
            alone[k] = predict(first, {k: mine}, whole, only=(k,))[k]
    compared, classes = Compared(own, together, alone), len(parts.assembly.dataset.classes)
    rows = [
        {"client": k, "name": shards[k].name, "test": len(shards[k].test), **compared.row([k], classes)}
        for k in own
    ]
    domains: dict[str, list[int]] = {}
    for k in own if parts.config.data.partition == "natural" else ():
        domains.setdefault(shards[k].name.partition("/")[0], []).append(k)
    grouped = [
        {"domain": name, "clients": members, **compared.row(members, classes)}
        for name, members in domains.items()
    ]
    return _told(rows, grouped, "accuracy" if classes else "perplexity")


def _told(rows: list[dict[str, Any]], domains: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """The rows with what a reader looks for first."""
    known = [r["gain_over_alone"] for r in rows if r["gain_over_alone"] is not None]
    return {
        "score": score,
        "note": "computed on the clients' own records: a simulation diagnostic that no epsilon covers",
        "clients": rows,
        "domains": domains,
        "worst_client": _worst(rows, score),
        "worst_domain": _worst(domains, score),
        "gain": sum(g > 0 for g in known) if known else None,
        "lose": sum(g < 0 for g in known) if known else None,
        "mean_gain_over_alone": float(np.mean(known)) if known else None,
    }


def _worst(rows: list[dict[str, Any]], score: str) -> dict[str, Any] | None:
    sign = 1 if score == "accuracy" else -1
    return min(rows, key=lambda r: sign * r["own"], default=None)


def headline(found: Mapping[str, Any]) -> dict[str, float]:
    """The report's few numbers as metrics of the run."""
    score = found["score"]
    worst = {f"worst_{kind}_{score}": found[f"worst_{kind}"] for kind in ("client", "domain")}
    metrics = {name: float(row["own"]) for name, row in worst.items() if row is not None}
    if found["mean_gain_over_alone"] is not None:
        metrics["gain_over_alone"] = found["mean_gain_over_alone"]
    return metrics


def train_alone(
    parts: Parts, client: int, rounds: Sequence[int], first: Vector, played: int | None = None
) -> Vector:
    """The client's model after these rounds of the job with nobody else, float32 (d,), of the rank that it begins with.

    Args:
        played: how many rounds there were, in which all changed over to tangents or none did; all of the job's by default.
    """
    model, config, runner = parts.model, parts.config, parts.runner
    vector, moments, checked = first, Moments.zeros(first.size), set[tuple[str, ...]]()
    holds = None
    if config.model.ranks:
        holds = held(model.layout, model.part_of, rank_of(config.model, client))
        vector = (first * holds).astype(first.dtype)
    data = runner.encoded(client)
    dp = runner.dp_work(len(data))
    quiet = None if dp is None else replace(dp, noise_multiplier=0.0)
    mine = set(rounds)
    for round in range(config.rounds if played is None else played):
        plan = parts.algorithm.plan(config, model.part_of, round)
        if round not in mine:
            if plan.anchors:  # the second head begins in this round for everybody
                vector, moments = anchored(model.layout, vector), Moments.zeros(vector.size)
            continue
        phases = Phases(
            model, data, client, round, config, quiet, parts.entropy, runner.cache, checked, holds
        )
        trained, rate = vector, _rate(parts, plan)
        for steps in parts.algorithm.phases(config):
            trained = phases(trained, plan.train, steps=steps, mu=0.0, rate=rate)
        if not plan.share:  # a round at home has no server
            vector = trained
            continue
        names = model.layout.select(set(plan.train).__contains__)
        vector, moments = FedAvg().apply(
            config.server,
            model.layout,
            model.part_of,
            replace(plan, share=plan.train, scale=1.0),  # a centre that is trained here is the mean already
            vector,
            model.layout.gather(trained, names) - model.layout.gather(vector, names),
            moments,
        )
    return vector


def _rate(parts: Parts, plan: RoundPlan) -> float:
    """On the job's learning rates, as the run has it: fedsgd's only one is the server's, rounds at home have their own."""
    if parts.config.fedsgd:
        return 1 / parts.config.train.learning_rate
    return parts.algorithm.tune_rate if isinstance(parts.algorithm, FineTune) and not plan.share else 1.0
