"""Where kept views would not be what an audit takes them for: updates of the model kept beside them, coordinate by coordinate."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import Config


def check_views(c: Config) -> None:
    """Raises ConfigError where `tracking.keep_views` would keep something else than updates of the round's model."""
    k = c.tracking.keep_views
    require(k >= 0, f"tracking.keep_views must be 0 (none) or a number of rounds, found {k}")
    if k == 0:
        return
    from securefed.registry import ALGORITHMS, find_class, load, make_compression

    algorithm = find_class("algorithm", c.algorithm.name, ALGORITHMS)
    buffered = issubclass(algorithm, load("securefed.algorithms.fedbuff:FedBuff"))
    by_products = issubclass(algorithm, load("securefed.algorithms.products:ByProducts"))
    asked = f"tracking.keep_views={k} keeps updates of one model for an audit, and"
    require(
        not c.distills,
        f"{asked} the server of algorithm distill sees tables of answers of clients' own models; set tracking.keep_views = 0 "
        "(what answers tell is measured by securefed_attacks.answer_membership)",
    )
    require(
        not buffered,
        f"{asked} a buffer of fedbuff holds updates of several older models, scaled by their staleness; set "
        'tracking.keep_views = 0, or audit a synchronous round (algorithm = "fedavg")',
    )
    require(
        not c.model.ranks,
        f"{asked} under model.ranks each client starts from a slice of it; set tracking.keep_views = 0, or leave ranks out",
    )
    require(
        not (by_products and c.algorithm.options.get("products")),
        f"{asked} with products = true a client sends by how much B A changed, which is no change of a tensor that it trained; set "
        "tracking.keep_views = 0, or leave products out",
    )
    require(
        c.compression is None or not make_compression(c.compression).linear,
        f"{asked} compression {'' if c.compression is None else c.compression.name} sends other numbers than its coordinates; "
        'set tracking.keep_views = 0, use compression = "top_k" or "quantized", or leave compression out',
    )
