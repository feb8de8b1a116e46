"""Shards by the data's own groups: domains, mailing lists, or the column that names the client."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from securefed.data.partition import Rows
from securefed.data.records import Examples
from securefed.data.text import hash_order
from securefed.errors import DataError

OTHERS = "others"
"""The client that holds all groups too small for one of their own."""
NO_GROUPS = (
    "partition 'natural' needs records that name their client; set data.client_column for a file, "
    "or data.partition to 'iid', 'dirichlet' or 'quantity'"
)

Piece = tuple[str, Rows, Rows]
"""(name, training rows, test rows) of one client."""


def natural(train: Examples, test: Examples, clients: int, min_examples: int, seed: int) -> list[Piece]:
    """One client per group, or groups divided or merged until there are `clients` of them (0: see below).

    - more clients than groups: groups are cut between documents, into equally many pieces each where
      the numbers allow, else in proportion to their records;
    - fewer: the largest keep a client each, the smallest share the last one, `OTHERS`;
    - 0: every group of `min_examples` records or more is a client, the smaller ones share one.
    Test records go to the client of their group, and of their document where training knows it; those
    of a group without training records belong to no client.

    Raises:
        DataError: records without groups; more clients than documents.
    """
    if not train.groups:
        raise DataError(NO_GROUPS)
    merged, others = _merge(Counter(train.groups), clients, min_examples)
    train_rows, test_rows = _rows_by_client(train, merged), _rows_by_client(test, merged)
    names = sorted(train_rows, key=lambda name: (name == others, -len(train_rows[name]), name))
    documents = {name: len({_document(train, i) for i in train_rows[name]}) for name in names}
    pieces = _pieces({n: len(train_rows[n]) for n in names}, documents, clients or len(names))
    return [
        piece
        for name in names
        for piece in _cut(name, train, train_rows[name], test, test_rows.get(name, []), pieces[name], seed)
    ]


def _merge(sizes: Mapping[str, int], clients: int, min_examples: int) -> tuple[dict[str, str], str]:
    """(group -> client name, name of the client that holds the merged ones)."""
    others = OTHERS
    while others in sizes:  # a group may be called that
        others += "+"
    ranked = sorted(sizes, key=lambda group: (-sizes[group], group))
    if clients >= len(ranked):
        return {group: group for group in ranked}, others
    kept = ranked[: clients - 1] if clients else [g for g in ranked if sizes[g] >= min_examples]
    left = sum(sizes[group] for group in ranked[len(kept) :])
    if not clients and kept and 0 < left < min_examples:
        kept.pop()  # too few even together: the smallest group that could stand alone joins them
    return {group: group if group in kept else others for group in ranked}, others


def _rows_by_client(examples: Examples, merged: Mapping[str, str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(examples.groups):
        if group in merged:
            rows[merged[group]].append(i)
    return rows


def _pieces(sizes: Mapping[str, int], documents: Mapping[str, int], clients: int) -> dict[str, int]:
    """Group -> number of clients it is cut into; never more than it has documents."""
    if clients > sum(documents.values()):
        raise DataError(
            f"{clients} clients, but the groups hold only {sum(documents.values())} documents, which are not cut; "
            "lower data.clients or set data.partition = 'iid'"
        )
    each, rest = divmod(clients, len(sizes))
    if not rest and all(documents[name] >= each for name in sizes):
        return dict.fromkeys(sizes, each)
    pieces = dict.fromkeys(sizes, 1)
    for _ in range(clients - len(sizes)):
        open_groups = [name for name in sizes if pieces[name] < documents[name]]
        pieces[max(open_groups, key=lambda name: sizes[name] / pieces[name])] += 1
    return pieces


def _cut(
    name: str,
    train: Examples,
    train_rows: Sequence[int],
    test: Examples,
    test_rows: Sequence[int],
    pieces: int,
    seed: int,
) -> list[Piece]:
    if pieces == 1:
        return [(name, np.array(train_rows, np.int64), np.array(test_rows, np.int64))]
    salt = f"securefed shards {seed}"
    piece_of: dict[str, int] = {}
    dealt_train = _deal(train, train_rows, pieces, salt, piece_of)
    dealt_test = _deal(test, test_rows, pieces, salt, piece_of)
    return [(f"{name}/{k}", dealt_train[k], dealt_test[k]) for k in range(pieces)]


def _deal(
    examples: Examples, rows: Sequence[int], pieces: int, salt: str, piece_of: dict[str, int]
) -> list[Rows]:
    """Rows of each piece; whole documents, in the order of their hashes, each to the smallest piece.

    `piece_of` holds the documents that have their place already, and gains the new ones.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        rows_of[_document(examples, row)].append(row)
    dealt: list[list[int]] = [[] for _ in range(pieces)]
    for document in rows_of.keys() & piece_of.keys():
        dealt[piece_of[document]] += rows_of[document]
    heap = [(len(mine), k) for k, mine in enumerate(dealt)]
    heapq.heapify(heap)
    for document in hash_order(salt, rows_of.keys() - piece_of.keys()):
        size, k = heapq.heappop(heap)
        piece_of[document] = k
        dealt[k] += rows_of[document]
        heapq.heappush(heap, (size + len(rows_of[document]), k))
    return [np.array(sorted(mine), np.int64) for mine in dealt]


def _document(examples: Examples, row: int) -> str:
    return examples.documents[row] if examples.documents else f"row {row}"
