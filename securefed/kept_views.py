"""What the server saw of a run's rounds, kept beside its results for an audit. Off unless the job asks for it.

One file a round, `views/round-000007.safetensors`, for the newest `tracking.keep_views` rounds: the models before and
after, and what the protection revealed: updates, group sums or one sum. These are private: a kept update tells as much
as one caught on its way. The files are readable by their owner alone; delete the folder when the audit is done.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from securefed.errors import CheckpointError
from securefed.layout import Layout, vector_digest
from securefed.types import Collected, GroupSum, Reveals, RoundParameters, Vector, View
from securefed.views import server_view

logger = logging.getLogger(__name__)
FOLDER = "views"
VERSION = 1
MIB = 2**20


@dataclass(frozen=True, eq=False)
class KeptView:
    """A round's view, and the names of the tensors that were sent: the coordinates of its updates and sums."""

    view: View = field(repr=False)
    shared: tuple[str, ...]


@dataclass
class ViewKeeper:
    """Keeps a run's views as its rounds are played; the first one kept says what it costs.

    Attributes:
        folder, run: of the run. reveals: its protection's promise. most: rounds kept; 0 keeps nothing.
    """

    folder: Path
    run: str
    reveals: Reveals
    most: int
    _told: bool = False

    def keep(self, round: int, shared: Layout, collected: Collected, before: Vector, after: Vector) -> None:
        """Keeps what the server saw of a round; one in which nobody's input was released, or nothing was sent, shows nothing.

        Raises:
            ProtocolError: more was collected than the protection says it reveals.
        """
        if not self.most or not collected.survivors or not shared.names:
            return
        parameters = RoundParameters(
            run=self.run,
            round=round,
            clients=collected.survivors,
            size=shared.size,
            layout_digest=shared.digest,
            model_digest=vector_digest(before),
        )
        view = server_view(parameters, self.reveals, collected, before, after)
        path = keep_view(self.folder, view, shared, self.most)
        if not self._told:
            mib = mib_a_round(before.size, shared.size, self.reveals, len(view.groups or view.clients))
            logger.info(
                f"keeping what the server saw of the last {self.most} rounds in {path.parent}: private, "
                f"about {mib:.1f} MiB a round"
            )
            self._told = True


def mib_a_round(model: int, sent: int, reveals: Reveals, rows: int) -> float:
    """MiB that one kept round takes: two models of float32, updates of float32 or sums of float64.

    Args:
        model, sent: coordinates of the model, and of what is sent. rows: clients, or groups, of a round.
    """
    held = 4 * rows if reveals == "updates" else 8 * (rows if reveals == "group sums" else 1)
    return (8 * model + (held + 8) * sent) / MIB


def keep_view(folder: Path, view: View, shared: Layout, most: int) -> Path:
    """Writes one round's view whole or not at all, and drops all but the newest `most`.

    Args:
        folder: of the run. shared: of what was sent; a bit that travels behind a vector is left out.
    """
    from safetensors.numpy import save

    root = folder / FOLDER
    root.mkdir(mode=0o700, exist_ok=True)
    groups = view.groups or {}
    arrays: dict[str, Any] = {"before": view.before}
    arrays |= {} if view.after is None else {"after": view.after}
    arrays |= {} if view.total is None else {"total": view.total[: shared.size]}
    arrays |= {f"update.{k}": u[: shared.size] for k, u in view.updates.items()}
    arrays |= {f"group.{g}": found.total[: shared.size] for g, found in groups.items()}
    facts = {
        "version": VERSION,
        "round": view.round,
        "reveals": view.reveals,
        "clients": view.clients,
        "weight": view.weight,
        "layout_digest": view.layout_digest,
        "shared": list(shared.names),
        "groups": {g: [list(found.members), found.weight] for g, found in groups.items()},
    }
    data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"facts": json.dumps(facts)})
    final, part = root / f"round-{view.round:06d}.safetensors", root / f".part-{os.getpid()}"
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
    os.replace(part, final)
    for old in sorted(root.glob("round-*.safetensors"))[:-most]:
        old.unlink(missing_ok=True)
    return final


def kept_views(folder: Path) -> list[KeptView]:
    """The views that a run's folder keeps, oldest first; empty where the job did not ask for them.

    Raises:
        CheckpointError: a file is damaged, or of another release.
    """
    return [_read(path) for path in sorted((folder / FOLDER).glob("round-*.safetensors"))]


def _read(path: Path) -> KeptView:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["version"] != VERSION:
            raise CheckpointError(f"{path.name} has version {facts['version']}, this release reads {VERSION}")
        return KeptView(_view(facts, arrays), tuple(facts["shared"]))
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, JSON and our own fields each raise their own kinds
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}); delete it, or play the run again"
        ) from None


def _view(facts: dict[str, Any], arrays: dict[str, Any]) -> View:
    updates: dict[int, Vector] = {
        int(k.removeprefix("update.")): v for k, v in arrays.items() if k.startswith("update.")
    }
    groups = {
        int(g): GroupSum(tuple(members), arrays[f"group.{g}"], weight)
        for g, (members, weight) in facts["groups"].items()
    }
    return View(
        adversary="server",
        round=facts["round"],
        reveals=facts["reveals"],
        clients=_ints(facts["clients"]),
        layout_digest=facts["layout_digest"],
        before=arrays["before"],
        after=arrays.get("after"),
        updates=dict(sorted(updates.items())),
        total=arrays.get("total"),
        weight=facts["weight"],
        groups=groups or None,
    )


def _ints(found: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(k) for k in found)
