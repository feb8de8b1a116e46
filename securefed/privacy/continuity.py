"""What holds a ledger to its own past: counts and heads of its hash chain that others have kept."""

from __future__ import annotations

from pathlib import Path

from securefed.errors import PrivacyError
from securefed.privacy import chain
from securefed.privacy.chain import Head
from securefed.privacy.records import find_run
from securefed.privacy.store import Store


class Continuity:
    """The part of `Ledger` that proves it has only grown."""

    path: Path
    _store: Store

    def charges(self, run: str) -> int:
        """How many reservations the run has made; it never falls, so a checkpoint can hold a ledger to it."""
        with self._store.reading() as connection:
            count: int = connection.execute(
                "SELECT count(*) FROM reservations WHERE run = ?", (run,)
            ).fetchone()[0]
        return count

    def released(self, run: str, client: int) -> dict[int, str]:
        """Round -> SHA-256 (hex) of what was released in it, also where the release itself is no longer kept."""
        with self._store.reading() as connection:
            return dict(
                connection.execute(
                    "SELECT round, payload_digest FROM reservations WHERE run = ? AND client = ? AND payload_digest IS NOT NULL",
                    (run, client),
                )
            )

    def head(self) -> Head:
        """The head of the hash chain over all records; safe to show, and worth showing (`privacy.chain`)."""
        with self._store.reading() as connection:
            return chain.read_head(connection)

    def proof(self, since: int) -> tuple[Head, int, tuple[bytes, ...]]:
        """(newest head, start, links after the first `start`): they lead there from the head of that time.

        `start` is `since`, but for a ledger with more entries after it than one proof may hold: then it is later.
        """
        with self._store.reading() as connection:
            head = chain.read_head(connection)
            start = max(since, head.count - chain.MOST_LINKS)
            return head, start, chain.read_links(connection, start)

    def check(self, seen: Head | None = None) -> None:
        """Recomputes the hash chain over all records; with a head, also that it is one of this ledger's past.

        Raises:
            PrivacyError: a record was changed by hand, or the ledger was rolled back since that head was seen.
        """
        with self._store.reading() as connection:
            chain.check_chain(connection)
        if seen is not None:
            self.check_grown(seen)

    def check_grown(self, seen: Head) -> None:
        """Raises PrivacyError unless that head is one of this ledger's past; reads two rows."""
        with self._store.reading() as connection:
            if not chain.holds(connection, seen):
                found = chain.read_head(connection).count
                raise PrivacyError(
                    f"the privacy ledger {self.path} was rolled back or rewritten: it had {seen.count} entries, of which "
                    f"the last is not among the {found} it has now; restore its newest copy"
                )

    def require(self, run: str, charges: int, seen: Head | None = None) -> None:
        """Raises unless this ledger holds the run with at least that many reservations, and that head.

        A run that went on in a ledger which has forgotten a part of it would state too small an epsilon.

        Args:
            seen: the newest head that the run has kept outside the ledger.

        Raises:
            PrivacyError: the ledger is missing or new, of another site, older than the run, or rewritten since.
        """
        known = False
        if self.path.exists():
            with self._store.reading() as connection:
                known = find_run(connection, run) is not None
        if not known:
            raise PrivacyError(
                f"the privacy ledger {self.path} does not know run {run}, so what it spent is lost here; "
                "set SECUREFED_HOME to where the run began, or restore the ledger"
            )
        found = self.charges(run)
        if found < charges:
            raise PrivacyError(
                f"the privacy ledger {self.path} holds {found} reservations of run {run}, which had made {charges}; "
                "restore the ledger's newest copy"
            )
        self.check(seen)
