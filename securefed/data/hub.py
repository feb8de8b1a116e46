"""`hub:NAME` through the package `datasets`; the one file that knows it.

`hub:NAME` is a name of the Hugging Face hub or a folder written by `save_to_disk`; `hub:NAME:CONFIG`
chooses one of its configurations. Code that comes with a data set is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from securefed.data.table import Table
from securefed.errors import DataError
from securefed.hub import hub_is_offline

TEST_SPLITS = ("test", "validation")
"""Names of a published test split, the best first."""


def read_hub(name: str, label_column: str, *, offline: bool = False) -> tuple[Table, Table | None]:
    """(train, test) as tables; test is None where the data set publishes none.

    A test split that hides its labels (all of them negative) is passed over.

    Raises:
        DataError: `datasets` is not installed, the data set cannot be loaded, or it has no records.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"hub:{name} needs datasets; install it with pip install 'securefed[hub]'") from None
    splits = _splits(_load(datasets, name, offline))
    if not splits:
        raise DataError(f"hub:{name} has no splits")
    train = splits.get("train", next(iter(splits.values())))
    for split in TEST_SPLITS:
        found = splits.get(split)
        if found is not None and found is not train:
            table = _table(f"hub:{name} ({split})", found)
            if table.rows and not _hides_labels(table, label_column):
                return _table(f"hub:{name}", train), table
    return _table(f"hub:{name}", train), None


def _load(datasets: Any, name: str, offline: bool) -> Any:
    path, _, config = name.partition(":")
    try:
        if Path(path).is_dir():
            return datasets.load_from_disk(path)
        with _offline(datasets) if offline or hub_is_offline() else nullcontext():
            return datasets.load_dataset(path, config or None)
    except Exception as error:  # whatever hub, file system or parser raise: the user needs one line of it
        reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise DataError(
            f"hub:{name} could not be loaded ({type(error).__name__}: {reason}); check the name, or on a machine "
            f"with a network load_dataset({path!r}).save_to_disk('folder') and use data.name='hub:folder'"
        ) from error


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Inside it the hub's clients look into their cache at once; outside they would retry for half a minute."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _splits(loaded: Any) -> Mapping[str, Any]:
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _table(name: str, split: Any) -> Table:
    rows: Sequence[Mapping[str, object]] = [dict(row) for row in split]
    label_names = {c: tuple(f.names) for c, f in split.features.items() if getattr(f, "names", None)}
    places = [f"row {i}" for i in range(1, len(rows) + 1)]
    return Table(name, tuple(split.column_names), rows, places, label_names)


def _hides_labels(table: Table, column: str) -> bool:
    values = [row.get(column) for row in table.rows]
    return all(isinstance(v, int) and not isinstance(v, bool) and v < 0 for v in values)
