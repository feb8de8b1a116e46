"""Whether a job's noise leaves anything to learn, told before the run from public numbers alone.

A job releases T noisy means of clipped vectors. If all of them were as long as the clip and pointed one way, their
sum would stand above the noise of one coordinate by sqrt(T) / s, s being the standard deviation of one mean's
noise in clips. No recipe turns the same releases into more signal than that; real gradients disagree, and give a small
part of it. What part a model needs is measured (docs/recipes.md), on public data sets; the job's records are not read,
so the estimate spends nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from securefed.privacy.dealing import deal_of

if TYPE_CHECKING:
    from securefed.config import Config

logger = logging.getLogger(__name__)

HOPELESS = 30.0
"""About here the least demanding model there is, a linear head, was at chance whatever its learning rate."""

POOR = 300.0
"""Below it a head on frozen features of texts lost a quarter of what it learns, at a tenth of this most of it."""


def signal_to_noise(config: Config, noise_multiplier: float, records: Sequence[int]) -> float:
    """The most that all releases of a job can stand above the noise of one coordinate; infinite without noise.

    Args:
        noise_multiplier: of the job's mechanism. records: of each client, all at least 1; public here, as where the
            job weighs updates by them.
    """
    chosen = config.clients_per_round or len(records)
    if config.correlated:  # what the last model carries of all rounds' noise
        error = noise_multiplier * deal_of(config, len(records)).factor.max_error
        return config.rounds * chosen / error if error > 0 else math.inf
    if config.privacy.unit == "client":
        noise, steps = noise_multiplier / chosen, config.rounds
    else:
        noise = _mean_noise(config, noise_multiplier, records) * math.sqrt(len(records) / chosen)
        steps = config.rounds * config.train.steps
    return math.sqrt(steps) / noise if noise > 0 else math.inf


def _mean_noise(config: Config, noise_multiplier: float, records: Sequence[int]) -> float:
    """Standard deviation of one coordinate of the mean of all clients' gradients, in clips."""
    per_record, total = noise_multiplier / config.privacy.sample_rate, sum(records)
    if config.fedsgd:  # one noise for the sum of all
        return per_record / total
    if config.weights == "size":  # each client's noise in its mean is per_record / n, its weight n / total
        return per_record * math.sqrt(len(records)) / total
    return per_record * math.sqrt(sum(1 / n**2 for n in records)) / len(records)


def warn_of_noise(config: Config, noise_multiplier: float, records: Sequence[int]) -> None:
    """One line of warning where little or nothing can be learned; nothing is read, nothing is spent."""
    found = signal_to_noise(config, noise_multiplier, records)
    if found >= POOR:
        return
    verdict = "nothing can be learned" if found < HOPELESS else "accuracy will suffer"
    logger.warning(
        "%s under this noise: signal to noise is at most %.3g, below %g (noise multiplier %.3g); raise %s",
        verdict,
        found,
        HOPELESS if found < HOPELESS else POOR,
        noise_multiplier,
        _ways_out(config),
    )


def _ways_out(config: Config) -> str:
    """What raises the ratio, the cheapest first."""
    if config.privacy.unit == "client":
        return "privacy.epsilon or the number of clients"
    ways = "privacy.epsilon, privacy.sample_rate or the number of records"
    own = config.data.clients != 1 and not config.fedsgd
    return f'{ways}, or share one noise among the clients (algorithm = "fedsgd")' if own else ways
