"""Verdicts: each of the three where it must be, and claims that speak of nothing are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from securefed.errors import ConfigError
from securefed_benchmarks.bench.claims import Claim, check_claims, choices_of, judge, load_claims
from securefed_benchmarks.bench.results import lines
from securefed_benchmarks.bench.store import Row
from securefed_benchmarks.bench.suite import SHIPPED, load_suite
from tests.benchmarks.bench.suites import row, write

OF = {"grid": "small", "defence": "mean", "attack": "none"}
SUITES = sorted(p.parent.name for p in SHIPPED.glob("*/suite.toml"))


def rows(values: list[float], **labels: Any) -> list[Row]:
    return [
        row(
            k,
            labels={"attack": "none", "defence": "mean", **labels},
            scores={"accuracy": v},
            key=f"{labels}{k}",
        )
        for k, v in enumerate(values)
    ]


def claim(**changed: Any) -> Claim:
    facts: dict[str, Any] = {
        "claim": "x",
        "source": "y",
        "score": "accuracy",
        "of": OF,
        "expected": 0.8,
        "tolerance": 0.05,
    }
    return Claim(**{**facts, **changed})


@pytest.mark.parametrize(
    ("values", "changed", "verdict"),
    [
        ([0.80, 0.81, 0.79, 0.80], {}, "reproduced"),
        ([0.60, 0.61, 0.59, 0.60], {}, "not reproduced"),
        ([0.80, 0.95, 0.65, 0.80], {}, "underpowered"),  # the mean is right, the interval says nothing
        ([0.80], {}, "underpowered"),
        ([0.95, 0.96, 0.94], {"direction": "at least"}, "reproduced"),
        ([0.60, 0.61, 0.59], {"direction": "at least"}, "not reproduced"),
        ([0.60, 0.61, 0.59], {"direction": "at most"}, "reproduced"),
        ([0.1, 0.1, 0.1], {"expected": 0.1, "tolerance": 0.0}, "reproduced"),  # no spread, on the edge
    ],
)
def test_a_verdict_is_about_the_whole_interval(
    values: list[float], changed: dict[str, Any], verdict: str
) -> None:
    assert judge(claim(**changed), lines(rows(values))).verdict == verdict


def test_what_was_not_played_is_underpowered_and_says_so() -> None:
    found = judge(claim(of={**OF, "defence": "median"}), lines(rows([0.8, 0.8])))
    assert found.verdict == "underpowered"
    assert "no result yet" in found.reason


def test_a_difference_is_paired_by_seed() -> None:
    luck = [0.1, 0.5, 0.3, 0.9]
    table = lines([*rows([v + 0.05 for v in luck], defence="median"), *rows(luck)])
    one = claim(of={**OF, "defence": "median"}, minus=OF, expected=0.05, tolerance=0.001)
    assert judge(one, table).verdict == "reproduced"


def test_the_worst_case_reads_every_attack() -> None:
    table = lines([*rows([0.9, 0.91, 0.9]), *rows([0.2, 0.21, 0.2], attack="alie")])
    one = claim(of={"grid": "small", "defence": "mean"}, worst_over="attack", direction="at least")
    assert judge(one, table).verdict == "not reproduced"


WORST = {"of": {"grid": "small", "defence": "mean"}, "worst_over": "attack"}
FACTS: dict[str, Any] = {
    "grids": [
        {"name": "small", "axes": {"attack": ["none", "alie"], "defence": ["mean", "median"], "f": [1, 2]}}
    ],
    "skipped": [],
}


def test_the_worst_case_has_no_verdict_before_every_attack_was_played() -> None:
    one = claim(**WORST, direction="at least")
    table = lines(rows([0.9, 0.91, 0.9]))
    found = judge(one, table, choices_of(one, FACTS))
    assert (found.verdict, found.estimate) == ("underpowered", None)
    assert "attack=alie" in found.reason
    labels = {"attack": "alie", "defence": "mean", "f": 2}
    for skipped, verdict in ((labels, "reproduced"), ({**labels, "defence": "median"}, "underpowered")):
        facts = {**FACTS, "skipped": [{"grid": "small", "labels": skipped, "reason": "cannot be"}]}
        assert judge(one, table, choices_of(one, facts)).verdict == verdict


def test_the_worst_of_what_an_attacker_wants_is_the_highest() -> None:
    table = lines([*rows([0.0, 0.01, 0.0]), *rows([0.9, 0.91, 0.9], attack="alie")])
    table = [replace(li, values={"attack_success": li.values["accuracy"]}) for li in table]
    one = claim(**WORST, score="attack_success", direction="at most", expected=0.1)
    assert judge(one, table).verdict == "not reproduced"


def test_a_worst_case_over_two_configurations_of_one_attack_is_no_verdict() -> None:
    table = lines([*rows([0.2, 0.2, 0.2]), *rows([0.9, 0.9, 0.9], defence="median")])
    found = judge(claim(of={"grid": "small"}, worst_over="attack", direction="at least"), table)
    assert (found.verdict, "several configurations" in found.reason) == ("underpowered", True)


def test_runs_that_failed_leave_a_claim_open() -> None:
    """Three of five ran out of time: the two that did not are no sample of five."""
    done = rows([0.8, 0.81, 0.8])
    lost = [replace(r, state="failed", scores={}, seed=k + 3, key=f"lost{k}") for k, r in enumerate(done[:2])]
    found = judge(claim(), lines([*done, *lost]))
    assert (found.verdict, "2 of its runs failed" in found.reason) == ("underpowered", True)
    elsewhere = [replace(r, labels={**r.labels, "attack": "alie"}) for r in lost]
    assert judge(claim(), lines([*done, *elsewhere])).verdict == "reproduced"


def test_a_side_that_means_two_configurations_is_no_verdict() -> None:
    table = lines([*rows([0.8, 0.8]), *rows([0.8, 0.8], attack="alie")])
    found = judge(claim(of={"grid": "small", "defence": "mean"}), table)
    assert (found.verdict, "2 configurations" in found.reason) == ("underpowered", True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[[claim]]\nclaim = "a"\n', "lacks source"),
        ('[[claim]]\nclame = "a"\n', "did you mean claim?"),
        ("[[claim]\n", "not valid TOML"),
        (
            '[[claim]]\nclaim="a"\nsource="b"\nscore="c"\nof={}\nexpected=1\ntolerance=0\ndirection="up"\n',
            "direction is one of",
        ),
        (
            '[[claim]]\nclaim="a"\nsource="b"\nscore="c"\nof={grid="g"}\nover={grid="g"}\nworst_over="attack"\n'
            "expected=1\ntolerance=0\n",
            "goes with minus alone",
        ),
    ],
)
def test_a_wrong_claim_is_one_line(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_claims(tmp_path / "claims.toml")
    assert wanted in str(refused.value)


def test_a_claim_about_what_the_suite_has_not_is_refused(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    check_claims([claim()], suite)
    for of in ({**OF, "grid": "other"}, {**OF, "defence": "bulyan"}):
        with pytest.raises(ConfigError, match=r"no grid|has no"):
            check_claims([claim(of=of)], suite)
    with pytest.raises(ConfigError, match="has no axis attac"):
        check_claims([claim(of={"grid": "small", "defence": "mean"}, worst_over="attac")], suite)


@pytest.mark.parametrize("name", SUITES)
def test_every_claim_that_ships_has_a_source_and_speaks_of_its_suite(name: str) -> None:
    suite = load_suite(name)
    claims = load_claims(suite.path.with_name("claims.toml"))
    assert claims
    check_claims(claims, suite)
    assert all(len(c.source) > 10 for c in claims)
