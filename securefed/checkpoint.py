"""Resumable state of a run: one folder a round, written whole or not at all, checked when read.

`checkpoint/round-000012/` holds `state.json` (facts and checksums) and `state.safetensors` (vectors).
The two newest are kept, so that a torn write costs one round and never the run. No pickle. The folder is readable by
its owner alone: a simulation's state holds what no client would send.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from securefed.algorithms.server_optimizer import Moments
from securefed.errors import CheckpointError
from securefed.privacy.chain import Head
from securefed.types import Vector

VERSION = 1
KEEP = 2


@dataclass(frozen=True, eq=False)
class State:
    """Everything the next round depends on.

    Attributes:
        round: the next round to play.
        vector: the global model, float32 (d,) over the whole layout.
        moments: the server optimizer's. average: of the rounds' models, where the job asks for one.
        local: client -> what it keeps to itself, float32 over the local names (fedsa). In a real
            federation each client holds its own; a simulation must hold them all.
        rule: the aggregation rule's memory, named vectors (a rule without memory has none).
        best, stale: the best watched metric so far and evaluations since, for `stop.patience`.
        charges: reservations in the site's ledger so far; one with fewer has forgotten something.
        ledger: head of the site's ledger as text; one that does not go on from it was rolled back.
        mib_up, mib_down, seconds: totals so far, for the report.
        metrics, client_metrics: the last evaluation.
        versions: round -> the model before it, where a client still trains from it (fedbuff).
        sim_seconds: of the simulated clock so far.
        residual: client -> what compression left out of its updates so far, float32 (d,) over the whole layout.
        memory: what the server's side of a compression carries, named vectors.
    """

    round: int
    vector: Vector = field(repr=False)
    moments: Moments = field(repr=False)
    local: Mapping[int, Vector] = field(default_factory=dict, repr=False)
    rule: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    best: float | None = None
    stale: int = 0
    charges: int = 0
    ledger: str = ""
    mib_up: float = 0.0
    mib_down: float = 0.0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    client_metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    average: Vector | None = field(default=None, repr=False)
    versions: Mapping[int, Vector] = field(default_factory=dict, repr=False)
    sim_seconds: float = 0.0
    residual: Mapping[int, Vector] = field(default_factory=dict, repr=False)
    memory: Mapping[str, Vector] = field(default_factory=dict, repr=False)

    @property
    def seen(self) -> Head | None:
        """The head of the ledger that this state was saved under; None from before there was a chain."""
        return Head.parse(self.ledger) if self.ledger else None

    @property
    def handed_out(self) -> Vector:
        """The model that is measured and saved; training goes on from `vector`."""
        return self.vector if self.average is None else self.average


_FACTS = (
    "round",
    "best",
    "stale",
    "charges",
    "ledger",
    "mib_up",
    "mib_down",
    "seconds",
    "sim_seconds",
    "metrics",
    "client_metrics",
)


def save_state(folder: Path, state: State, identity: Mapping[str, str]) -> Path:
    """Writes the state under `folder`/checkpoint and drops all but the two newest.

    `identity` (run, config, layout, base model and data digests) must be equal when it is resumed.
    """
    from safetensors.numpy import save

    root = folder / "checkpoint"
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(
        0o700
    )  # what stays with clients is in it: their own models, and what was not sent of their updates
    tensors = {"vector": state.vector}
    moments = {"first": state.moments.first, "second": state.moments.second}
    tensors |= {name: m for name, m in moments.items() if m.any()}  # FedAvg has none to keep
    tensors |= {} if state.average is None else {"average": state.average}
    tensors |= {f"local.{k}": v for k, v in state.local.items()}
    tensors |= {f"version.{k}": v for k, v in state.versions.items()}
    tensors |= {f"rule.{k}": v for k, v in state.rule.items()}
    tensors |= {f"residual.{k}": v for k, v in state.residual.items()}
    tensors |= {f"memory.{k}": v for k, v in state.memory.items()}
    data = save({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()})
    facts = {name: getattr(state, name) for name in _FACTS}
    text = json.dumps(
        {"version": VERSION, "identity": dict(identity), "sha256": hashlib.sha256(data).hexdigest(), **facts}
    )
    final, part = root / f"round-{state.round:06d}", root / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / "state.safetensors").write_bytes(data)
    (part / "state.json").write_text(text, encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in sorted(root.glob("round-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_state(folder: Path, identity: Mapping[str, str]) -> State | None:
    """The newest state that is whole, or None if the run was stopped before its first checkpoint.

    Raises:
        CheckpointError: the newest whole state belongs to another run, job, model or data, or every
            checkpoint is damaged.
    """
    found = sorted((folder / "checkpoint").glob("round-*"), reverse=True)
    for path in found:
        facts = _read(path)
        if facts is None:
            continue
        tree, data = facts
        for key, value in identity.items():
            if tree["identity"].get(key) != value:
                raise CheckpointError(
                    f"{path.name} was made with another {key}; resume with the {key} it was started with, or start a new run"
                )
        return _state(tree, data)
    if found:
        raise CheckpointError(f"every checkpoint in {folder / 'checkpoint'} is damaged; start a new run")
    return None


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """The parts of one checkpoint, or None if it is torn or damaged."""
    try:
        tree = json.loads((path / "state.json").read_text(encoding="utf-8"))
        data = (path / "state.safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    if not isinstance(tree, dict) or tree.get("sha256") != hashlib.sha256(data).hexdigest():
        return None
    if tree.get("version") != VERSION:
        raise CheckpointError(
            f"{path.name} has checkpoint version {tree.get('version')}, this release reads {VERSION}"
        )
    return tree, data


def _state(tree: dict[str, Any], data: bytes) -> State:
    from safetensors.numpy import load

    arrays = load(data)
    local = {int(k.removeprefix("local.")): v for k, v in arrays.items() if k.startswith("local.")}
    rule = {k.removeprefix("rule."): v for k, v in arrays.items() if k.startswith("rule.")}
    versions = {int(k.removeprefix("version.")): v for k, v in arrays.items() if k.startswith("version.")}
    memory = {k.removeprefix("memory."): v for k, v in arrays.items() if k.startswith("memory.")}
    residual = {int(k.removeprefix("residual.")): v for k, v in arrays.items() if k.startswith("residual.")}
    later = {"ledger": "", "sim_seconds": 0.0}  # what older checkpoints lack
    facts = {name: tree.get(name, later[name]) if name in later else tree[name] for name in _FACTS}
    facts["client_metrics"] = {int(k): v for k, v in facts["client_metrics"].items()}
    none = Moments.zeros(arrays["vector"].size)
    moments = Moments(arrays.get("first", none.first), arrays.get("second", none.second))
    average = arrays.get("average")
    return State(
        vector=arrays["vector"],
        moments=moments,
        local=local,
        rule=rule,
        average=average,
        versions=versions,
        residual=residual,
        memory=memory,
        **facts,
    )
