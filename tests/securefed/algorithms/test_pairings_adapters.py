"""The table of adapters, ranks and compressions: docs show it, types agree with it, and jobs are held to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from securefed.algorithms.pairing import ADAPTERS, PROTECTIONS, UNITS
from securefed.algorithms.pairings import PAIRINGS as WHOLE
from securefed.algorithms.pairings_adapters import LORA
from securefed.algorithms.pairings_adapters import ROWS as PAIRINGS
from securefed.config import Component, load_config
from securefed.errors import ConfigError
from securefed.registry import COMPRESSIONS, make_compression

DOCS = Path(__file__).parents[3] / "docs" / "adapters.md"
BASE: dict[str, Any] = {"train": {"steps": 1}, "weights": "equal", "data": {"clients": 12}}
PROTECTED = {
    "plain": {},
    "masking": {"protection.name": "masking"},
    "grouped": {"protection.name": "grouped", "protection.size": 4},
    "ckks": {"protection.name": "ckks"},
}
UNIT: dict[str, dict[str, Any]] = {
    "none": {},
    "example": {"privacy.unit": "example", "privacy.epsilon": 8.0},
    "client": {"privacy.unit": "client", "privacy.epsilon": 8.0, "privacy.delta": 1e-3},
}


def job(name: str) -> dict[str, Any]:
    kind = PAIRINGS[name].kind
    if kind == "adapter":
        return {"model.adapter": name}
    if kind == "compression":
        return {"compression.name": name, "model.adapter": "lora"}
    name, _, products = name.partition(", ")
    ranked = {"algorithm.name": name, "model.adapter": "lora", "model.ranks": [2, 8]}
    if products:
        return {**ranked, "algorithm.products": True, "model.merged": True}
    return {**ranked, "model.merged": True} if name in ("flora", "fedex") else ranked


def test_the_page_shows_the_table_in_code() -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        found = re.fullmatch(r"`([\w, ]+)`", cells[0])
        if found and len(cells) == 6:
            rows[found[1]] = tuple(cells[1:])
    assert set(rows) == set(WHOLE)
    for name, row in WHOLE.items():
        expected = (
            row.kind,
            row.sent,
            "all" if row.protections == PROTECTIONS else ", ".join(row.protections),
            "all" if row.units == UNITS else ", ".join(row.units),
            "all" if row.adapters == ADAPTERS else ", ".join(row.adapters),
        )
        assert rows[name] == expected, name


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_compression_is_for_every_protection_exactly_where_its_type_is_linear(name: str) -> None:
    linear = make_compression(Component(name)).linear
    assert (PAIRINGS[name].protections == PROTECTIONS) == linear


@pytest.mark.parametrize("name", PAIRINGS)
@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("unit", ["none", "example"])
def test_jobs_are_held_to_the_table(name: str, protection: str, unit: str) -> None:
    row = PAIRINGS[name]
    wanted = {**job(name), **PROTECTED[protection], **UNIT[unit]}
    if protection in row.protections and unit in row.units:
        load_config(BASE, wanted)
        return
    with pytest.raises(ConfigError, match=r"; (use|set|leave)|; use a linear one"):
        load_config(BASE, wanted)


@pytest.mark.parametrize("name", PAIRINGS)
def test_client_level_noise_is_held_to_the_table(name: str) -> None:
    wanted = {**job(name), **UNIT["client"]}
    if "client" in PAIRINGS[name].units:
        load_config(BASE, wanted)
        return
    with pytest.raises(
        ConfigError, match=r'no sensitivity of the product is proved; use privacy\.unit = "example"'
    ):
        load_config(BASE, wanted)


@pytest.mark.parametrize("name", [n for n, row in PAIRINGS.items() if row.adapters == LORA])
def test_a_cut_of_factors_needs_factors(name: str) -> None:
    for adapter in LORA:
        load_config(BASE, {**job(name), "model.adapter": adapter})
    with pytest.raises(ConfigError, match=r"set model\.adapter"):
        load_config(BASE, {**job(name), "model.adapter": "ia3"})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"algorithm.name": "slices", "model.adapter": "lora", "model.ranks": [16]},
            "raise model.rank or lower it",
        ),
        ({"algorithm.name": "slices", "model.adapter": "lora", "model.ranks": [0]}, "at least 1 each"),
        ({"model.adapter": "lora", "model.ranks": [2, 4]}, 'set algorithm = "slices"'),
        ({"model.adapter": "lora", "model.merged": True}, 'use algorithm = "flora" or "fedex"'),
        ({"algorithm.name": "flora", "model.adapter": "lora"}, "set model.merged = true"),
        (
            {"algorithm.name": "slices", "model.adapter": "lora", "aggregator.name": "median"},
            'use aggregator = "mean"',
        ),
        (
            {**job("slices"), "protection.name": "masking", "weights": "size"},
            'set weights = "equal"',
        ),
        (
            {**job("hetlora"), "algorithm.weighting": "sparsity", "protection.name": "masking"},
            'weighting = "given"',
        ),
        ({**job("hetlora"), "algorithm.weighting": "sparsity", **UNIT["client"]}, '"given"'),
        *(
            (
                {**job("hetlora"), "algorithm.weighting": "sparsity", "model.adapter": adapter},
                "never sends both in one round",
            )
            for adapter in ("rolora", "ffa")
        ),
        *(
            ({**job(name), **server}, "head_optimizer")
            for name in ("flexlora", "flora", "fedex")
            for server in (
                {"server.learning_rate": 0.5},
                {"server.optimizer": "fedadam"},
                {"server.schedule": "linear"},
            )
        ),
        ({**job("flexlora"), "compression.name": "random_k"}, 'compression = "top_k" or "quantized"'),
        ({"compression.name": "count_sketch", "aggregator.name": "median"}, 'compression = "random_k"'),
        ({"compression.name": "random_k", "model.head_centre": True}, "leave head_centre out"),
        (
            {"compression.name": "random_k", "attack.name": "sign_flip", "attack.f": 1},
            "simulate attack.poison",
        ),
        ({"compression.name": "top_k", "attack.name": "nan", "attack.f": 1}, "a finite attack as sign_flip"),
        ({"compression.name": "random_kk"}, "did you mean random_k"),
        ({"compression.name": "random_k", "compression.share": 0.0}, r"in \(0, 1\]"),
        ({"compression.name": "securefed.algorithms.fedavg:FedAvg"}, "neither Linear nor Coding"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(BASE, wanted)


@pytest.mark.parametrize("name", ["slices", "hetlora", "flexlora", "flora", "fedex"])
def test_a_server_step_goes_with_what_it_moves(name: str) -> None:
    """Sums are stepped with, joined products are not, and the head always is."""
    head = {
        "server.head_optimizer": "fedadam",
        "server.head_learning_rate": 0.01,
        "server.schedule": "linear",
    }
    load_config(BASE, {**job(name), **head})
    if name in ("slices", "hetlora"):
        load_config(BASE, {**job(name), "server.optimizer": "fedadam", "server.learning_rate": 0.01})
