"""Who has met which events: one record's or client's exposure, within a run and over a site's runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from securefed.privacy.accounting import Spent
from securefed.privacy.accounting import epsilon as spent_by
from securefed.privacy.events import Accountant, NonPrivate, Unit, from_json, merge
from securefed.privacy.records import RunRow, find_runs, find_shards, spent_by_client
from securefed.privacy.site import Exposure, per_shard, worst_cases
from securefed.types import SERVER


def exposures(connection: sqlite3.Connection, row: RunRow) -> dict[int, Exposure]:
    """Client -> all events of the run that one record of its shard (or, at client level, it) may have met.

    Example level: the client's own events, or everybody's where shards overlap. Client level: the
    server's events touch every client, beside its own.
    """
    spent = spent_by_client(connection, row.run)
    clients = sorted(set(find_shards(connection, row.run)) | set(spent))
    if row.unit == "client":
        central = spent.get(SERVER, ())
        return {c: merge((*central, *(spent.get(c, ()) if c != SERVER else ()))) for c in clients}
    if row.disjoint:
        return {c: spent.get(c, ()) for c in clients}
    everything = merge(event for events in spent.values() for event in events)
    return dict.fromkeys(clients, everything)


def shard_exposures(connection: sqlite3.Connection, rows: list[RunRow]) -> dict[str, dict[str, Exposure]]:
    """Partition -> shard digest -> events met over these runs, which share data set and unit."""
    by_partition: dict[str, list[dict[str, Exposure]]] = {}
    for row in rows:
        names = _shard_names(connection, row)
        met = {names.get(c, f"client {c}"): events for c, events in exposures(connection, row).items()}
        by_partition.setdefault(row.partition, []).append(met)
    return {partition: per_shard(runs) for partition, runs in by_partition.items()}


def _shard_names(connection: sqlite3.Connection, row: RunRow) -> dict[int, str]:
    """Client -> what identifies its shard in every run; empty shards are all alike, so by client."""
    shards = find_shards(connection, row.run)
    return {c: key.digest if key.records > 0 else f"{key.digest} of client {c}" for c, key in shards.items()}


def worst(cases: Iterable[Exposure], delta: float, accountant: Accountant | None) -> Spent:
    """The largest epsilon of any case; 0 if there is none."""
    answers = [spent_by(case, delta, accountant) for case in dict.fromkeys((*cases, ()))]
    return max(answers, key=lambda spent: spent.epsilon)


def site_cases(connection: sqlite3.Connection, dataset: str, unit: Unit) -> list[Exposure]:
    """Exposures of which one contains that of any record of the data set, over all runs."""
    partitions = shard_exposures(connection, find_runs(connection, dataset, unit))
    cases = worst_cases([shards.values() for shards in partitions.values()])
    return [*cases, *_without_noise(connection, dataset)]


def _without_noise(connection: sqlite3.Connection, dataset: str) -> list[Exposure]:
    """One exposure of infinite epsilon if any run released the data set without noise, at whatever unit."""
    events = connection.execute(
        "SELECT DISTINCT event FROM reservations JOIN runs USING (run) WHERE dataset = ? AND steps = 0",
        (dataset,),
    )
    return [(NonPrivate(),)] if any(isinstance(from_json(e), NonPrivate) for (e,) in events) else []


def touched(connection: sqlite3.Connection, row: RunRow, client: int) -> list[Exposure]:
    """What those who meet this client's next event have met in the run."""
    if row.unit == "example" and row.disjoint:  # the common case, without reading the other clients
        return [spent_by_client(connection, row.run, client).get(client, ())]
    met = exposures(connection, row)
    if client == SERVER:
        return list(dict.fromkeys((*met.values(), met.get(SERVER, ()))))
    return [met.get(client, ())]


def touched_at_site(connection: sqlite3.Connection, row: RunRow, client: int) -> list[Exposure]:
    """The same over all runs: of its own partition the client's shard, of others any."""
    partitions = shard_exposures(connection, find_runs(connection, row.dataset, row.unit))
    own = partitions.pop(row.partition, {})
    if row.disjoint and client != SERVER:
        name = _shard_names(connection, row)[client]
        own = {name: own.get(name, ())}
    cases = worst_cases([own.values(), *(shards.values() for shards in partitions.values())])
    return [*cases, *_without_noise(connection, row.dataset)]


def own_events(connection: sqlite3.Connection, row: RunRow, client: int) -> Exposure:
    """The client's own events of a run, with the server's at client level."""
    spent = spent_by_client(connection, row.run)
    central = spent.get(SERVER, ()) if row.unit == "client" and client != SERVER else ()
    return (*central, *spent.get(client, ()))
