"""`sf.audit`: the door to `securefed_attacks.audit`, which is found by name when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from securefed.registry import load


class Report(Protocol):
    """What an audit gives: the verdict, its words, its JSON, its page."""

    @property
    def verdict(self) -> str:
        """FAIL, LEAKS, UNDERPOWERED or NO EVIDENCE; never "safe"."""
        ...

    def is_at_least(self, bound: str) -> bool:
        """Whether the verdict is `bound` or worse."""
        ...

    def text(self) -> str:
        """The verdict and its reasons, a line each."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON types."""
        ...

    def save(self, path: str | Path) -> Path:
        """Writes one self-contained page (`.html`), or the JSON (`.json`)."""
        ...


def audit(before: Any, after: Any = None, **given: Any) -> Report:
    """What the update between two states tells about the records behind it.

    Works on anything captured anywhere: state dicts, modules, PEFT folders, safetensors or torch files, or
    a run's result folder alone. Who sees it, what is judged and what the verdicts mean: docs/audit.md.

    Args:
        before, after: the two states, or lists of them, a pair a round; or a run's folder and None.
        given: `base`, `recipe`, `candidates`, `is_member`, `claimed_epsilon`, `others`, `coins`, `fpr`,
            `shadows`, `time_budget_s`, `progress`, `tokenizer`, `seed`, `show_text`, and the names of columns
            `text_column`, `label_column`, `member_column`; see `securefed_attacks.audit.audit`.

    Raises:
        AuditError: input that cannot be audited: shapes that differ, NaN, quantized weights, another base.
        ModelError: a base model that does not exist.
    """
    report: Report = load("securefed_attacks.audit:audit")(before, after, **given)
    return report
