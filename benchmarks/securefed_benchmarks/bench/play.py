"""One cell, played: an ordinary job in a folder of its own, then what is measured of it.

The data sets that everyone can fetch have nobody to protect: their cells charge a ledger that lasts as long
as the cell. Records of your own are charged to this site's ledger, like those of any other run.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from securefed.assembly import Assembly, assemble
from securefed.config import Config, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.crypto.site_key import SiteKey
from securefed.data.catalogue import SOURCES
from securefed.data.load import kept_rows
from securefed.data.records import Examples
from securefed.engine.liars import liars_of
from securefed.errors import DivergedError, ProtocolError
from securefed.federation import run
from securefed.paths import cache_dir, policy_path, states_dir, states_key_path
from securefed.tracking.files import read_json, read_rounds
from securefed_benchmarks.bench.measures import Measured, Played, make_measure
from securefed_benchmarks.bench.outcome import Outcome
from securefed_benchmarks.bench.resident import Resident

SCORES = ("accuracy", "balanced_accuracy", "f1", "loss", "perplexity", "attack_success")


def play(job: Mapping[str, Any], measures: Sequence[str], resident: Resident) -> Outcome:
    """Plays the job and measures it.

    A model that leaves the finite numbers is scored as chance and marked `diverged`: that is what the
    attack achieved.

    Raises:
        SecureFedError: whatever a run refuses.
    """
    began, cpu = time.perf_counter(), time.process_time()
    config = load_config(job)
    with tempfile.TemporaryDirectory(prefix="securefed-cell-") as name, _ledger_of(config, Path(name)):
        assembly = assemble(config, resident)
        model = assembly.model
        first = model.read(model.layout)
        folder = Path(name) / "run"
        scores: dict[str, float]
        curves: dict[str, list[list[float]]] = {}
        try:
            run(config, folder=folder, assembly=assembly)
        except DivergedError:
            scores = _chance(assembly)
        else:
            scores, curves = _read(folder)
            for found in _measured(config, measures, assembly, first, resident):
                scores |= found.scores
                curves |= {k: [list(p) for p in points] for k, points in found.curves.items()}
    return Outcome(scores, curves, time.perf_counter() - began, time.process_time() - cpu)


def _read(folder: Path) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """The run's own scores and its course, from its folder."""
    summary, rounds = read_json(folder / "summary.json"), read_rounds(folder)
    found = {k: float(v) for k, v in summary["metrics"].items() if k in SCORES and v is not None}
    measured = [r for r in rounds if r["metrics"]]
    curves = {
        name: [[r["round"] + 1, float(r["metrics"][name])] for r in measured]
        for name in SCORES
        if measured and all(r["metrics"].get(name) is not None for r in measured)
    }
    if "accuracy" in curves:
        found["best_accuracy"] = max(value for _, value in curves["accuracy"])
    if summary.get("statement"):
        found["epsilon"] = float(summary["statement"]["epsilon"])
    answers = sum(len(r["survivors"]) for r in rounds) or 1
    found["bytes_up"] = summary["mib_up"] * 2**20 / answers
    found["mib_up"], found["mib_down"] = summary["mib_up"], summary["mib_down"]
    found["refused"] = float(sum(len(r["refused"]) for r in rounds))
    clipped = [r["clipped_share"] for r in rounds if r.get("clipped_share") is not None]
    if clipped:
        found["clipped_share"] = sum(clipped) / len(clipped)
    return found, curves


def _chance(assembly: Assembly) -> dict[str, float]:
    classes = len(assembly.dataset.classes)
    chance = {"accuracy": 1 / classes, "best_accuracy": 1 / classes} if classes else {}
    return {**chance, "diverged": 1.0}


def _measured(
    config: Config, measures: Sequence[str], assembly: Assembly, first: Any, resident: Resident
) -> Iterator[Measured]:
    if not measures:
        return
    whole = resident.whole(config)
    kept = set(kept_rows(len(whole.train), config.data).tolist())
    others = whole.train.take([i for i in range(len(whole.train)) if i not in kept])
    liars = set(liars_of(config, len(assembly.shards)))
    members = joined([s.train for s in assembly.shards if s.client not in liars])
    played = Played(config, assembly, first, members, others)
    for name in measures:
        yield make_measure(name).measure(played)


def joined(parts: Sequence[Examples]) -> Examples:
    import numpy as np

    def column(name: str) -> Any:
        columns = [getattr(p, name) for p in parts]
        if columns[0] is None:
            return None
        if isinstance(columns[0], tuple):
            return tuple(value for c in columns for value in c)
        return np.concatenate(columns)

    return Examples(**{n: column(n) for n in ("texts", "images", "labels", "targets", "groups", "documents")})


def _share_states(home: Path) -> None:
    """Lets the cell use this site's store of frozen states, where there is one to be had: the records are public."""
    with suppress(OSError, ProtocolError):  # without it a cell computes them
        SiteKey.at(states_key_path(), SystemEntropy())
        states_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "state").mkdir(mode=0o700)
        (home / "state" / states_key_path().name).symlink_to(states_key_path().resolve())
        (home / "states").symlink_to(states_dir().resolve(), target_is_directory=True)


@contextmanager
def _ledger_of(config: Config, folder: Path) -> Iterator[None]:
    """Within it, a public data set is charged to a ledger in `folder`; this site's policy holds all the same."""
    if config.data.name not in SOURCES:
        yield
        return
    before, home = os.environ.get("SECUREFED_HOME"), folder / "home"
    home.mkdir()
    cache, policy = cache_dir().resolve(), policy_path().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    (home / "cache").symlink_to(cache, target_is_directory=True)
    if policy.is_file():
        (home / "policy.toml").symlink_to(policy)
    _share_states(home)
    os.environ["SECUREFED_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SECUREFED_HOME"]
        else:
            os.environ["SECUREFED_HOME"] = before
