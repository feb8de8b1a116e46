"""Two states made one update: the same tensors, finite, new minus old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from securefed.errors import AuditError
from securefed_attacks.audit.states import State, Tensors


@dataclass(frozen=True, eq=False)
class Captured:
    """What happened between two states.

    Attributes:
        before, after: the two. names: tensors that moved, sorted; empty where nothing did.
        update: after minus before on `names`, float32. unmoved: how many tensors are equal in both.
    """

    before: State
    after: State
    names: tuple[str, ...]
    update: Tensors = field(repr=False)
    unmoved: int = 0

    @property
    def size(self) -> int:
        """d, the coordinates that moved."""
        return sum(u.numel() for u in self.update.values())

    @property
    def scales(self) -> Mapping[str, float]:
        """LoRA module -> factor of B A."""
        return {**self.before.scales, **self.after.scales}

    @property
    def lora(self) -> bool:
        """Whether a low-rank factor moved."""
        return any(n.endswith((".lora_A", ".lora_B")) for n in self.names)


def capture(before: State, after: State) -> Captured:
    """The update between two states.

    A tensor may be in one state only where the other never holds tensors of its kind (an adapter's folder
    beside a base without it has B = 0 and no A that is known); everything else must be in both.

    Raises:
        AuditError: tensors missing on one side, of other shapes, or not finite; the first is named.
    """
    odd = sorted(before.tensors.keys() ^ after.tensors.keys())
    if odd:
        where = "before" if odd[0] in before.tensors else "after"
        raise AuditError(
            f"{len(odd)} tensors are only in one state, the first is {odd[0]} (only in {where}); "
            "both states must be of the same model"
        )
    update = {}
    for name, old in before.tensors.items():
        new = after.tensors[name]
        if old.shape != new.shape:
            raise AuditError(
                f"{name} has shape {tuple(old.shape)} before and {tuple(new.shape)} after; both states must be of the same model"
            )
        for which, tensor in (("before", old), ("after", new)):
            if not bool(tensor.isfinite().all()):
                bad = int((~tensor.isfinite()).sum())
                raise AuditError(
                    f"{which}: {name} holds {bad} values that are not finite; a state that diverged cannot be audited"
                )
        if not torch.equal(old, new):
            update[name] = new - old
    names = tuple(sorted(update))
    return Captured(before, after, names, {n: update[n] for n in names}, len(before.tensors) - len(names))
