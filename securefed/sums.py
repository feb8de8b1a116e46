"""One secure sum in one process: to try, to test, to teach. The bytes are those of a real round.

It holds everybody's vectors and keys, so nothing is hidden from this process: simulated, no protection
between clients.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefed.config import Component
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.faults import Schedule, exchange_with_faults, steps_of
from securefed.errors import ConfigError, ProtocolError
from securefed.layout import vector_digest
from securefed.registry import PROTECTIONS, find_class, make_protection
from securefed.types import Collected, Protection, RoundParameters, Update, Vector


@dataclass(frozen=True)
class SecureSum:
    """What the server learned, and what it cost.

    Attributes:
        value: sum over survivors of weight x vector, float32 (d,).
        weight: sum of the survivors' weights.
        survivors: indices of the vectors inside, ascending.
        bytes_up: client -> bytes it sent.
        clipped_share: of all survivors' coordinates; 0 where the protection does not clip.
        refused: client -> why its input was not taken. dropped: client -> the step it did not answer.
    """

    value: Vector = field(repr=False)
    weight: float
    survivors: tuple[int, ...]
    bytes_up: Mapping[int, int]
    clipped_share: float
    refused: Mapping[int, str]
    dropped: Mapping[int, str]

    @property
    def mean(self) -> Vector:
        """value / weight, float32 (d,)."""
        return (self.value.astype(np.float64) / self.weight).astype(np.float32)


def secure_sum(
    vectors: Sequence[ArrayLike] | NDArray[Any],
    *,
    weights: Sequence[float] | None = None,
    protection: str | Protection = "masking",
    drop: Mapping[int, str] | None = None,
    threshold: int | None = None,
    value_range: float | None = None,
    entropy: Entropy | None = None,
) -> SecureSum:
    """The sum of the clients' vectors, each weighted, as a server learns it that sees nothing else.

    Args:
        vectors: one per client, all of shape (d,); taken as float32.
        weights: above 0; None weighs all alike. Given weights travel inside the sum, unseen.
        protection: a name ("masking", "plain") or an object.
        drop: client -> the step before which it vanishes: "advertise", "share", "mask", "agree", "unmask"
            ("submit" for plain).
        threshold: shares that open a secret; None takes the table's.
        value_range: coordinates beyond it are clipped. None takes the power of two above the largest
            coordinate, which only a simulation can know: a real cohort needs a public constant.
        entropy: the system's by default; a seeded one is for tests only.

    Raises:
        ConfigError: vectors, weights, steps or options that do not fit.
        ProtocolError: no exact sum: too many dropped, too much clipped, a cohort below the floor.

    >>> import numpy as np
    >>> result = secure_sum([np.full(3, 1.0), np.full(3, 2.0), np.full(3, 4.0)])
    >>> result.value.round(3).tolist(), result.survivors
    ([7.0, 7.0, 7.0], (0, 1, 2))
    """
    rows = _rows(vectors)
    n, d = len(rows), rows[0].shape[0]
    if weights is not None and len(weights) != n:
        raise ConfigError(f"{len(weights)} weights do not fit {n} vectors; give one each")
    chosen = _protection(protection, rows, weights, threshold, value_range)
    steps = steps_of(chosen)
    for client, step in (drop or {}).items():
        if not 0 <= client < n or step not in steps:
            raise ConfigError(
                f"drop={{{client}: {step!r}}}: clients are 0 .. {n - 1}, steps are {', '.join(steps)}"
            )
    vanish = {client: steps.index(step) for client, step in (drop or {}).items()}
    base = RoundParameters(
        run=secrets.token_hex(8),
        round=0,
        clients=tuple(range(n)),
        size=d,
        layout_digest=vector_digest(np.array([d], np.float32)),
        model_digest=vector_digest(np.zeros(1, np.float32)),
        weights=(1.0,) * n if weights is None else None,
    )
    updates = {
        k: Update(k, 0, row, 1.0 if weights is None else float(weights[k])) for k, row in enumerate(rows)
    }
    played = exchange_with_faults(chosen, base, updates, entropy or SystemEntropy(), Schedule(vanish=vanish))
    if played.result is None or not played.result.survivors:
        why = [f"client {k}: {reason}" for k, reason in played.gave_up.items()]
        raise ProtocolError("; ".join([played.abort or "no client's vector survived", *why]))
    return _sum_of(played.result)


def _sum_of(result: Collected) -> SecureSum:
    return SecureSum(
        value=result.total.astype(np.float32),
        weight=result.weight,
        survivors=result.survivors,
        bytes_up=result.bytes_up,
        clipped_share=result.clipped_share or 0.0,
        refused=result.refused,
        dropped=result.dropped,
    )


def _rows(vectors: Sequence[ArrayLike] | NDArray[Any]) -> list[Vector]:
    rows = [np.asarray(v, np.float32) for v in vectors]
    if not rows:
        raise ConfigError("secure_sum needs at least one vector")
    for k, row in enumerate(rows):
        if row.ndim != 1 or row.shape != rows[0].shape:
            raise ConfigError(
                f"vectors are of one shape (d,); vector 0 has {rows[0].shape}, vector {k} {row.shape}"
            )
    return rows


def _protection(
    protection: str | Protection,
    rows: Sequence[Vector],
    weights: Sequence[float] | None,
    threshold: int | None,
    value_range: float | None,
) -> Protection:
    """The protection with the options that were given, and those of its fields that a simulation knows."""
    given = {k: v for k, v in (("threshold", threshold), ("value_range", value_range)) if v is not None}
    if not isinstance(protection, str):
        return _with_options(protection, given)
    cls = find_class("protection", protection, PROTECTIONS)
    known = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    simulated = {
        "value_range": _power_of_two(max(float(np.abs(r[np.isfinite(r)]).max(initial=0)) for r in rows)),
        "max_weight": _power_of_two(max(map(float, weights))) if weights else 1.0,
    }
    if threshold is not None:
        simulated["below_table"] = True  # all parties are the caller's own, so the floor is too
    return make_protection(Component(protection, {k: v for k, v in simulated.items() if k in known} | given))


def _with_options(protection: Protection, given: Mapping[str, Any]) -> Protection:
    if not given:
        return protection
    try:
        changed: Protection = dataclasses.replace(protection, **given)  # type: ignore[type-var]  # refused below if it is none
    except TypeError:
        raise ConfigError(f"protection {protection.name} has no option {' or '.join(given)}") from None
    return changed


def _power_of_two(value: float) -> float:
    return 2.0 ** math.ceil(math.log2(value)) if 0 < value < math.inf else 1.0
