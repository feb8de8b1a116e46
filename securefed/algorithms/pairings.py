"""Which algorithm, adapter or compression goes with which protection, DP unit, noise and adapter: one table, enforced on every job.

`docs/adapters.md` shows it to people. A row lists what is allowed; whatever it leaves out has
a sentence in `refusals` that names the way out. A part of somebody's own ("package.module:Class") has no row.
Why a unit is allowed or not is decision 7: under example-level DP everything that trains on the shard is inside a
clipped and noised vector, local parts included; under client-level DP a whole client is hidden, so what stays
with the client may be trained freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from securefed.algorithms.pairing import ADAPTERS, NOISES, PROTECTIONS, UNITS, Row
from securefed.algorithms.pairings_adapters import ROWS, TANGENT_ALGORITHMS, check_ranks
from securefed.config.schema import Config
from securefed.errors import ConfigError
from securefed.registry import algorithm_name

_WHOLE = "its update of what the adapter shares"
_NO_HEAD = (
    'adapter "head" trains the head alone, and {0} keeps the head at home, so nothing would be sent; choose a LoRA '
    'adapter or "full", or algorithm = "ditto"'
)
_MIXED = (
    'adapter "rolora" sends A in one round and B in the next, and a buffer of fedbuff holds updates of several '
    'rounds; use model.adapter = "ffa" (B alone) or "lora"'
)
_SOFT = ("prompt", "prefix", "ia3")
_NOT_FEDSA = ("rolora", "ffa", "lora", "full", "head", *_SOFT)
_TWO_HOMES = (
    'adapter "fedsa" keeps B at home, and {0} keeps a part of its own choice; use model.adapter = "lora" or "ffa" with '
    '{0}, or "fedsa" with algorithm = "fedavg"'
)
_NO_TANGENT = {"adapter=tangent": TANGENT_ALGORITHMS}
_FIXED_GROUPS = (
    'protection "grouped" needs everybody in every round, and a buffer of fedbuff holds the next few that are ready; '
    'use protection = "masking"'
)

PAIRINGS: dict[str, Row] = {
    "fedavg": Row("algorithm", _WHOLE),
    "fedprox": Row("algorithm", _WHOLE),
    "fedsgd": Row("algorithm", "the sum of its records' clipped gradients"),  # `config.noise` has its checks
    "fedbuff": Row(
        "algorithm",
        _WHOLE + ", scaled by its staleness",
        protections=("plain", "masking", "ckks"),
        adapters=("ffa", "lora", "fedsa", "full", "head", *_SOFT),
        refusals={"protection=grouped": _FIXED_GROUPS, "adapter=rolora": _MIXED, **_NO_TANGENT},
    ),
    "ditto": Row(
        "algorithm",
        _WHOLE,
        kept="a whole model of its own",
        adapters=_NOT_FEDSA,
        refusals={"adapter=fedsa": _TWO_HOMES.format("ditto"), **_NO_TANGENT},
    ),
    "fedper": Row(
        "algorithm",
        "its update without the head",
        kept="the head",
        adapters=("rolora", "ffa", "lora", "fedsa", "full", *_SOFT),
        refusals={"adapter=head": _NO_HEAD.format("fedper"), **_NO_TANGENT},
    ),
    "fedrep": Row(
        "algorithm",
        "its update without the head, which is trained first",
        kept="the head",
        adapters=("rolora", "ffa", "lora", "full", *_SOFT),
        refusals={
            "adapter=head": _NO_HEAD.format("fedrep"),
            "adapter=fedsa": _TWO_HOMES.format("fedrep"),
            **_NO_TANGENT,
        },
    ),
    "finetune": Row(
        "algorithm",
        _WHOLE + ", and nothing in the last rounds",
        kept="its tuned model",
        adapters=_NOT_FEDSA,
        refusals={"adapter=fedsa": _TWO_HOMES.format("finetune"), **_NO_TANGENT},
    ),
    "distill": Row("algorithm", "its answers on public records"),  # `config.distill` has its checks
    "fedsa": Row(
        "adapter",
        "its update of A and of the head",
        kept="B",
        algorithms=("fedavg", "fedprox", "fedbuff", "fedper"),
        refusals={
            "algorithm=fedsgd": (
                "fedsa trains B at home, outside the one noised sum; use rolora, ffa, lora or head with algorithm fedsgd"
            ),
            **{f"algorithm={name}": _TWO_HOMES.format(name) for name in ("ditto", "fedrep", "finetune")},
            "algorithm": 'fedsa keeps B at home, which only a mean of updates allows; use algorithm = "fedavg", "fedprox", '
            '"fedbuff" or "fedper", or model.adapter = "lora"',
        },
    ),
    **ROWS,
}
"""Name -> its row. Names of algorithms, adapters and compressions do not meet."""


def check_pairings(config: Config) -> None:
    """Raises ConfigError, in the row's own words, for a pair that the table leaves out."""
    for name, row in rows_of(config):
        for key, value, allowed in _asked(config, row):
            if value not in allowed:
                raise ConfigError(f"{row.kind} {name}: {row.refusal(key, value)} (found {key} {value})")
    check_ranks(config)


def rows_of(config: Config) -> Iterator[tuple[str, Row]]:
    """The rows that speak about this job: its algorithm's, its adapter's and its compression's, where they have one."""
    compression = "" if config.compression is None else config.compression.name
    algorithm = algorithm_name(config.algorithm.name)
    if config.algorithm.options.get("products") and f"{algorithm}, products" in PAIRINGS:
        algorithm = f"{algorithm}, products"
    for name in (algorithm, config.model.adapter, compression):
        if name in PAIRINGS:
            yield name, PAIRINGS[name]


def _asked(config: Config, row: Row) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """(field, what the job says, what the row allows); names that are not built in are let through."""
    algorithm = algorithm_name(config.algorithm.name)
    known = tuple(name for name, other in PAIRINGS.items() if other.kind == "algorithm")
    asked = (
        ("protection", config.protection.name, PROTECTIONS, row.protections),
        ("unit", config.privacy.unit, UNITS, row.units),
        ("noise", config.privacy.noise, NOISES, row.noises),
        ("adapter", config.model.adapter, ADAPTERS, row.adapters),
        ("algorithm", algorithm, known, known if row.algorithms is None else row.algorithms),
    )
    for key, value, names, allowed in asked:
        if value in names:
            yield key, value, allowed
