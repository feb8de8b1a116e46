"""The public test split: by a salted hash of each record's document, so that it never changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.data.records import Examples
from securefed.data.text import hash_order, unit_hash
from securefed.errors import DataError

SALT = "securefed test split 1"


def held_out(documents: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Which records are for testing: those whose document hashes below `fraction`; bool (n,).

    Records of one document stay together. The split depends on neither seed nor order, and a record
    added later moves no other. Where chance would leave a side empty, the document nearest to the
    border goes there, so both sides have a record.

    Raises:
        DataError: fewer than two documents.
    """
    distinct = hash_order(SALT, documents)
    if len(distinct) < 2:
        raise DataError(f"a test split needs 2 different documents, found {len(distinct)}; add records")
    chosen = {d for d in distinct if unit_hash(SALT, d) < fraction}
    if not chosen:
        chosen = {distinct[0]}
    elif len(chosen) == len(distinct):
        chosen.discard(distinct[-1])
    return np.array([d in chosen for d in documents], np.bool_)


def split(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
    """(train, test) by `held_out` over the records' documents."""
    mask = held_out(examples.documents, fraction)
    return examples.take(np.flatnonzero(~mask)), examples.take(np.flatnonzero(mask))
