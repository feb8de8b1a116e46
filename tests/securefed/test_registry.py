"""Names and paths become components; what is unknown is refused with the way out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from securefed.aggregation import Mean
from securefed.config import AttackConfig, Component
from securefed.errors import ConfigError
from securefed.protect.plain import Plain
from securefed.registry import (
    AGGREGATORS,
    ALGORITHMS,
    ENGINES,
    PROTECTIONS,
    find_class,
    make,
    make_aggregator,
    make_attack,
    make_protection,
)


def refusal(kind: str, component: Component, table: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        make(kind, component, table)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_gives_its_class_and_options_become_fields() -> None:
    assert make_aggregator(Component("mean")) == Mean()
    assert make_protection(Component("plain", {"keep_updates": False})) == Plain(keep_updates=False)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert "no protection named 'plian'; did you mean plain?" in refusal(
        "protection", Component("plian"), PROTECTIONS
    )


def test_a_name_near_to_nothing_lists_what_is_known_and_the_way_to_bring_your_own() -> None:
    message = refusal("protection", Component("quantum"), PROTECTIONS)
    assert "plain" in message
    assert "package.module:Class" in message


def test_a_rule_of_the_outer_package_is_found_by_name() -> None:
    import securefed_defenses

    assert find_class("aggregator", "mean", {}) is securefed_defenses.AGGREGATORS["mean"]


def test_a_rule_of_the_outer_package_counts_among_the_near_names() -> None:
    with pytest.raises(ConfigError, match="did you mean mean"):
        find_class("aggregator", "maen", {})


def test_the_core_works_where_the_outer_packages_are_not_installed() -> None:
    code = (
        "import sys; sys.modules['securefed_defenses'] = None\n"
        "from securefed.registry import *; from securefed.config import Component\n"
        "print(type(make_aggregator(Component('mean'))).__name__)\n"
        "try: make_aggregator(Component('krum'))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    assert ran.stdout.split() == ["Mean", "ConfigError"]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def test_a_path_gives_the_class_it_names() -> None:
    assert find_class("aggregator", "securefed.aggregation:Mean", AGGREGATORS) is Mean


@dataclass(frozen=True)
class Bare:
    """What somebody writes who has read that a rule is a function of vectors, and an attack too."""

    def __call__(self, rows: Any, f: int = 0) -> Any:
        return rows.mean(0)


def test_a_class_that_is_no_rule_or_no_attack_is_told_what_to_inherit_from() -> None:
    path = f"{__name__}:Bare"
    with pytest.raises(ConfigError, match=r"lacks needs, step; inherit from securefed_defenses\.Rule"):
        make_aggregator(Component(path))
    with pytest.raises(ConfigError, match=r"lacks knowledge; inherit from securefed_attacks\.Byzantine"):
        make_attack(AttackConfig(name=path, f=1), Component("mean"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package_here.rules:Krum", "cannot import"),
        ("securefed.aggregation:Nothing", "cannot import"),
        ("securefed.aggregation:aggregate", "not a class"),
        (":Mean", "cannot import"),
        ("securefed.aggregation:", "cannot import"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_by_name(path: str, words: str) -> None:
    message = refusal("aggregator", Component(path), AGGREGATORS)
    assert words in message
    assert path in message


def test_a_path_that_leads_nowhere_names_the_nearest_or_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_thing.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "did you mean 'Mean'?" in refusal("aggregator", Component("securefed.aggregation:Maen"), {})
    assert "beside the suite" in refusal("aggregator", Component("no_such_package_here.rules:Krum"), {})
    inside = refusal("aggregator", Component("own_thing:Krum"), {})
    assert "not_installed_anywhere" in inside
    assert "beside" not in inside  # the module was found; what it imports was not


def test_an_unknown_option_is_refused_with_the_nearest_or_with_all() -> None:
    assert "did you mean keep_updates" in refusal(
        "protection", Component("plain", {"keep_update": True}), PROTECTIONS
    )
    assert "it takes none" in refusal("aggregator", Component("mean", {"f": 2}), AGGREGATORS)


@pytest.mark.parametrize(
    "table",
    [PROTECTIONS, AGGREGATORS, ALGORITHMS, ENGINES],
    ids=["protection", "aggregator", "algorithm", "engine"],
)
def test_every_name_that_is_listed_leads_to_a_class(table: dict[str, str]) -> None:
    for name, path in table.items():
        found = find_class("component", name, table)
        assert f"{found.__module__}:{found.__name__}" == path
