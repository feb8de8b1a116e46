"""GNMax: noisy counts of votes, accounted without looking at the votes (Papernot et al. 2018, arXiv 1802.08908).

Each of n clients (PATE's teachers) casts one vote on each of m public records; the server adds Gaussian noise of deviation s to
every class's count and keeps the largest. The whole is one release of a vector with a bounded sensitivity, so its
events are those of the Gaussian mechanism, and PLD bounds it tighter than the paper's Renyi orders.
"""

from __future__ import annotations

import math

from securefed.errors import PrivacyError
from securefed.privacy.events import SampledGaussian, Unit


def vote_release(deviation: float, records: int, unit: Unit) -> SampledGaussian:
    """One release of noisy counts on `records` public records, with noise of this deviation on each count.

    `"client"`: a client's votes become none, which moves the counts by 1 in L2 norm a record, sqrt(m) in all.
    `"example"`: one record of one client is replaced, added or removed. Only that client's votes can change, each from one
    class to another: sqrt(2) a record, sqrt(2 m) in all (their proposition 8 is this bound by Renyi divergence).
    No record may lie with two clients.

    Raises:
        PrivacyError: an argument out of range.

    >>> vote_release(40.0, 100, "client").noise_multiplier
    4.0
    """
    if not (math.isfinite(deviation) and deviation > 0) or records < 1:
        raise PrivacyError(
            f"noisy votes need a deviation > 0 and records >= 1, got {deviation!r} and {records}"
        )
    if unit not in ("client", "example"):
        raise PrivacyError(f'unit is "example" or "client", got {unit!r}')
    moved = records if unit == "client" else 2 * records
    return SampledGaussian(deviation / math.sqrt(moved), 1.0, 1)
