"""An audit of federated updates: two states in, a verdict with its reasons out, as a value, JSON and one page."""

from __future__ import annotations

from securefed_attacks.audit.recipe import Recipe as Recipe
from securefed_attacks.audit.report import AuditReport as AuditReport
from securefed_attacks.audit.run import audit as audit
from securefed_attacks.audit.verdict import VERDICTS as VERDICTS
from securefed_attacks.audit.verdict import Finding as Finding

__all__ = ["VERDICTS", "AuditReport", "Finding", "Recipe", "audit"]
