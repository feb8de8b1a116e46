"""A run's own folder as the auditor's input: its rounds on record, its job as recipe, its data as candidates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from securefed.data.records import Examples
from securefed.errors import AuditError
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.states import State, lora_modules


@dataclass(frozen=True, eq=False)
class RunInput:
    """What a run's folder hands over.

    Attributes:
        states: of the rounds on record, the public initial model first. numbers: rounds played at each.
        recipe: of one client's round; what is seen between two states is the cohort's sum.
        candidates: a seeded sample of training records (members) and public test records (non-members).
    """

    states: tuple[State, ...] = field(repr=False)
    numbers: tuple[int, ...]
    base: str
    recipe: Recipe
    candidates: Candidates = field(repr=False)
    claimed: float | None
    sampled: str


def is_run(path: Any) -> bool:
    """Whether this is the folder of a run."""
    return isinstance(path, str | Path) and (Path(path) / "run.json").is_file()


def open_run(path: Path, sample: int, seed: int) -> RunInput:
    """The run's rounds, recipe and records.

    Single updates are never stored, whatever the protection: between two states lies the sum of a cohort.

    Raises:
        AuditError: no checkpoint was written yet, or the job cannot be audited (seq2seq).
        SecureFedError: data or model of the job are not on this machine.
    """
    from securefed.assembly import assemble
    from securefed.config import load_config

    config = load_config(path / "config.toml")
    if config.model.task == "seq2seq":
        raise AuditError(f"{path}: a seq2seq job; classification and causal language models are audited")
    found = sorted((path / "checkpoint").glob("round-*/state.safetensors"))
    if not found:
        raise AuditError(f"{path} has no checkpoint yet; let the run end its first rounds")
    assembly = assemble(config)
    model = assembly.model
    vectors = [model.read(model.layout), *(_vector(f) for f in found)]
    frozen = {n: t.detach().cpu().float() for n, t in model.frozen_adapter.items()}
    alpha = config.model.alpha
    states = []
    for number, vector in zip((0, *(_number(f) for f in found)), vectors, strict=True):
        tensors: dict[str, torch.Tensor] = {**model.layout.unflatten(vector), **frozen}
        scales = {
            m: alpha / (math.sqrt(config.model.rank) if config.model.rslora else config.model.rank)
            for m in lora_modules(tensors)
        }
        sidecar = {
            "model": dataclasses.asdict(config.model),
            "classes": model.classes,
            "max_length": model.max_length,
            "image_shape": model.image_shape,
            "base": config.model.name,
        }
        states.append(State(tensors, scales, source=f"{path.name}, after {number} rounds", sidecar=sidecar))
    candidates, sampled = _records(assembly, sample, seed)
    cohort = config.clients_per_round or len(assembly.shards)
    recipe = Recipe(
        optimizer=config.train.optimizer if config.train.optimizer in ("sgd", "adamw") else None,
        steps=config.train.steps or None,
        observed="sum",
        clients=cohort,
        max_length=model.max_length,
        delta=config.privacy.delta if config.private else 1e-5,
    )
    return RunInput(
        tuple(states),
        (0, *(_number(f) for f in found)),
        config.model.name,
        recipe,
        candidates,
        config.privacy.epsilon if config.private else None,
        sampled,
    )


def _vector(path: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(path)["vector"]


def _number(path: Path) -> int:
    return int(path.parent.name.removeprefix("round-"))


def _records(assembly: Any, sample: int, seed: int) -> tuple[Candidates, str]:
    rng = np.random.default_rng([seed, 0xF01D])
    shards = [s.train for s in assembly.shards]
    held = sum(len(s) for s in shards)
    inside = [s.take(np.arange(len(s))) for s in shards if len(s)]
    chosen = np.sort(rng.permutation(held)[: sample // 2])
    members = _pick(inside, chosen)
    test: Examples = assembly.dataset.test
    rows = np.sort(rng.permutation(len(test))[: sample // 2])
    others = test.take(rows)
    both = _joined([*members, others])
    known = np.arange(len(both)) < len(chosen)
    said = f"a seeded sample of {len(chosen)} of {held:,} training and {len(rows)} of {len(test):,} public test records"
    return (
        Candidates(
            texts=both.texts,
            inputs=None if both.images is None else torch.from_numpy(both.images),
            labels=both.labels,
            member=known,
        ),
        said,
    )


def _pick(shards: list[Examples], rows: Any) -> list[Examples]:
    ends = np.cumsum([len(s) for s in shards])
    starts = ends - [len(s) for s in shards]
    return [s.take(rows[(rows >= a) & (rows < b)] - a) for s, a, b in zip(shards, starts, ends, strict=True)]


def _joined(parts: list[Examples]) -> Examples:
    texts = tuple(t for p in parts for t in p.texts or ()) if parts[0].texts is not None else None
    images = [p.images for p in parts if p.images is not None and len(p)]
    labels = [p.labels for p in parts if p.labels is not None and len(p)]
    return Examples(
        texts=texts,
        images=np.concatenate(images) if images else None,
        labels=np.concatenate(labels) if labels else None,
    )
