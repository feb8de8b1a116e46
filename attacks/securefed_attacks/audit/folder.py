"""A run's own folder as the auditor's input: its rounds on record, its job as recipe, its data as candidates."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from securefed.config import Config, TrainConfig
from securefed.errors import AuditError
from securefed.kept_views import KeptView, kept_views
from securefed.registry import algorithm_name
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.captured import Captured, capture
from securefed_attacks.audit.columns import Column, columns
from securefed_attacks.audit.recipe import Observed, Recipe
from securefed_attacks.audit.run_views import ALONE, Stage, round_of, victims
from securefed_attacks.audit.sampling import sample_records
from securefed_attacks.audit.states import State, lora_modules
from securefed_attacks.partition import equations

Asked = tuple[tuple[int, ...], Observed, list[tuple[str, tuple[Captured, list[Column]]]]]
"""Whose records are asked about, what was captured of them, and each round by its name."""


@dataclass(frozen=True, eq=False)
class RunInput:
    """What a run's folder hands over.

    Attributes:
        rounds: each round's update and its views: all kept ones (`tracking.keep_views`), or else the steps
            between the checkpoints, which are sums of cohorts (of a distillation: two states of its student). names: what they are called.
        recipe: of one client's round. candidates: a seeded sample of training records (members) and public
            test records (non-members). claimed: the run's epsilon. sampled: how the candidates were drawn.
        groups: what all the kept group sums together determine, in words; "" where there are none.
    """

    rounds: list[tuple[Captured, list[Column]]] = field(repr=False)
    names: tuple[str, ...]
    base: str
    recipe: Recipe
    candidates: Candidates = field(repr=False)
    claimed: float | None
    sampled: str
    groups: str = ""


def is_run(path: Any) -> bool:
    """Whether this is the folder of a run."""
    return isinstance(path, str | Path) and (Path(path) / "run.json").is_file()


def open_run(path: Path, sample: int, seed: int, client: int | None = None) -> RunInput:
    """The run's rounds, recipe and records.

    Args:
        sample: records asked, half of them members. client: whose records; by default as `run_views.victims`.

    Raises:
        AuditError: no view and no checkpoint there, a client that did not take part, or a seq2seq job.
        SecureFedError: data or model of the job are not on this machine, or a kept view is damaged.
    """
    from securefed.assembly import assemble
    from securefed.config import load_config

    config = load_config(path / "config.toml")
    if config.model.task == "seq2seq":
        raise AuditError(f"{path}: a seq2seq job; classification and causal language models are audited")
    kept = kept_views(path)
    found = [] if kept else sorted((path / "checkpoint").glob("round-*/state.safetensors"))
    if not kept and not found:
        raise AuditError(
            f"{path} has no kept view and no checkpoint yet; let the run end its first rounds, or keep views "
            "(tracking.keep_views)"
        )
    if client is not None and not kept:
        raise AuditError(
            f"client={client}: a checkpoint holds whole cohorts; run with tracking.keep_views to ask about one client"
        )
    assembly = assemble(config)
    asked, observed, rounds = (
        _from_views(assembly, kept, client) if kept else _from_checkpoints(assembly, path, found)
    )
    candidates, sampled = sample_records(assembly, asked, sample, seed)
    recipe = _recipe(assembly, asked, observed)
    claimed = config.privacy.epsilon if config.private else None
    names = tuple(name for name, _ in rounds)
    return RunInput(
        [r for _, r in rounds],
        names,
        config.model.name,
        recipe,
        candidates,
        claimed,
        sampled,
        _partitions(kept),
    )


def _partitions(kept: Sequence[KeptView]) -> str:
    """The rank of all partitions seen, and whose updates they determine (the regression attack's precondition)."""
    if not kept or not kept[0].view.groups:
        return ""
    found = equations([k.view for k in kept])
    alone = ", ".join(map(str, found.identified)) or "of nobody"
    return (
        f"{len(found.matrix)} sums seen are {found.rank} independent equations in {len(found.clients)} clients' updates; "
        f"they determine single updates {'of clients ' * bool(found.identified)}{alone}"
    )


def _from_views(assembly: Any, kept: list[KeptView], client: int | None) -> Asked:
    model, reveals = assembly.model, kept[0].view.reveals
    stage = Stage.of(assembly.config, model.layout, reveals)
    asked = victims(kept, client, [len(s.train) for s in assembly.shards])
    like = _state(assembly, kept[0].view.before, "")
    rounds = [
        (f"round {k.view.round + 1}", found)
        for k in kept
        if (found := round_of(k, stage, asked, like)) is not None
    ]
    if not rounds:
        raise AuditError(
            f"client {client} took part in none of the {len(kept)} kept rounds; ask about another"
        )
    return asked, ALONE[stage.alone] if reveals == "updates" else "sum", rounds


def _from_checkpoints(assembly: Any, path: Path, found: list[Path]) -> Asked:
    model, everybody = assembly.model, tuple(range(len(assembly.shards)))
    vectors = [model.read(model.layout), *(_vector(f) for f in found)]
    numbers = [0, *(_number(f) for f in found)]
    states = [
        _state(assembly, vector, f"{path.name}, after {number} rounds")
        for number, vector in zip(numbers, vectors, strict=True)
    ]
    # a student learns on public records: no step of its is a sum of anybody's updates
    seen: Observed = "final" if assembly.config.distills else "sum"
    recipe, rounds = Recipe(observed=seen, clients=len(everybody)), []
    for k, (old, new) in enumerate(itertools.pairwise(states)):
        captured, first, last = capture(old, new), numbers[k] + 1, numbers[k + 1]
        name = f"round {last}" if first == last else f"rounds {first} to {last}"
        rounds.append((name, (captured, columns(captured, recipe, [], torch.Generator()))))
    return everybody, seen, [r for r in rounds if r[1][0].names] or rounds[:1]


def _state(assembly: Any, vector: Any, source: str) -> State:
    model, config = assembly.model, assembly.config.model
    frozen = {n: t.detach().cpu().float() for n, t in model.frozen_adapter.items()}
    tensors: dict[str, torch.Tensor] = {**model.layout.unflatten(vector), **frozen}
    scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
    sidecar = {
        "model": dataclasses.asdict(config),
        "classes": model.classes,
        "max_length": model.max_length,
        "image_shape": model.image_shape,
        "base": config.name,
    }
    return State(tensors, dict.fromkeys(lora_modules(tensors), scale), source=source, sidecar=sidecar)


def _recipe(assembly: Any, asked: Sequence[int], observed: Observed) -> Recipe:
    """One client's round as the job has it.

    Under example-level DP its batches are drawn, and where it has more than one rate, or another loss, a recipe cannot say
    so: then its rate and batches are not told, and nothing is replayed as if it were.
    """
    config, train = assembly.config, assembly.config.train
    drawn = (config.private and observed == "noised") or not _plain(config)
    records = max(len(assembly.shards[k].train) for k in asked)
    batch = train.batch_size * train.accumulate
    steps = train.steps or train.epochs * math.ceil(records / batch)
    return Recipe(
        optimizer=train.optimizer,
        steps=steps or None,
        learning_rate=None if drawn else train.learning_rate,
        batch_size=None if drawn else batch,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        observed=observed,
        clients=config.clients_per_round or len(assembly.shards),
        max_length=assembly.model.max_length,
        delta=config.privacy.delta if config.private else 1e-5,
    )


def _plain(config: Config) -> bool:
    """Whether local work is steps of one constant rate on the mean loss of a batch: all that a recipe can say."""
    train, usual = config.train, TrainConfig()
    beside = (
        "warmup_steps",
        "schedule",
        "label_smoothing",
        "class_weights",
        "proximal_mu",
        "client_learning_rate",
    )
    one_rate = train.head_learning_rate in (None, train.learning_rate)
    # these pull towards a model, or train in two turns; ranks that may be pruned are shrunk after their steps
    turns = algorithm_name(config.algorithm.name) in ("fedprox", "fedrep")
    alike = not turns and "prune" not in config.algorithm.options and config.model.vocabulary_sample == 0
    return alike and one_rate and all(getattr(train, name) == getattr(usual, name) for name in beside)


def _vector(path: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(path)["vector"]


def _number(path: Path) -> int:
    return int(path.parent.name.removeprefix("round-"))
