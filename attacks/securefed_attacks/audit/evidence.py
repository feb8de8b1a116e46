"""What every view shows of the candidates: losses, cosines and shadows, measured once and shared by all attacks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.models.adapters import layer_index
from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.clock import Clock
from securefed_attacks.audit.columns import Column, norm
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.shadowing import cast_shadows
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Scores, Target
from securefed_attacks.membership import Evidence
from securefed_attacks.update_cosine import update_cosine

Floats = NDArray[np.float64]
PROBE = 3
"""Records whose gradients are timed before all are asked for."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Evidence of every view, what each layer contributes, and what was not measured and why.

    Attributes:
        layers: for each round asked, layer -> (n,), the cosine of its part of the first view's update. rounds:
            (r, n), the cosine of each round by itself. asked: which rounds these are. share: layer -> its share of the updates' squared norm.
    """

    evidence: Mapping[str, Evidence]
    layers: Sequence[Mapping[str, Floats]] = ()
    rounds: Floats | None = field(default=None, repr=False)
    asked: tuple[int, ...] = ()
    share: Mapping[str, float] = field(default_factory=dict)
    not_made: Mapping[str, str] = field(default_factory=dict)


def measure(
    target: Target,
    rounds: Sequence[tuple[Captured, Sequence[Column]]],
    recipe: Recipe,
    clock: Clock,
    shadows: int,
    seed: int,
) -> Measured:
    """Asks the model about every candidate, view by view; what does not fit the time budget is left out by name."""
    not_made: dict[str, str] = {}
    first, last = rounds[0][0], rounds[-1]
    made = [c for c in last[1] if c.update is not None]
    clock.tell("losses before the round")
    began = time.monotonic()
    reference = target.score(first.before.tensors)
    each = time.monotonic() - began
    after: dict[str, Scores] = {}
    asked: dict[int, Scores] = {}  # a view that is the same update as another leads to the same state
    for column in made:
        known = asked.get(id(column.update))
        if known is None and after and not clock.allows(each, f"membership, {column.name}"):
            continue
        if known is None:
            clock.tell(f"losses, {column.name}")
            known = target.score(column.after(last[0].before.tensors))
        after[column.name] = asked[id(column.update)] = known
    cosines, by_round = _cosines(target, rounds, clock, not_made)
    cast = cast_shadows(target, first, recipe, clock, shadows, seed, len(rounds))
    trained = None if isinstance(cast, str) else cast
    if isinstance(cast, str):
        not_made["LiRA"] = cast
    evidence = {
        c.name: Evidence(
            loss=after[c.name].loss,
            reference=reference.loss if c.shows_update else None,
            cosine=cosines.get(c.name) if c.shows_update else None,
            confidence=after[c.name].confidence,
            shadows=None if trained is None else trained[0],
            included=None if trained is None else trained[1],
        )
        for c in made
        if c.name in after
    }
    seen = [c for _, columns in rounds if (c := _first_seen(columns)) is not None]
    whole = cosines.get(seen[0].name) if seen else None
    share = _norm_share([c.update for c in seen if c.update is not None])
    return Measured(evidence, tuple(by_round.values()), whole, tuple(by_round), share, not_made)


def _first_seen(columns: Sequence[Column]) -> Column | None:
    return next((c for c in columns if c.update is not None and c.shows_update), None)


def _cosines(
    target: Target,
    rounds: Sequence[tuple[Captured, Sequence[Column]]],
    clock: Clock,
    not_made: dict[str, str],
) -> tuple[dict[str, Floats], dict[int, dict[str, Floats]]]:
    """View -> (r, n), and of each round layer -> (n,) of its first view; rounds that find no time are left out."""
    found: dict[str, list[Floats]] = {}
    layers: dict[int, dict[str, Floats]] = {}
    for number, (captured, made) in enumerate(rounds):
        names = target.trainable(captured.names)
        seen = [c for c in made if c.update is not None and c.shows_update]
        if not names or not seen:
            continue
        if not clock.allows(_gradient_seconds(target, captured, names), f"gradients of round {number + 1}"):
            if not found:
                not_made["update cosine"] = "the time budget; see what was left out"
            break
        clock.tell(
            f"gradients of {len(target)} records"
            + (f", round {number + 1} of {len(rounds)}" if len(rounds) > 1 else "")
        )
        before = captured.before.tensors
        gradients = target.gradients(before, names, np.arange(len(target)))
        parts: dict[str, list[float]] = {}
        flat = (
            _flat(g, before, names) for g in _watched(gradients, seen[0].update or {}, _layers(names), parts)
        )
        cosine = update_cosine(flat, torch.stack([_flat(c.update or {}, before, names) for c in seen]))
        for column, row in zip(seen, cosine, strict=True):
            found.setdefault(column.name, []).append(row)
        layers[number] = {layer: np.asarray(values) for layer, values in parts.items()}
    return {n: np.stack(rows) for n, rows in found.items()}, layers


def _watched(
    gradients: Iterable[Tensors],
    update: Tensors,
    layers: Mapping[str, Sequence[str]],
    parts: dict[str, list[float]],
) -> Iterator[Tensors]:
    """The gradients as they pass; of each, every layer's part of the cosine with minus the update is noted.

    The parts are weighted by the layers' shares of the update's length when they add up to the whole.
    """
    for gradient in gradients:
        length = norm(gradient) or 1.0
        for layer, names in layers.items():
            own = math.sqrt(sum(float(update[n].double().square().sum()) for n in names)) or 1.0
            dot = sum(float((update[n].double() * gradient[n].double()).sum()) for n in names)
            parts.setdefault(layer, []).append(-dot / (own * length))
        yield gradient


def _gradient_seconds(target: Target, captured: Captured, names: Sequence[str]) -> float:
    began = time.monotonic()
    few = np.linspace(0, len(target) - 1, min(PROBE, len(target))).astype(np.int64)
    for _ in target.gradients(captured.before.tensors, names, few):
        pass
    return (time.monotonic() - began) / max(1, len(few)) * len(target)


def _flat(tensors: Mapping[str, torch.Tensor], like: Tensors, names: Sequence[str]) -> torch.Tensor:
    """One vector over `names`; zeros where a tensor is not given."""
    return torch.cat([(tensors[n] if n in tensors else torch.zeros_like(like[n])).reshape(-1) for n in names])


def _layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Layer -> its tensors: by number where names have one, by module where not."""
    found: dict[str, list[str]] = {}
    for name in names:
        index = layer_index(name)
        key = f"layer {index}" if index is not None else name.rpartition(".")[0] or name
        found.setdefault(key, []).append(name)
    return found


def _norm_share(updates: Sequence[Tensors]) -> dict[str, float]:
    """Layer -> share of the squared norm of all updates together."""
    squares: dict[str, float] = {}
    for update in updates:
        for layer, names in _layers(list(update)).items():
            found = sum(float(update[n].double().square().sum()) for n in names)
            squares[layer] = squares.get(layer, 0.0) + found
    total = sum(squares.values()) or 1.0
    return {k: v / total for k, v in squares.items()}
