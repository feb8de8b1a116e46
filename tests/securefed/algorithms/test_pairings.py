"""The table of pairings: every value that a row leaves out has a sentence, and the config says it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from securefed.algorithms.pairing import ADAPTERS, NOISES, PROTECTIONS, UNITS, Row
from securefed.algorithms.pairings import PAIRINGS
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.registry import ALGORITHMS

ROOT = Path(__file__).parents[3]
TEXT: dict[str, Any] = {
    "rounds": 4,
    "data": {"clients": 8},
    "model": {"adapter": "lora"},
    "train": {"steps": 2},
}
BUFFER = {"name": "fedbuff", "concurrency": 8}
IN_TIME = {"clients_per_round": 4, "clock.seconds": 1.0}


def left_out(row: Row) -> set[str]:
    algorithms = {n for n, other in PAIRINGS.items() if other.kind == "algorithm"}
    named = {
        "protection": (PROTECTIONS, row.protections),
        "unit": (UNITS, row.units),
        "noise": (NOISES, row.noises),
        "adapter": (ADAPTERS, row.adapters),
        "algorithm": (algorithms, algorithms if row.algorithms is None else row.algorithms),
    }
    return {f"{k}={v}" for k, (names, allowed) in named.items() for v in set(names) - set(allowed)}


def test_every_algorithm_has_a_row() -> None:
    rows = {name for name, row in PAIRINGS.items() if row.kind == "algorithm"}
    assert set(ALGORITHMS) == {name.removesuffix(", products") for name in rows}


@pytest.mark.parametrize("name", sorted(PAIRINGS))
def test_every_pair_that_is_left_out_has_one_sentence_with_a_way_out(name: str) -> None:
    row = PAIRINGS[name]
    out = left_out(row)
    for pair in out:
        assert row.refusal(*pair.split("=")) in row.refusals.values()
    assert {key for key in row.refusals if "=" in key} <= out
    assert {key for key in row.refusals if "=" not in key} <= {pair.partition("=")[0] for pair in out}
    for sentence in row.refusals.values():
        assert "\n" not in sentence
        assert re.search(r"use |choose |set ", sentence), sentence


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"algorithm": "fedper", "model.adapter": "head"}, 'choose a LoRA adapter or "full"'),
        ({"algorithm": "fedrep", "model.adapter": "fedsa"}, 'model.adapter = "lora"'),
        ({"algorithm": "ditto", "model.adapter": "fedsa"}, 'algorithm = "fedavg"'),
        ({"algorithm": "finetune", "model.adapter": "fedsa"}, 'algorithm = "fedavg"'),
        ({"algorithm": BUFFER, **IN_TIME, "model.adapter": "rolora"}, 'model.adapter = "ffa"'),
        ({"algorithm": BUFFER, **IN_TIME, "protection": "grouped"}, 'protection = "masking"'),
        (
            {"algorithm": "securefed.algorithms.ditto:Ditto", "model.adapter": "fedsa"},
            "algorithm ditto: adapter",
        ),
    ],
)
def test_a_job_with_a_forbidden_pair_is_refused_in_the_tables_words(
    overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TEXT, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("algorithm", ["ditto", "fedper", "fedrep", "finetune", "fedprox"])
def test_personal_algorithms_go_with_both_units_and_with_masking(algorithm: str, unit: str) -> None:
    load_config(TEXT, {"algorithm": algorithm, "privacy.unit": unit, "privacy.epsilon": 3.0})
    load_config(TEXT, {"algorithm": algorithm, "protection": "masking"})


def test_fedsa_goes_with_client_level_dp_because_what_stays_with_a_client_is_not_released() -> None:
    load_config(TEXT, {"model.adapter": "fedsa", "privacy.unit": "client", "privacy.epsilon": 3.0})


def test_the_catalogue_has_a_row_for_every_algorithm() -> None:
    text = (ROOT / "securefed" / "algorithms" / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert set(ALGORITHMS) <= rows
    for name, path in ALGORITHMS.items():
        file = path.partition(":")[0].rpartition(".")[2] + ".py"
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert file in line
