"""Candidate records: what might have been trained on, with the column that says what was.

Texts come from a CSV or JSONL file (columns text, label, member, or as named) or a list; tensors for a
plain PyTorch model as (inputs, labels). Their contents go to the model and nowhere else: no message, JSON
or page holds a record unless it is asked for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.errors import AuditError

Bools = NDArray[np.bool_]
YES = {"1", "true", "yes", "member", "in"}
NO = {"0", "false", "no", "non-member", "nonmember", "out"}


@dataclass(frozen=True, eq=False)
class Candidates:
    """n records of one kind.

    Attributes:
        texts, or inputs: tensor (n, ...). labels: int64 (n,), None where there are none.
        member: (n,), whether the record was trained on; None where nobody says.
        coins: whether membership was decided by a fair coin for each record, which a bound on epsilon needs.
        partial: more was trained on than the members here, so that counts of what was in an update are too low.
    """

    texts: tuple[str, ...] | None = field(default=None, repr=False)
    inputs: torch.Tensor | None = field(default=None, repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    member: Bools | None = field(default=None, repr=False)
    coins: bool = False
    partial: bool = False

    def __len__(self) -> int:
        if self.texts is not None:
            return len(self.texts)
        return 0 if self.inputs is None else len(self.inputs)

    @property
    def members(self) -> NDArray[np.int64]:
        """Row numbers of the members; empty where membership is not known."""
        return np.flatnonzero(self.member) if self.member is not None else np.empty(0, np.int64)

    @property
    def others(self) -> NDArray[np.int64]:
        """Row numbers of the non-members."""
        return np.flatnonzero(~self.member) if self.member is not None else np.empty(0, np.int64)


def read_candidates(
    given: Any,
    is_member: Any = None,
    *,
    text: str = "text",
    label: str = "label",
    member: str = "member",
    coins: bool = False,
) -> Candidates | None:
    """The candidates in a file, a list of texts or of mappings, a pair (inputs, labels), or None.

    Args:
        is_member: one boolean a record, in place of a column of the file. text, label, member: columns.

    Raises:
        AuditError: unreadable, a column missing, or a membership that is no yes or no; rows are named by number.
    """
    if given is None:
        return None
    if isinstance(given, Candidates):
        return given
    if isinstance(given, str | Path):
        rows: list[Any] = list(_read_rows(Path(given).expanduser()))
    elif isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0], str):
        return _tensors(given, is_member, coins)
    elif isinstance(given, torch.Tensor | np.ndarray):
        return _tensors((given, None), is_member, coins)
    else:
        rows = list(given)
    if not rows:
        return None
    if all(isinstance(r, str) for r in rows):
        rows = [{text: r} for r in rows]
    return _texts(rows, is_member, text, label, member, coins)


def _read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        raise AuditError(f"candidates: no file {path}")
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        if path.suffix.lower() in (".csv", ".tsv"):
            yield from csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise AuditError(
                    f"candidates: line {number} of {path.name} is no JSON; give one object a line (.jsonl) or a .csv"
                ) from None
            if not isinstance(row, dict):
                raise AuditError(
                    f"candidates: line {number} of {path.name} is no JSON object with a text column"
                )
            yield row


def _texts(
    rows: Sequence[Any], is_member: Any, text: str, label: str, member: str, coins: bool
) -> Candidates:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not isinstance(row.get(text), str):
            columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise AuditError(
                f"candidates: record {number} has no text in column {text!r} (it has {columns}); name the column"
            )
    if not any(row[text].strip() for row in rows):
        raise AuditError("candidates: every text is empty")
    labels = _labels([row.get(label) for row in rows]) if any(label in row for row in rows) else None
    marked = [row.get(member) for row in rows]
    known = is_member if is_member is not None else (marked if any(m is not None for m in marked) else None)
    return Candidates(
        texts=tuple(row[text] for row in rows),
        labels=labels,
        member=_membership(known, len(rows)),
        coins=coins,
    )


def _tensors(given: tuple[Any, Any], is_member: Any, coins: bool) -> Candidates:
    inputs = torch.as_tensor(given[0])
    if inputs.is_floating_point():
        inputs = inputs.float()
        if not bool(inputs.isfinite().all()):
            raise AuditError("candidates: an input is not finite")
    labels = None if given[1] is None else np.asarray(given[1], np.int64)
    if labels is not None and len(labels) != len(inputs):
        raise AuditError(f"candidates: {len(inputs)} inputs and {len(labels)} labels")
    return Candidates(inputs=inputs, labels=labels, member=_membership(is_member, len(inputs)), coins=coins)


def _labels(found: Sequence[Any]) -> NDArray[np.int64] | None:
    try:
        return np.asarray([int(v) for v in found], np.int64)
    except (TypeError, ValueError):
        raise AuditError(
            "candidates: labels are whole numbers 0, 1, ...; one is not, or is missing"
        ) from None


def _membership(found: Any, n: int) -> Bools | None:
    if found is None:
        return None
    values = np.asarray(found, object).ravel()
    if len(values) != n:
        raise AuditError(f"candidates: {n} records and {len(values)} memberships; one is needed for each")
    return np.asarray([_yes(v, k) for k, v in enumerate(values, 1)], np.bool_)


def _yes(value: Any, number: int) -> bool:
    word = str(value).strip().lower().removesuffix(".0")
    if word in YES or word in NO:
        return word in YES
    raise AuditError(f"candidates: record {number} has a membership that is neither yes nor no; write 1 or 0")
