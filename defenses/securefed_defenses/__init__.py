"""Rules that turn n updates into one, (n, d) -> (d,), and what they tolerate.

`AGGREGATORS` and `PRE_AGGREGATORS` map a name to a frozen dataclass whose fields are its parameters.
A job names a rule as `aggregator = "mean"`; the registry of `securefed` looks here by string.

In this release the only rule is the mean, which tolerates no liar: it is the baseline that robust
rules are measured against.

>>> import torch
>>> AGGREGATORS["mean"]()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
tensor([2., 3.])
"""

from __future__ import annotations

from typing import Any

from securefed.aggregation import Mean as Mean

AGGREGATORS: dict[str, type[Any]] = {"mean": Mean}
"""Name -> rule, (n, d) -> (d,)."""

PRE_AGGREGATORS: dict[str, type[Any]] = {}
"""Name -> map (n, d) -> (m, d) that is put before a rule; none in this release."""

__all__ = ["AGGREGATORS", "PRE_AGGREGATORS", "Mean"]
