"""The name of a data set in the ledger when its owner gives none: a digest over its records.

Order and place do not matter, so a shuffled or moved copy is the same data set. One changed byte makes
another one, which the ledger cannot add to the first: a name that you give (`data_id`) is the safer choice.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from securefed.errors import DataError


def fingerprint(dataset: Any) -> str:
    """SHA-256 over the sorted digests of all records, hex.

    Args:
        dataset: map-style (`len` and `[i]`); its records are tensors, arrays, numbers, text, bytes, None,
            or dicts and sequences of these. A dict or a number is one record.

    Raises:
        DataError: no records, a record of another kind, or records that differ between two readings
            (random augmentation), so that their digest would name a new data set in every run.
    """
    if isinstance(dataset, Mapping | numbers.Number | np.generic):
        return record_digest(dataset).hex()
    try:
        count = len(dataset)
        if count:
            dataset[0]
    except (TypeError, KeyError, AttributeError):
        raise DataError(
            f'a {type(dataset).__name__} has no records 0, 1, ... that could be read for a fingerprint; give data_id="..."'
        ) from None
    if count == 0:
        raise DataError("the data set has no records")
    first = [record_digest(dataset[i]) for i in range(min(3, count))]
    if first != [record_digest(dataset[i]) for i in range(len(first))]:
        raise DataError(
            "two readings of one record differ (random augmentation?), so no fingerprint can name this data set; "
            'give data_id="..."'
        )
    digests = sorted([*first, *(record_digest(dataset[i]) for i in range(len(first), count))])
    return hashlib.sha256(b"".join(digests)).hexdigest()


def record_digest(record: Any) -> bytes:
    """SHA-256 of one record, 32 bytes.

    Raises:
        DataError: it holds something that has no bytes of its own.
    """
    digest = hashlib.sha256()
    _feed(digest, record)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    """Adds the value, each part with its kind and length, so that no two values run together."""
    if isinstance(value, Mapping):
        digest.update(b"map%d:" % len(value))
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        digest.update(b"text%d:" % len(data) + data)
    elif value is None or isinstance(value, bool | numbers.Number | np.generic):
        text = repr(value.item() if isinstance(value, np.generic) else value).encode()
        digest.update(b"one%d:" % len(text) + text)
    elif hasattr(value, "__array__") or hasattr(value, "detach"):
        array = _array(value)
        head = f"{array.dtype.str}{list(array.shape)}".encode()
        digest.update(b"array%d:" % len(head) + head + array.tobytes())
    elif isinstance(value, Sequence):
        digest.update(b"list%d:" % len(value))
        for item in value:
            _feed(digest, item)
    else:
        raise DataError(
            f'a record holds a {type(value).__name__}, which has no fingerprint; give data_id="..."'
        )


def _array(value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise DataError(
            'a record holds an array of Python objects, which has no fingerprint; give data_id="..."'
        )
    return np.ascontiguousarray(array)
