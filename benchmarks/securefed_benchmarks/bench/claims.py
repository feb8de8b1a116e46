"""Named claims with their sources, and what the results say of each: reproduced, not reproduced, underpowered.

A claim is a region of values: `expected` give or take `tolerance`, or at least / at most `expected` with
`tolerance` towards the other side. It is reproduced if the whole 95 % interval lies in the region, not
reproduced if none of it does, underpowered where the interval straddles an edge or there is none: then
more seeds decide, and nobody may read a verdict into the mean. A claim about the worst of several choices has no
verdict before all of them were played, and no claim has one while a run of it failed.
"""

from __future__ import annotations

import fnmatch
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from securefed.errors import ConfigError
from securefed_benchmarks.bench.estimates import BySeed, Estimate, mean_interval, paired, worst
from securefed_benchmarks.bench.results import SHARES, WANTED_HIGH, Line
from securefed_benchmarks.bench.suite import Suite, refuse_unknown

Verdict = Literal["reproduced", "not reproduced", "underpowered"]
KEYS = ("claim", "source", "score", "of", "minus", "over", "worst_over", "expected", "tolerance", "direction")
DIRECTIONS = ("equal", "at least", "at most")


@dataclass(frozen=True)
class Claim:
    """What somebody says, in numbers.

    Attributes:
        of: grid and axis -> label, the configuration. minus, over: another, for a paired difference or ratio.
        worst_over: an axis left out of `of`, over whose choices the worst mean is taken: the lowest of an accuracy,
            the highest of what an attacker wants.
        expected, tolerance: in the score's own unit, shares between 0 and 1.
    """

    claim: str
    source: str
    score: str
    of: Mapping[str, Any]
    expected: float
    tolerance: float
    direction: str = "equal"
    minus: Mapping[str, Any] = field(default_factory=dict)
    over: Mapping[str, Any] = field(default_factory=dict)
    worst_over: str = ""

    @property
    def region(self) -> tuple[float, float]:
        """Values at which the claim holds."""
        low = -math.inf if self.direction == "at most" else self.expected - self.tolerance
        high = math.inf if self.direction == "at least" else self.expected + self.tolerance
        return low, high

    @property
    def asked(self) -> str:
        """The region in words."""
        sign = {"equal": "", "at least": "≥ ", "at most": "≤ "}[self.direction]
        give = f", give or take {self.unit * self.tolerance:g}" if self.tolerance else ""
        return f"{sign}{self.unit * self.expected:g}{give}"

    @property
    def unit(self) -> float:
        """Shares are told in percent, their differences in points."""
        return 100.0 if self.score in SHARES and not self.over else 1.0

    @property
    def unit_name(self) -> str:
        """The unit in words, behind the score's name."""
        if self.over:
            return ", ratio"
        return "" if self.unit == 1 else ", difference in points" if self.minus else ", %"


@dataclass(frozen=True)
class Judged:
    """A claim and what the results say of it."""

    claim: Claim
    verdict: Verdict
    reason: str
    estimate: Estimate | None


def load_claims(path: Path) -> list[Claim]:
    """The claims of a file; none where there is no file.

    Raises:
        ConfigError: no TOML, an unknown key, or a claim without what it needs.
    """
    if not path.is_file():
        return []
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    refuse_unknown(tree, ("claim",), str(path))
    return [_claim(one, path) for one in tree.get("claim", [])]


def _claim(tree: Mapping[str, Any], path: Path) -> Claim:
    where = f"{path}, claim {tree.get('claim', '?')!r}"
    refuse_unknown(tree, KEYS, where)
    missing = [k for k in ("claim", "source", "score", "of", "expected", "tolerance") if k not in tree]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    found = Claim(**tree)
    if found.direction not in DIRECTIONS:
        raise ConfigError(f"{where}: direction is one of {', '.join(DIRECTIONS)}, found {found.direction!r}")
    if found.tolerance < 0 or (found.minus and found.over):
        raise ConfigError(f"{where}: tolerance is 0 or more, and minus and over exclude each other")
    if found.worst_over and (found.over or found.worst_over in found.of):
        raise ConfigError(f"{where}: worst_over is an axis left out of `of`, and goes with minus alone")
    return found


def check_claims(claims: Sequence[Claim], suite: Suite) -> None:
    """Raises ConfigError where a claim speaks of a grid, axis or label that the suite has not."""
    grids = {g.name: {a: [str(c.label) for c in cs] for a, cs in g.axes.items()} for g in suite.grids}
    for claim in claims:
        for side in (claim.of, claim.minus, claim.over):
            axes = grids.get(str(side.get("grid", ""))) if side else {}
            if axes is None:
                raise ConfigError(f"claim {claim.claim!r}: no grid {side.get('grid')!r} in {suite.name}")
            for axis, label in side.items():
                if axis != "grid" and not fnmatch.filter(axes.get(axis, []), str(label)):
                    raise ConfigError(f"claim {claim.claim!r}: grid {side['grid']} has no {axis}={label}")
        if claim.worst_over and claim.worst_over not in grids[str(claim.of.get("grid"))]:
            raise ConfigError(
                f"claim {claim.claim!r}: grid {claim.of['grid']} has no axis {claim.worst_over}"
            )


def sides_of(claims: Sequence[Claim], suite: Suite) -> list[Mapping[str, Any]]:
    """The configurations that the claims speak of, for a bench of nothing else.

    Raises:
        ConfigError: the suite has no claim.
    """
    if not claims:
        raise ConfigError(f"{suite.name} has no claims.toml beside it; leave --claims out")
    return [side for claim in claims for side in (claim.of, claim.minus, claim.over) if side]


def choices_of(claim: Claim, facts: Mapping[str, Any]) -> frozenset[str]:
    """The choices that a worst case must have seen: all of its axis but those that cannot be; none without one.

    Args:
        facts: of the suite, as a bench keeps them: grids with their axes, and what was skipped.
    """

    def meant(grid: str, labels: Mapping[str, Any]) -> bool:
        named = {"grid": grid, **labels}
        return all(fnmatch.fnmatchcase(str(named.get(a)), str(label)) for a, label in claim.of.items())

    if not claim.worst_over:
        return frozenset()
    axis, name = claim.worst_over, str(claim.of.get("grid"))
    everything = {str(v) for g in facts["grids"] if g["name"] == name for v in g["axes"].get(axis, ())}
    skipped = [s["labels"] for s in facts["skipped"] if meant(str(s["grid"]), s["labels"])]
    return frozenset(everything - {str(labels.get(axis)) for labels in skipped})


def judge(claim: Claim, table: Sequence[Line], choices: Collection[str] = ()) -> Judged:
    """The verdict, and the reason in words.

    Args:
        choices: that a worst case must have seen (`choices_of`).
    """
    try:
        found = _estimate(claim, table, choices)
    except ValueError as error:
        return Judged(claim, "underpowered", str(error), None)
    low, high = claim.region
    if found.how == "none":
        return Judged(claim, "underpowered", found.few or "a value is not finite", found)
    if failed := _failed(claim, table):
        return Judged(
            claim, "underpowered", f"{failed} of its runs failed, and the others may not be like them", found
        )
    edge = 1e-9 * max(1.0, abs(found.mean))  # an interval of no width may lie on an edge of the region
    if low - edge <= found.low and found.high <= high + edge:
        return Judged(claim, "reproduced", "the whole interval lies where the claim says", found)
    if found.high < low or found.low > high:
        return Judged(claim, "not reproduced", "no part of the interval lies where the claim says", found)
    return Judged(
        claim, "underpowered", f"the interval of {found.seeds} seeds reaches beyond; play more seeds", found
    )


def _failed(claim: Claim, table: Sequence[Line]) -> int:
    """Runs of either side that ended without a result; a model that diverged has one."""
    sides = [side for side in (claim.of, claim.minus, claim.over) if side]
    return sum(line.failed for line in table if any(_meant(side, line) for side in sides))


def _meant(side: Mapping[str, Any], line: Line) -> bool:
    named = {"grid": line.grid, **line.chosen}
    return all(fnmatch.fnmatchcase(str(named.get(axis)), str(label)) for axis, label in side.items())


def _estimate(claim: Claim, table: Sequence[Line], choices: Collection[str]) -> Estimate:
    """Raises ValueError where nothing, or not all that is needed, was measured yet."""
    if claim.worst_over:
        played = _by_attack(claim, table)
        if lacking := sorted(set(choices) - played.keys()):
            raise ValueError(f"no result yet for {claim.worst_over}={lacking[0]}, which may be the worst")
        return worst(played, lowest=claim.score in WANTED_HIGH)[1]
    of = _values(claim.of, claim.score, table)
    if claim.minus:
        return paired(of, _values(claim.minus, claim.score, table))
    if claim.over:
        return paired(of, _values(claim.over, claim.score, table), "ratio")
    return mean_interval([of[s] for s in sorted(of)])


def _by_attack(claim: Claim, table: Sequence[Line]) -> dict[str, BySeed]:
    other = _values(claim.minus, claim.score, table) if claim.minus else None
    found: dict[str, BySeed] = {}
    for line in _matching(claim.of, claim.score, table):
        choice, values = str(line.chosen.get(claim.worst_over)), line.values[claim.score]
        if choice in found:
            raise ValueError(f"{claim.worst_over}={choice} means several configurations; say one of them")
        found[choice] = (
            values if other is None else {s: v - other[s] for s, v in values.items() if s in other}
        )
    return found


def _values(side: Mapping[str, Any], score: str, table: Sequence[Line]) -> BySeed:
    found = _matching(side, score, table)
    if len(found) > 1:
        named = ", ".join(f"{k}={v}" for k, v in side.items())
        raise ValueError(f"{named} means {len(found)} configurations; say one of them")
    return found[0].values[score]


def _matching(side: Mapping[str, Any], score: str, table: Sequence[Line]) -> list[Line]:
    found = [line for line in table if line.values.get(score) and _meant(side, line)]
    if not found:
        raise ValueError(f"no result yet for {', '.join(f'{k}={v}' for k, v in side.items())}")
    return found
