"""Uneven clients: what their losses weigh, how fast they are, and which algorithm goes with the rest of the job."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import Config


def check_uneven(c: Config) -> None:
    """Raises ConfigError for a pair that the table of pairings forbids, or what an algorithm itself refuses."""
    from securefed.registry import ALGORITHMS, load, make

    algorithm = make("algorithm", c.algorithm, ALGORITHMS)
    load("securefed.algorithms.pairings:check_pairings")(c)
    _check_clock(c)
    _check_class_weights(c)
    if (own := getattr(algorithm, "check", None)) is not None:
        own(c)


def check_uneven_clients(c: Config, clients: int) -> None:
    """The algorithm's own check of the number of clients that the data gives."""
    from securefed.registry import ALGORITHMS, make

    if (own := getattr(make("algorithm", c.algorithm, ALGORITHMS), "check_clients", None)) is not None:
        own(clients)


def _check_clock(c: Config) -> None:
    t = c.clock
    require(t.seconds >= 0, f"clock.seconds must be 0 (no clock) or more, found {t.seconds}")
    require(t.spread >= 0, f"clock.spread must be 0 (all alike) or more, found {t.spread}")
    require(
        0 <= t.stragglers <= 1, f"clock.stragglers is a share of the clients in [0, 1], found {t.stragglers}"
    )
    require(t.slowdown >= 1, f"clock.slowdown must be at least 1, found {t.slowdown}")
    require(t.jitter >= 0, f"clock.jitter must be 0 (every turn alike) or more, found {t.jitter}")


def _check_class_weights(c: Config) -> None:
    """Under example-level DP a weight may not depend on records that nobody's clip and noise have covered."""
    weights = c.train.class_weights
    require(
        weights == "none" or c.model.task == "classification",
        f"train.class_weights weighs labels, {c.model.task} has none; leave it out",
    )
    require(
        weights != "balanced" or c.privacy.unit != "example",
        'train.class_weights = "balanced" counts a client\'s labels, which the clip and the noise of single records do '
        "not cover; give public constants, train.class_weights = [1.0, 3.0] say",
    )
    if not isinstance(weights, str):
        require(
            all(w > 0 for w in weights) and len(weights) > 1,
            f"train.class_weights has one number above 0 for each class, found {list(weights)}",
        )
