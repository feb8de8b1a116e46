"""The site's privacy ledger: what has been spent on whose data, over all runs, whatever happens to them.

Spending is *reserved* on disk before the first step and *settled* before an update leaves. A crash in
between leaves the reservation charged in full: the ledger may overstate, never understate. It lives in
the site's own folder, not in a run's, so that a deleted run folder or a new one resets nothing, and no
charge depends on a clock. Example level and client level are two books that are never added.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from securefed.errors import BudgetExceeded, PrivacyError
from securefed.paths import state_dir
from securefed.privacy import chain
from securefed.privacy.budget import Budget, fits, refusal
from securefed.privacy.continuity import Continuity
from securefed.privacy.events import Accountant, Event, NonPrivate, Unit, from_json, steps_of, to_json
from securefed.privacy.exposure import exposures, own_events, site_cases, touched, touched_at_site, worst
from securefed.privacy.records import (
    RunRow,
    ShardKey,
    find_run,
    find_runs,
    find_shards,
    known_run,
    now,
    partition_digest,
)
from securefed.privacy.store import Store
from securefed.types import SERVER

if TYPE_CHECKING:
    from securefed.privacy.statement import Statement
    from securefed.privacy.view import RunView


class Ledger(Continuity):
    """Records privacy events and answers what they spend. Safe to share between processes and threads.

    Args:
        path: the SQLite file; made on first use. `Ledger.site()` is the site's own.

    Raises:
        PrivacyError: from every method, if the file is damaged, of something else, from a newer version,
            or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._store = Store(self.path)

    @classmethod
    def site(cls) -> Ledger:
        """This site's ledger, `ledger.sqlite` in `securefed.paths.state_dir()`."""
        return cls(state_dir() / "ledger.sqlite")

    def close(self) -> None:
        """Closes the file; the next call opens it again."""
        self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    # ------------------------------------------------------------------------------------- spending

    def register(
        self, run: str, shards: Mapping[int, ShardKey], dataset: str, unit: Unit, disjoint: bool = True
    ) -> None:
        """Names a run, its data set and who holds which records; the same again is no change.

        Args:
            run: the run's identity. dataset: the data set's, under which all runs of the site add up.
            shards: client -> its records' digest and number.
            disjoint: whether no record lies in two shards. If not, a record may have met every client's
                events, and they are composed.

        Raises:
            PrivacyError: a run known with other content, or shards called disjoint of which two are equal.
        """
        if unit not in ("example", "client"):
            raise PrivacyError(f'unit is "example" or "client", got {unit!r}')
        filled = [key.digest for key in shards.values() if key.records > 0]
        if disjoint and len(set(filled)) < len(filled):
            raise PrivacyError(
                f"run {run!r}: two clients hold the same shard; register it with disjoint=False"
            )
        row = RunRow(run, dataset, unit, disjoint, partition_digest(shards, disjoint))
        with self._store.writing() as connection:
            found = find_run(connection, run)
            if found is not None:
                if found != row or find_shards(connection, run) != dict(shards):
                    raise PrivacyError(
                        f"run {run!r} is in the ledger with other data, unit or shards; resume it as it was or "
                        "start a new run"
                    )
                return
            connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)",
                (run, dataset, unit, disjoint, row.partition, now()),
            )
            connection.executemany(
                "INSERT INTO shards VALUES (?, ?, ?, ?)",
                [(run, c, k.digest, k.records) for c, k in shards.items()],
            )
            chain.grow(connection, "run", run)

    def reserve(
        self, *, run: str, client: int, round: int, event: Event, budget: Budget | None = None
    ) -> int:
        """Charges one event, on disk before it returns; call it before the first step. Returns its id.

        With a budget, the check and the charge are one transaction, so that two runs at once cannot both
        take the last of it. An unfinished attempt stays charged; a second attempt is a second charge.

        Args:
            client: who spends; at client level `SERVER` for noise added to the sum of all.

        Raises:
            BudgetExceeded: some record's (or client's) events including this one would exceed
                `budget.epsilon` in this run, or `budget.site_epsilon` over all runs of the site on this
                data set. Nothing is charged.
            PrivacyError: unknown run or client.
        """
        steps = steps_of(event)
        if budget is not None:
            with self._store.reading() as connection:  # slow once, then remembered: not under the lock
                _admit(connection, run, client, event, budget)
        with self._store.writing() as connection:
            _admit(connection, run, client, event, budget)
            inserted = connection.execute(
                "INSERT INTO reservations (run, client, round, event, steps, reserved_at) VALUES (?, ?, ?, ?, ?, ?)",
                (run, client, round, to_json(event), steps, now()),
            )
            reservation = inserted.lastrowid
            assert reservation is not None
            chain.grow(connection, "reserve", reservation)
        return reservation

    def release_unprotected(self, run: str, shards: Mapping[int, ShardKey], dataset: str) -> None:
        """Notes a run that releases what it learns of these records without noise; once per run.

        From then on the site's epsilon on this data set is infinite, at either unit.
        """
        self.register(run, shards, dataset, "example", disjoint=False)
        with self._store.writing() as connection:
            noted = connection.execute("SELECT 1 FROM reservations WHERE run = ? LIMIT 1", (run,)).fetchone()
            if noted is None:
                inserted = connection.execute(
                    "INSERT INTO reservations (run, client, round, event, steps, reserved_at) VALUES (?, ?, 0, ?, 0, ?)",
                    (run, min(shards), to_json(NonPrivate()), now()),
                )
                chain.grow(connection, "reserve", str(inserted.lastrowid))

    def settle(self, reservation: int, *, steps_taken: int, payload: bytes | None = None) -> None:
        """Marks a reservation finished and stores its update for sending, in one transaction; call it
        before the update leaves.

        Fewer steps than reserved are noted, but the reserved steps stay charged: the ledger cannot prove
        that a step was not taken, and overstating is the safe side.

        Args:
            payload: the finished, already noised update; kept until `clear_outbox`.

        Raises:
            PrivacyError: unknown or settled reservation, more steps than reserved, or another update
                stored for the same run, client and round.
        """
        with self._store.writing() as connection:
            found = connection.execute(
                "SELECT run, client, round, steps, settled_at FROM reservations WHERE id = ?", (reservation,)
            ).fetchone()
            if found is None:
                raise PrivacyError(
                    f"the privacy ledger has no reservation {reservation}; reserve before training"
                )
            run, client, round, steps, settled_at = found
            if settled_at is not None:
                raise PrivacyError(
                    f"reservation {reservation} is settled already; re-send its update from the outbox"
                )
            if not 0 <= steps_taken <= steps:
                raise PrivacyError(
                    f"{steps_taken} steps were taken but {steps} reserved; the update must not leave"
                )
            digest = None if payload is None else hashlib.sha256(payload).hexdigest()
            connection.execute(
                "UPDATE reservations SET steps_taken = ?, settled_at = ?, payload_digest = ? WHERE id = ?",
                (steps_taken, now(), digest, reservation),
            )
            chain.grow(connection, "settle", reservation)
            if payload is None:
                return
            again = connection.execute(
                "SELECT 1 FROM reservations WHERE run = ? AND client = ? AND round = ? AND id <> ? AND payload_digest IS NOT NULL",
                (run, client, round, reservation),
            ).fetchone()
            if steps == 0 and again is not None:  # nothing was charged for a second release
                raise PrivacyError(
                    f"round {round} of run {run!r} was released before, by another process; end this one"
                )
            if _stored(connection, run, client, round) is not None:
                raise PrivacyError(
                    f"client {client} has an update of round {round} in the outbox; re-send that one"
                )
            connection.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?)", (run, client, round, reservation, payload)
            )

    def outbox(self, run: str, client: int, round: int) -> bytes | None:
        """The settled update, byte for byte as stored; None if there is none."""
        with self._store.reading() as connection:
            return _stored(connection, run, client, round)

    def unsent(self, run: str, client: int, round: int) -> int:
        """How many turns of this round are settled and sent nothing: a round played again finds them charged."""
        where = "run = ? AND client = ? AND round = ? AND settled_at IS NOT NULL AND payload_digest IS NULL"
        with self._store.reading() as connection:
            row = connection.execute(f"SELECT COUNT(*) FROM reservations WHERE {where}", (run, client, round))
            return int(row.fetchone()[0])

    def clear_outbox(self, run: str, before_round: int) -> None:
        """Forgets stored updates of earlier rounds, which nobody will ask for again; charges stay."""
        with self._store.writing() as connection:
            connection.execute("DELETE FROM outbox WHERE run = ? AND round < ?", (run, before_round))

    # ------------------------------------------------------------------------------------- answers

    def admit(
        self, *, run: str, client: int, event: Event, budget: Budget, beside: Sequence[Event] = ()
    ) -> None:
        """Raises what `reserve` would raise now, after the events `beside` it; charges nothing."""
        with self._store.reading() as connection:
            _admit(connection, run, client, event, budget, beside)

    def events(
        self,
        *,
        run: str | None = None,
        client: int | None = None,
        dataset: str | None = None,
        unit: Unit = "example",
    ) -> tuple[Event, ...]:
        """Every reserved event that matches, in the order of reservation."""
        with self._store.reading() as connection:
            if run is not None:
                _check_unit(known_run(connection, run), unit)
            rows = connection.execute(
                "SELECT event FROM reservations JOIN runs USING (run) WHERE unit = ?1 AND (?2 IS NULL OR run = ?2)"
                " AND (?3 IS NULL OR client = ?3) AND (?4 IS NULL OR dataset = ?4) ORDER BY id",
                (unit, run, client, dataset),
            ).fetchall()
        return tuple(from_json(text) for (text,) in rows)

    def unit(self, run: str) -> Unit:
        """The unit a run is recorded at.

        Raises:
            PrivacyError: unknown run.
        """
        with self._store.reading() as connection:
            return known_run(connection, run).unit

    def epsilon(
        self,
        delta: float,
        *,
        client: int | None = None,
        unit: Unit = "example",
        accountant: Accountant | None = None,
        run: str | None = None,
    ) -> float:
        """What has been spent at delta, reservations included.

        With a client: that client's composition (at client level with the server's events), over one run
        or all. Without: the maximum over clients where their shards are disjoint, everybody's
        composition where not; and without a run either, the largest `site_epsilon` of any data set.

        Raises:
            PrivacyError: unknown run, or one that is recorded at the other unit.
        """
        with self._store.reading() as connection:
            if run is not None:
                row = known_run(connection, run)
                _check_unit(row, unit)
                rows = [row]
            else:
                rows = find_runs(connection, None, unit)
            if client is not None:
                cases = [tuple(e for row in rows for e in own_events(connection, row, client))]
            elif run is not None:
                cases = list(exposures(connection, rows[0]).values())
            else:
                datasets = dict.fromkeys(row.dataset for row in rows)
                cases = [case for name in datasets for case in site_cases(connection, name, unit)]
        return worst(cases, delta, accountant).epsilon

    def site_epsilon(
        self, delta: float, dataset: str, unit: Unit = "example", accountant: Accountant | None = None
    ) -> float:
        """An upper bound on what any record of the data set has spent over all runs at this site.

        Runs that divide the records alike are composed shard by shard. Runs that divide them differently
        put a record into some shard of each partition, so the worst combination of one shard per
        partition counts (`securefed.privacy.site.worst_cases` has the argument). Data under another
        name is another data set: that two names mean the same records cannot be seen here.
        """
        with self._store.reading() as connection:
            cases = site_cases(connection, dataset, unit)
        return worst(cases, delta, accountant).epsilon

    def statement(
        self, delta: float, run: str | None = None, accountant: Accountant | None = None
    ) -> Statement:
        """Everything a reader must know beside the epsilon of a run (of the only run, if there is one).

        Raises:
            PrivacyError: unknown run, or no run named where there are several.
        """
        from securefed.privacy.statement import make_statement

        with self._store.reading() as connection:
            if run is None:
                runs = [row.run for row in find_runs(connection, None, None)]
                if len(runs) != 1:
                    raise PrivacyError(
                        f"the ledger holds {len(runs)} runs; say which: statement(delta, run=...)"
                    )
                run = runs[0]
            return make_statement(connection, known_run(connection, run), delta, accountant)

    def run_view(self, run: str) -> RunView:
        """This ledger's answers about one run."""
        from securefed.privacy.view import RunView

        return RunView(self, run)

    def export(self, path: Path | str) -> None:
        """Writes the whole ledger as JSON for an auditor: runs, shards, events, times; no update.

        Raises:
            PrivacyError: the file cannot be written.
        """
        from securefed.privacy.export import write_export

        with self._store.reading() as connection:
            write_export(connection, Path(path))


def _admit(
    connection: sqlite3.Connection,
    run: str,
    client: int,
    event: Event,
    budget: Budget | None,
    beside: Sequence[Event] = (),
) -> None:
    """Raises unless this client may spend this event now."""
    row = known_run(connection, run)
    if client not in find_shards(connection, run) and not (client == SERVER and row.unit == "client"):
        raise PrivacyError(f"client {client} holds no shard of run {run!r} at {row.unit} level")
    if budget is None:
        return
    for met in touched(connection, row, client):
        before = (*met, *beside)
        if not fits(before, event, budget.epsilon, budget):
            raise BudgetExceeded(refusal(f"client {client}", before, event, budget.epsilon, budget))
    if budget.site_epsilon > 0:
        for met in touched_at_site(connection, row, client):
            before = (*met, *beside)
            if not fits(before, event, budget.site_epsilon, budget):
                who = f"this site, on data set {row.dataset!r},"
                raise BudgetExceeded(refusal(who, before, event, budget.site_epsilon, budget))


def _check_unit(row: RunRow, unit: Unit) -> None:
    if row.unit != unit:
        raise PrivacyError(f"run {row.run!r} is recorded at {row.unit} level; ask with unit={row.unit!r}")


def _stored(connection: sqlite3.Connection, run: str, client: int, round: int) -> bytes | None:
    found = connection.execute(
        "SELECT payload FROM outbox WHERE run = ? AND client = ? AND round = ?", (run, client, round)
    ).fetchone()
    return None if found is None else bytes(found[0])
