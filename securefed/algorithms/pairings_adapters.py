"""The rows of adapters beyond LoRA, of ways to join unlike ranks, and of compressions; and what ranks ask of a job.

A compression goes with every protection exactly where its type is `Linear`.
"""

from __future__ import annotations

from securefed.algorithms.pairing import Row
from securefed.config.require import require
from securefed.config.schema import Config

LORA = ("lora", "rolora", "ffa")

_READS = (
    'multiplies each client\'s own B and A, which a sum hides; use protection = "plain", or algorithm = "slices", '
    '"hetlora", or "flora" with products = true, which need a sum only'
)
_PRODUCT = (
    'reads the mean of products B A, which a sum of factors does not hold; use algorithm = { name = "%s", products = true } '
    'and model.merged = true (clients send out x in numbers for each matrix), or protection = "plain", or algorithm = '
    '"slices" or "hetlora"'
)
_NO_BOUND = (
    "multiplies updates that the noise at client level does not cover, and no sensitivity of the product is proved; use "
    'privacy.unit = "example" (noised before it is sent), products = true with "flexlora" or "flora", or algorithm = "slices"'
)
_FACTORS = 'joins pairs of LoRA factors; set model.adapter = "lora"'
_LINEAR_FACTORS = 'cuts LoRA factors to a rank; set model.adapter = "lora", "rolora" or "ffa"'
_CODED = (
    "is each client's own coding, and a sum adds messages that nobody has read; use a linear one (random_k, "
    'count_sketch, low_rank), or protection = "plain"'
)
TANGENT_ALGORITHMS = (
    "adapter tangent begins a second head where the first ended, for all clients in the same round; use algorithm = "
    '"fedavg", "fedprox" or "fedsgd", or model.adapter = "head"'
)
_EXACT = {"unit": _NO_BOUND, "adapter": _FACTORS}


def _exact(sent: str, hidden: str = _READS) -> Row:
    return Row(
        "algorithm",
        sent,
        protections=("plain",),
        units=("none", "example"),
        adapters=("lora",),
        refusals={**_EXACT, "protection": hidden},
    )


_PRODUCTS = Row(
    "algorithm",
    "the change of the product B A of its factors",
    adapters=("lora",),
    refusals={"adapter": _FACTORS},
)

ROWS: dict[str, Row] = {
    "prompt": Row("adapter", "the virtual tokens' embeddings, and the head"),
    "prefix": Row("adapter", "keys and values of the virtual tokens, and the head"),
    "ia3": Row("adapter", "the scales, and the head"),
    "tangent": Row(
        "adapter",
        "its update of the head, which reads tangents too",
        algorithms=("fedavg", "fedprox", "fedsgd"),
        refusals={"algorithm": TANGENT_ALGORITHMS},
    ),
    "hetlora": Row(
        "algorithm",
        "its slice of the factors, padded with zeros",
        adapters=LORA,
        refusals={"adapter": _LINEAR_FACTORS},
    ),
    "slices": Row(
        "algorithm",
        "its slice of the factors, padded with zeros",
        adapters=LORA,
        refusals={"adapter": _LINEAR_FACTORS},
    ),
    "flexlora": _exact("its slice of A and B", _PRODUCT % "flexlora"),
    "flexlora, products": _PRODUCTS,
    "flora": _exact("its slice of A and B", _PRODUCT % "flora"),
    "flora, products": _PRODUCTS,
    "fedex": _exact("its slice of A and B"),
    "random_k": Row("compression", "k coordinates that a public seed draws"),
    "count_sketch": Row("compression", "a sketch, the same linear map for all"),
    "low_rank": Row("compression", "each matrix times a thin public basis"),
    "top_k": Row(
        "compression",
        "its k largest coordinates and their places",
        protections=("plain",),
        refusals={"protection": _CODED},
    ),
    "quantized": Row(
        "compression", "a few bits a coordinate", protections=("plain",), refusals={"protection": _CODED}
    ),
}
"""Name -> its row; an algorithm with `products = true` has one of its own."""


def check_ranks(c: Config) -> None:
    """Raises ConfigError where ranks, merged base weights and the algorithm do not fit each other."""
    from securefed.algorithms.ranks import Ranked
    from securefed.registry import ALGORITHMS, make, make_aggregator

    algorithm = make("algorithm", c.algorithm, ALGORITHMS)
    m, name = c.model, c.algorithm.name
    ranked = isinstance(algorithm, Ranked)
    reads = ranked and algorithm.needs_updates
    products = bool(getattr(algorithm, "products", False))
    require(
        not m.ranks or ranked,
        f"model.ranks gives clients unlike adapters, and algorithm {name} averages them as if they were alike; set "
        'algorithm = "slices", "hetlora", "flexlora", "flora" or "fedex", or leave ranks out',
    )
    low, high = min(m.ranks, default=1), max(m.ranks, default=1)
    require(low >= 1, f"model.ranks must be at least 1 each, found {low}")
    require(
        not m.ranks or high <= m.rank,
        f"model.ranks holds {high}, above the global adapter's model.rank={m.rank}; raise model.rank or lower it",
    )
    require(
        not m.merged or products or (ranked and algorithm.merges),
        f'model.merged sends base weights that algorithm {name} never changes; leave it out, or use algorithm = "flora" or "fedex"',
    )
    require(
        m.merged or not products,
        f"algorithm {name} with products = true sends B A in the place of base weights; set model.merged = true",
    )
    require(
        m.merged or not (ranked and algorithm.merges),
        f"algorithm {name} adds to the base weights, so they must travel; set model.merged = true",
    )
    if not ranked:
        return
    own, steps = c.server, type(algorithm).join is Ranked.join
    require(
        steps or (own.optimizer == "fedavg" and own.learning_rate == 1),
        f"algorithm {name} computes the next adapters from the clients' own, so server.optimizer and server.learning_rate would "
        "step the head alone; leave them out, and give the head its own by server.head_optimizer and head_learning_rate",
    )
    require(
        steps or own.schedule == "constant" or own.head_optimizer is not None,
        f'server.schedule = "{own.schedule}" would lower the head\'s rate alone, algorithm {name} computes the next adapters from '
        "the clients' own; leave it out, or set server.head_optimizer",
    )
    require(
        getattr(algorithm, "prune", 1.0) == 1
        or (c.protection.name == "plain" and c.privacy.unit != "client" and c.compression is None),
        f"algorithm {name} with prune < 1 lets a client's records choose its rank, which everybody who adds must know and no sum "
        'or client-level noise covers; use protection = "plain" without compression at unit "none" or "example", or prune = 1',
    )
    require(
        products or make_aggregator(c.aggregator).needs == "sum",
        f"aggregator {c.aggregator.name} compares updates that hold unlike coordinates under algorithm {name}; use "
        'aggregator = "mean", or "flexlora" or "flora" with products = true',
    )
    require(
        not reads or c.protection.name == "plain",
        f'algorithm {name} with weighting = "sparsity" reads every update; use protection = "plain" or weighting = "given"',
    )
    require(
        not reads or m.adapter == "lora",
        f"algorithm {name} weighs clients by the norm of B A, and adapter {m.adapter} never sends both in one round; "
        'set model.adapter = "lora", or weighting = "given"',
    )
    require(
        not reads or c.privacy.unit != "client",
        f"algorithm {name} weighs clients by norms that client-level noise does not cover; set weighting = "
        '"given", or privacy.unit = "example"',
    )
    require(
        not m.ranks or c.protection.name == "plain" or c.private or c.weights == "equal",
        f"protection {c.protection.name} hides the clients' weights, and algorithm {name} must know which part of them "
        'holds a coordinate; set weights = "equal"',
    )
    require(
        not reads or c.compression is None or ROWS[c.compression.name].protections == ("plain",)
        if c.compression is not None and c.compression.name in ROWS
        else not reads or c.compression is None,
        f"algorithm {name} multiplies whole factors, and this compression sends other coordinates; use "
        'compression = "top_k" or "quantized", or leave it out',
    )
