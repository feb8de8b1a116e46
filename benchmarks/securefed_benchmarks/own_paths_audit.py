"""This project's own DP paths audited: the bound stays below the claim, and gross faults put in on purpose are caught.

Every path runs whole, with canaries as records or clients (`own_paths`), once as it is and once under each fault
that it can have (`own_path_faults`). The confidence is that of all bounds on the unbroken paths together
(Bonferroni). Then the figure of reference: what one run of m = 1000 canaries shows at epsilon 2, 4 and 8.

    python -m securefed_benchmarks.own_paths_audit [--canaries 1000] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from securefed.crypto.entropy import Entropy
from securefed.privacy.calibration import calibrate_noise
from securefed_attacks.canaries import (
    Assumed,
    DPAudit,
    draw_canaries,
    family_confidence,
    one_run_audit,
)
from securefed_attacks.many_runs import many_runs_audit
from securefed_benchmarks.own_correlated import Dealt
from securefed_benchmarks.own_factored import Factored
from securefed_benchmarks.own_path_faults import FAULTS
from securefed_benchmarks.own_paths import DELTA, Foreign, Job, Loop
from securefed_benchmarks.own_words import Words

CONFIDENCE = 0.95
MASKED, RUNS = 300, 4000
"""Canary clients of a masked round, 30 ms each; runs on each side where one canary is audited many times."""

REFERENCE = {2.0: 0.67, 4.0: 1.47, 8.0: 2.63}
"""Epsilon -> bound of an independent program for 60 full-batch steps and m = 1000, to be met within 0.3."""


@dataclass(frozen=True)
class Case:
    """One audit.

    Attributes:
        canaries: of one run, or runs on a side for `Words`. fault: a key of `FAULTS`, empty for none.
        assumes: "gaussian" only where the path claims Gaussian noise at sample rate 1.
    """

    name: str
    path: Job | Loop | Foreign | Words | Factored | Dealt
    canaries: int
    fault: str = ""
    assumes: Assumed = "nothing"


def honest(m: int) -> list[Case]:
    """The paths as they are."""
    return [
        Case("example, job", Job("example", 5.0, rounds=3), m, assumes="gaussian"),
        Case("example, job, rate 0.1", Job("example", 1.5, rounds=3, sample_rate=0.1, steps=10), m),
        Case("example, make_private", Loop(6.0, steps=10), m, assumes="gaussian"),
        Case("example, make_private, rate 0.1", Loop(1.5, steps=30, sample_rate=0.1), m),
        Case("client, job", Job("client", 4.0, rounds=3), m, assumes="gaussian"),
        Case("client, job, rate 0.1", Job("client", 1.0, rounds=10, sample_rate=0.1), m),
        Case("client, federate", Foreign(4.0, rounds=3), m, assumes="gaussian"),
        Case("example, fedsgd", Job("example", 5.0, rounds=3, together=True), m, assumes="gaussian"),
        Case("example, fedsgd, rate 0.1", Job("example", 1.5, rounds=10, sample_rate=0.1, together=True), m),
        Case("example, fedsgd, masked Skellam", Job("example", 4.0, noise="skellam", together=True), m),
        Case("client, adaptive clip", Job("client", 4.0, rounds=3, adaptive=True), m, assumes="gaussian"),
        Case("client, federate, adaptive clip", Foreign(4.0, rounds=3, adaptive=True), m, assumes="gaussian"),
        Case("client, matrix factorization", Factored(3.0), m, assumes="gaussian"),
        Case("client, job, correlated noise", Dealt(3.0), m, assumes="gaussian"),
        Case("client, masked Skellam", Job("client", 2.0, noise="skellam"), MASKED),
        Case("client, masked discrete Gaussian", Job("client", 2.0, noise="discrete-gaussian"), MASKED),
        Case("client, Skellam, many runs", Words("skellam", 1.25), RUNS),
        Case("client, discrete Gaussian, many runs", Words("discrete-gaussian", 1.25), RUNS),
    ]


def broken(m: int) -> Iterator[Case]:
    """The paths under every fault that they can have."""
    for fault in ("noise / 10", "no clip"):
        yield Case("example, job", Job("example", 4.0), m, fault)
        yield Case("example, make_private", Loop(4.0), m, fault)
        yield Case("client, job", Job("client", 4.0), m, fault)
        yield Case("client, federate", Foreign(4.0), m, fault)
        yield Case("example, fedsgd", Job("example", 4.0, together=True), m, fault)
        yield Case("client, adaptive clip", Job("client", 4.0, adaptive=True), m, fault)
        yield Case("client, federate, adaptive clip", Foreign(4.0, adaptive=True), m, fault)
        yield Case("client, matrix factorization", Factored(4.0), m, fault)
        yield Case("client, job, correlated noise", Dealt(4.0), m, fault)
        yield Case("client, masked Skellam", Job("client", 2.5, noise="skellam"), MASKED, fault)
        yield Case(
            "client, masked discrete Gaussian", Job("client", 2.5, noise="discrete-gaussian"), MASKED, fault
        )
    masked = Job("example", 4.0, noise="skellam", together=True)
    yield Case("example, fedsgd, masked Skellam", masked, m, "noise / 10")
    yield Case("client, matrix factorization", Factored(3.0, separation=12), m, "in every round", "gaussian")
    name, loud = "client, job, correlated noise", Dealt(4.0, listens="changes")
    yield Case(name, Dealt(4.0), m, "rows restarted")
    yield Case(name, Dealt(3.0, separation=12), m, "dealt to everybody", "gaussian")
    yield Case(name, loud, m, "same noise again")
    fault = "rate 0.01 run at 1"
    yield Case("example, fedsgd", Job("example", 1.0, rounds=60, sample_rate=0.01, together=True), m, fault)
    yield Case("example, job", Job("example", 1.0, sample_rate=0.01, steps=60), m, fault)
    yield Case("example, make_private", Loop(1.0, steps=60, sample_rate=0.01), m, fault)
    yield Case("client, job", Job("client", 0.7, rounds=10, sample_rate=0.01), m, fault)
    yield Case("client, federate", Foreign(0.7, rounds=10, sample_rate=0.01), m, fault)
    fault = "9 of 10 rounds unlogged"
    yield Case("example, fedsgd", Job("example", 1.5, rounds=10, together=True), m, fault, "gaussian")
    yield Case("client, adaptive clip", Job("client", 1.5, rounds=10, adaptive=True), m, fault, "gaussian")
    yield Case("example, job", Job("example", 1.5, rounds=10), m, fault, "gaussian")
    yield Case("example, make_private", Loop(1.5, steps=10), m, fault, "gaussian")
    yield Case("client, job", Job("client", 1.5, rounds=10), m, fault, "gaussian")
    yield Case("client, federate", Foreign(1.5, rounds=10), m, fault, "gaussian")
    many = 3 * RUNS  # with a third as many one play in three shows a bound below the claim
    yield Case("client, Skellam, many runs", Words("skellam", 1.25, rounds=10), many, fault)
    yield Case(
        "client, discrete Gaussian, many runs", Words("discrete-gaussian", 1.25, rounds=10), many, fault
    )


def audit(
    case: Case,
    generator: np.random.Generator,
    confidence: float,
    folder: Path,
    entropy: Entropy | None = None,
) -> DPAudit:
    """The path played once under its fault, and the verdict over what it released.

    Args:
        generator: of the coins. entropy: of the noise, the system's by default; a seeded one in tests only.
    """
    with FAULTS[case.fault]() if case.fault else nullcontext():
        if isinstance(case.path, Words):
            present, absent, claimed = case.path(case.canaries, folder, entropy)
            return many_runs_audit(present, absent, delta=DELTA, confidence=confidence, claimed=claimed)
        canaries = draw_canaries(case.canaries, case.canaries, generator)
        released = case.path(canaries, folder, entropy)
    return one_run_audit(
        canaries.scores(released.moved),
        canaries.included,
        delta=DELTA,
        confidence=confidence,
        claimed=released.claimed,
        assumes=case.assumes,
    )


def reference(
    generator: np.random.Generator,
    folder: Path,
    seeds: int,
    *,
    steps: int = 60,
    m: int = 1000,
    entropy: Entropy | None = None,
) -> Iterator[str]:
    """The table of bounds at epsilon 2, 4, 8 by `make_private`, and with a tenth of the noise.

    Full batches: fewer steps with less noise each release the same, sooner.
    """

    def bounded(case: Case, name: str) -> list[DPAudit]:
        return [audit(case, generator, CONFIDENCE, folder / f"{name}-{k}", entropy) for k in range(seeds)]

    yield "| claimed epsilon | bounds | mean | reference | noise / 10 caught | ... assuming Gaussian noise |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for epsilon, figure in REFERENCE.items():
        path = Loop(calibrate_noise(epsilon, DELTA, 1.0, steps), steps=steps)
        bounds = [found.bound for found in bounded(Case("whole", path, m), f"{epsilon:g}")]
        caught = []
        for assumes in get_args(Assumed):
            bad = bounded(Case("broken", path, m, "noise / 10", assumes), f"{epsilon:g}-{assumes}")
            caught.append(
                f"{sum(f.verdict == 'FAIL' for f in bad)} of {seeds} (ceiling {bad[0].ceiling:.2f})"
            )
        yield (
            f"| {epsilon:g} | {', '.join(f'{b:.2f}' for b in bounds)} | {np.mean(bounds):.2f} | {figure} | "
            f"{' | '.join(caught)} |"
        )


def rows(cases: list[Case], generator: np.random.Generator, confidence: float, folder: Path) -> Iterator[str]:
    """One Markdown row a case."""
    yield "| path | fault | canaries | claimed | bound | ceiling | verdict | CPU s |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for number, case in enumerate(cases):
        began = time.process_time()
        found = audit(case, generator, confidence, folder / str(number))
        star = "*" if case.assumes == "gaussian" else ""
        size = f"2 x {case.canaries} runs" if isinstance(case.path, Words) else str(case.canaries)
        yield (
            f"| {case.name} | {case.fault or 'none'} | {size} | {found.claimed:.2f} | {found.bound:.2f}{star} | "
            f"{found.ceiling:.2f}{star} | {found.verdict} | {time.process_time() - began:.0f} |"
        )


def main() -> None:
    """Prints the tables as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--canaries", type=int, default=1000, help="of a run, m")
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs for each figure of reference; 0 leaves them out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the coins; noise is the system's")
    parser.add_argument("--only", nargs="*", default=[], help="names of paths; all by default")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    generator, whole = np.random.default_rng(asked.seed), honest(asked.canaries)
    confidence = family_confidence(CONFIDENCE, len(whole))
    cases = [c for c in (*whole, *broken(asked.canaries)) if not asked.only or c.name in asked.only]
    with tempfile.TemporaryDirectory() as home:
        os.environ["SECUREFED_HOME"] = home  # its own site: no ledger but this one's is charged
        for line in rows(cases, generator, confidence, Path(home) / "audits"):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        if asked.seeds:
            sys.stdout.write(
                "\n" + "\n".join(reference(generator, Path(home) / "claims", asked.seeds)) + "\n"
            )


if __name__ == "__main__":
    main()
