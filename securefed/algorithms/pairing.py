"""A row of the table of pairings: one part of a job, and what it goes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from securefed.config.schema import Adapter, Noise, Unit

Kind = Literal["algorithm", "adapter", "compression"]
PROTECTIONS = ("plain", "masking", "grouped", "ckks")
UNITS: tuple[str, ...] = get_args(Unit)
NOISES: tuple[str, ...] = get_args(Noise)
ADAPTERS: tuple[str, ...] = get_args(Adapter)


@dataclass(frozen=True)
class Row:
    """One part of a job and what it goes with.

    Attributes:
        kind: which field of the job names it. sent: what a client sends, in words. kept: what stays with it.
        protections, units, noises, adapters: the names it goes with; everything by default.
        algorithms: for an adapter, the algorithms it goes with; None for all.
        refusals: "field=value", or "field" for every value of it -> one sentence with the way out, for whatever is left out.
    """

    kind: Kind
    sent: str
    kept: str = "nothing"
    protections: tuple[str, ...] = PROTECTIONS
    units: tuple[str, ...] = UNITS
    noises: tuple[str, ...] = NOISES
    adapters: tuple[str, ...] = ADAPTERS
    algorithms: tuple[str, ...] | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, field: str, value: str) -> str:
        """Why this value is left out, and what to do."""
        return self.refusals.get(f"{field}={value}") or self.refusals[field]
