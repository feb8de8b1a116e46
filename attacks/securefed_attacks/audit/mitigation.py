"""The section on mitigation: changes of what is sent, cheapest first, until the findings are gone. Before and after.

A trial here is an experiment on this update. It is no guarantee: only an accountant's epsilon is one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One change, tried.

    Attributes:
        name: what was changed. view: on which view. leak_before, leak_after: what the finding measured.
        measure: what that is. loss_before, loss_after: mean loss of non-members with the update applied,
            unchanged and changed: what it costs. enough: the finding is gone.
    """

    name: str
    view: str
    measure: str
    leak_before: float
    leak_after: float
    loss_before: float | None
    loss_after: float | None
    enough: bool


def mitigate(*args: object) -> list[Trial]:
    return []
