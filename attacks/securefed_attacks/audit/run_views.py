"""A kept round as an audit's views: the same columns, each filled with what the run's server really had.

What the protection hid is not made, and says so; nothing is guessed from what the simulation knew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from securefed.config import Config
from securefed.kept_views import KeptView
from securefed.layout import Layout
from securefed_attacks.audit.captured import Captured, capture
from securefed_attacks.audit.columns import NAMES, Column
from securefed_attacks.audit.recipe import Observed
from securefed_attacks.audit.states import State, Tensors

ALONE: dict[str, Observed] = {"raw update": "update", "clipped": "clipped", "noised": "noised"}
"""What a single client's update is called in a recipe, by view."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A run's job as far as it decides what a view is.

    Attributes:
        layout: of the whole model. noise: where it is added: in single updates, in the sum, after it, or nowhere.
        encrypted: sums are decrypted ones. hidden: why no single update can be seen, "" where they can.
    """

    layout: Layout = field(repr=False)
    noise: str
    clipped: bool
    encrypted: bool
    hidden: str

    @classmethod
    def of(cls, config: Config, layout: Layout, reveals: str) -> Stage:
        """The stage of a job."""
        late = config.privacy.unit == "client" or config.fedsgd
        noise = (
            "nowhere"
            if not config.private
            else "sum"
            if config.distributed
            else "after"
            if late
            else "update"
        )
        name = config.protection.name
        hidden = (
            ""
            if reveals == "updates"
            else f"{name} hides single updates; the server had {reveals_words(reveals)}"
        )
        return cls(layout, noise, config.private and late, name == "ckks", hidden)

    @property
    def alone(self) -> str:
        """Under which name a single update is seen."""
        return "noised" if self.noise == "update" else "clipped" if self.clipped else "raw update"


def reveals_words(reveals: str) -> str:
    """What a protection reveals, for people."""
    return {"updates": "each update", "sum": "one sum a round"}.get(reveals, "the sums of groups")


def victims(kept: Sequence[KeptView], client: int | None, sizes: Sequence[int]) -> tuple[int, ...]:
    """Whose records are asked about: one client, or all whom the server cannot tell apart.

    By default the largest client whose updates were seen; its group; or everybody in the sums.
    """
    seen = sorted({k for v in kept for k in v.view.clients})
    if client is not None:
        return (client,) if client in seen else ()
    largest = max(seen, key=lambda k: (sizes[k], -k))
    if kept[0].view.reveals == "updates":
        return (largest,)
    if kept[0].view.reveals == "sum":
        return tuple(seen)
    return _group_of(kept[0], largest)


def _group_of(kept: KeptView, client: int) -> tuple[int, ...]:
    groups = (kept.view.groups or {}).values()
    return next((g.members for g in groups if client in g.members), ())


def round_of(
    kept: KeptView, stage: Stage, asked: Collection[int], like: State
) -> tuple[Captured, list[Column]] | None:
    """One round's update and its views, of the asked clients; None where none of them took part.

    Args:
        like: a state of the run, for what does not train, scales and names.
    """
    view, shared = kept.view, stage.layout.select(set(kept.shared).__contains__)
    here = [k for k in view.clients if k in asked]
    if not here:
        return None
    before = replace(
        like,
        tensors={**like.tensors, **stage.layout.unflatten(view.before)},
        source=f"before round {view.round + 1}",
    )
    made = _made(kept, stage, shared, here, before.tensors)
    first = next((c.update for n in NAMES if (c := made.get(n)) is not None and c.update is not None), {})
    after = {**before.tensors, **{n: before.tensors[n] + u for n, u in first.items()}}
    captured = capture(
        before, replace(before, tensors=after, source=f"what was seen of round {view.round + 1}")
    )
    why = {"noised": "no noise was added before the server", "clipped": "updates were not clipped"}
    blank = {
        name: Column(
            name, why_not=(stage.hidden if name in ALONE else "") or why.get(name, _elsewhere(stage, name))
        )
        for name in NAMES
    }
    return captured, [made.get(name, blank[name]) for name in NAMES]


def _made(
    kept: KeptView, stage: Stage, shared: Layout, here: Sequence[int], before: Tensors
) -> dict[str, Column]:
    view, found = kept.view, {}
    in_round = f"round {view.round + 1}"
    if len(here) == 1 and here[0] in view.updates:
        update = shared.unflatten(view.updates[here[0]])
        found[stage.alone] = Column(
            stage.alone,
            update,
            note=f"client {here[0]}, {in_round}, as the server had it",
            claimed=stage.noise in ("nowhere", "update"),
        )
    total, weight, clients = view.total, view.weight, len(view.clients)
    if view.groups:
        group = next(g for g in view.groups.values() if here[0] in g.members)
        total, weight, clients = group.total, group.weight, len(group.members)
    if total is not None and weight > 0:
        name = "decrypted" if stage.encrypted else "sum"
        mean = shared.unflatten(np.asarray(total / weight, np.float32))
        said = f"mean of {'the group' if view.groups else 'all who took part'}, {in_round}"
        found[name] = Column(name, mean, clients=clients, note=said, claimed=stage.noise != "after")
    if view.after is not None:
        moved = stage.layout.unflatten(view.after)
        step = {n: t - before[n] for n, t in moved.items()}
        if stage.noise == "after":
            part = {n: step[n] for n in shared.names}
            found["noised"] = Column(
                "noised", part, clients=len(view.clients), note=f"the sum with its noise, {in_round}"
            )
        found["final model"] = Column(
            "final model", step, shows_update=False, clients=len(view.clients), note=f"after {in_round}"
        )
    return found


def _elsewhere(stage: Stage, name: str) -> str:
    if name == "sum":
        return "updates were encrypted: the server summed what it could not read"
    if name == "decrypted":
        return "nothing was encrypted"
    return f"a client's update leaves it {'with its noise' if stage.noise == 'update' else 'clipped'}"
