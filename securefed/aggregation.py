"""The contract of an aggregation rule, beside its simplest instance, the weighted mean.

A rule maps (n, d) -> (d,). The mean needs only the sum, so every protection carries it; a robust
rule needs the single updates (or the sums of groups) and says so in `needs`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from securefed.errors import ProtocolError
from securefed.types import Aggregator, Collected, Reveals, RoundContext, Vector

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from securefed.rows import Rows


@dataclass(frozen=True)
class Mean:
    """The mean of the rows; weighted by the context's public weights when called through `step`.

    Tolerates no Byzantine client: one row can move it anywhere.

    >>> import torch
    >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([2., 3.])
    """

    @property
    def needs(self) -> Reveals:
        return "sum"

    def __call__(self, updates: Rows) -> torch.Tensor:
        """The mean of n rows, (d,).

        Raises:
            ValueError: no matrix of floats, ragged rows, or a row with a NaN or an infinity.
        """
        return self._weighted(updates, None)

    def step(self, updates: Rows, context: RoundContext, state: Any) -> tuple[torch.Tensor, Any]:
        return self._weighted(updates, context.weights), state

    def _weighted(self, updates: Rows, public: tuple[float, ...] | None) -> torch.Tensor:
        import torch

        from securefed.rows import as_rows, bad_rows, combine

        rows = as_rows(updates)
        if bad := bad_rows(rows):
            raise ValueError(
                f"mean: row {bad[0]} of n={rows.n} holds a NaN or an infinity; refuse that client"
            )
        weights = torch.tensor(public or (1.0,) * rows.n, dtype=torch.float64)
        found = combine(weights, rows) / float(
            weights.sum()
        )  # sums first: whole weights are exact in float32
        if bool(torch.isfinite(found.sum())) or bool(torch.isfinite(found).all()):
            return found
        return combine(
            weights / weights.sum(), rows
        )  # the sum of large numbers overflowed, their mean does not


def round_generator(seed: int, round: int) -> torch.Generator:
    """The seeded generator of one round's rule: the same whether the run was stopped in between or not."""
    import torch

    digest = hashlib.sha256(f"aggregator:{seed}:{round}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pack_state(state: Any) -> dict[str, Vector]:
    """A rule's memory as named float32 vectors, for a checkpoint.

    Raises:
        ProtocolError: it is something else than a mapping from text to vectors, so it could not be resumed.
    """
    import torch

    if state is None:
        return {}
    if isinstance(state, Mapping) and all(
        isinstance(v, torch.Tensor) and v.ndim == 1 for v in state.values()
    ):
        return {str(k): v.detach().cpu().numpy().astype("float32") for k, v in state.items()}
    raise ProtocolError(
        f"a rule's state is a mapping from text to vectors (d,), found {type(state).__name__}; "
        "else a stopped run could not go on"
    )


def unpack_state(vectors: Mapping[str, Vector]) -> dict[str, torch.Tensor] | None:
    """The memory that `pack_state` stored; None where there is none."""
    import torch

    return {k: torch.from_numpy(v.copy()) for k, v in vectors.items()} or None


def row_ids(collected: Collected) -> tuple[int, ...]:
    """Whose rows a rule gets, in row order: clients, or groups where only their sums are revealed."""
    return collected.survivors if collected.groups is None else tuple(collected.groups)


def row_weights(collected: Collected, public: bool) -> tuple[float, ...]:
    """The rows' weights. A group's is what its members claim, unless `public`; then it counts by its members."""
    if collected.groups is None:
        return tuple((collected.weights or {}).get(k, 1.0) for k in collected.survivors)
    return tuple(g.weight if public else float(len(g.members)) for g in collected.groups.values())


def _matrix(collected: Collected) -> NDArray[np.float32]:
    import numpy as np

    if collected.groups is not None:
        return np.stack([(g.total / g.weight).astype(np.float32) for g in collected.groups.values()])
    assert collected.updates is not None
    return np.stack([collected.updates[k] for k in collected.survivors])


def aggregate(
    rule: Aggregator, collected: Collected, context: RoundContext, state: Any
) -> tuple[Vector, Any]:
    """The round's aggregate, float32 (d,), and the rule's new state.

    A rule that needs only the sum gets total / weight, exact in float64 whatever protection carried
    it; any other gets the matrix of the survivors' updates, or of the groups' means: then its f counts
    poisoned groups.

    Raises:
        ProtocolError: nobody's input survived, the rule must see updates that were hidden, or it refuses
            what survived (too few for its f, say).
    """
    if not collected.survivors or collected.weight <= 0:
        raise ProtocolError(f"round {context.round}: no client's update survived; nothing to aggregate")
    if rule.needs == "sum":
        return (collected.total / collected.weight).astype("float32"), state
    if collected.updates is None and collected.groups is None:
        raise ProtocolError(
            f"round {context.round}: the rule must see updates, the protection revealed only a sum"
        )
    import torch

    rows = torch.from_numpy(_matrix(collected))
    try:
        vector, state = rule.step(rows, context, state)
    except ValueError as error:
        raise ProtocolError(f"round {context.round}: {error}") from error
    return vector.detach().cpu().numpy().astype("float32"), state
