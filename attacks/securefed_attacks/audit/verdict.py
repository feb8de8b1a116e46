"""The four verdicts, strongest first, and what a finding says.

None of them is "safe". NO EVIDENCE carries the effect that the test could have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from securefed.errors import AuditError

Verdict = Literal["FAIL", "LEAKS", "UNDERPOWERED", "NO EVIDENCE"]
VERDICTS: tuple[Verdict, ...] = ("FAIL", "LEAKS", "UNDERPOWERED", "NO EVIDENCE")
MEANS = {
    "FAIL": "The claimed epsilon is refuted: what was seen is not possible under it.",
    "LEAKS": "A record was reconstructed beyond its controls, or members are recognized far beyond chance.",
    "UNDERPOWERED": "What was handed over cannot carry a verdict; what is missing is named.",
    "NO EVIDENCE": "These attacks found nothing beyond the bounds of a leak. That is no proof: stronger ones may.",
}


@dataclass(frozen=True)
class Finding:
    """One judgement: verdict, the section it is from, the view it holds for ("" for all), and why, in words."""

    verdict: Verdict
    section: str
    view: str
    reason: str


def strongest(findings: Iterable[Finding]) -> Verdict:
    """The verdict of the whole: FAIL before LEAKS before UNDERPOWERED before NO EVIDENCE.

    Without a single finding nothing was tested: UNDERPOWERED.

    >>> strongest([])
    'UNDERPOWERED'
    """
    found = {f.verdict for f in findings}
    return next((v for v in VERDICTS if v in found), "UNDERPOWERED")


def at_least(verdict: Verdict, bound: str) -> bool:
    """Whether this verdict is `bound` or worse.

    Raises:
        AuditError: `bound` is no verdict.

    >>> at_least("FAIL", "LEAKS"), at_least("NO EVIDENCE", "UNDERPOWERED")
    (True, False)
    """
    word = bound.upper().replace("-", " ").replace("_", " ")
    if word not in VERDICTS:
        raise AuditError(f"no verdict {bound!r}; one of {', '.join(VERDICTS)}")
    return VERDICTS.index(verdict) <= VERDICTS.index(word)
