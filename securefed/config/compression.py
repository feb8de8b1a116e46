"""What a job's compression must fit: who can carry it, and what it would otherwise hide from a rule."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import Config

SYNCHRONOUS = ("fedavg", "fedprox", "hetlora", "slices", "flexlora", "flora", "fedex")
"""Algorithms whose clients send one update a round, of a global model that all of them start from."""


def check_compression(c: Config) -> None:
    """Raises ConfigError where what is sent could not be summed, compared or bounded."""
    if c.compression is None:
        return
    from securefed.registry import (
        ALGORITHMS,
        algorithm_name,
        make_aggregator,
        make_attack,
        make_compression,
        make_protection,
    )

    name, found = c.compression.name, make_compression(c.compression)
    protection, rule = make_protection(c.protection), make_aggregator(c.aggregator)
    algorithm = algorithm_name(c.algorithm.name)
    require(
        found.linear or c.protection.name == "plain",  # also where the class is somebody's own
        f"compression {name} is each client's own coding, and protection {c.protection.name} adds messages that nobody "
        'has read; use a linear one (compression = "random_k", "count_sketch" or "low_rank"), or protection = "plain"',
    )
    require(
        not getattr(protection, "partial", False),
        f"protection {c.protection.name} with these options picks coordinates of the whole update, compression {name} sends "
        "others; encrypt all of them, or leave compression out",
    )
    require(
        not c.fedsgd,
        f"algorithm fedsgd sends sums of clipped gradients, whose bound is per record and per coordinate sent; leave "
        f'compression {name} out, or use algorithm = "fedavg"',
    )
    require(
        algorithm in SYNCHRONOUS or algorithm not in ALGORITHMS,  # somebody's own answers for itself
        f"compression {name} is for one update of one round from each client, algorithm {algorithm} sends something "
        'else; leave compression out, or use algorithm = "fedavg"',
    )
    require(
        found.adds_rows or rule.needs == "sum",
        f"compression {name} is read after the sum only, aggregator {c.aggregator.name} compares clients; use "
        'aggregator = "mean" or compression = "random_k"',
    )
    require(
        make_attack(c.attack, c.aggregator) is None or not found.linear,
        f"attack.name = {c.attack.name} makes rows of whole updates, compression {name} sends other coordinates; simulate "
        'attack.poison, or compression = "top_k" or "quantized"',
    )
    require(
        getattr(make_attack(c.attack, c.aggregator), "finite", True),
        f"attack {c.attack.name} sends rows that are not finite, and compression {name} has no code for such a row; use "
        "a finite attack as sign_flip, or leave compression out",
    )
    require(
        not c.model.head_centre,
        f"model.head_centre is a mean that is sent once, and compression {name} would send a part of it; leave "
        "head_centre out",
    )
