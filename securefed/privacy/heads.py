"""Heads of other parties' ledgers, kept by whoever deals with them: who shows less than before is named."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from securefed.privacy.chain import Head, follow

_DOMAIN = b"securefed ledger heads v1"


def heads_digest(heads: Mapping[int, Head]) -> str:
    """What a round's parameters say of its clients' ledgers: hex, empty where there are none."""
    if not heads:
        return ""
    rows = "\n".join(f"{client} {heads[client]}" for client in sorted(heads))
    return hashlib.sha256(_DOMAIN + rows.encode()).hexdigest()


class Witness:
    """The newest head of each client that this party has seen; plain data, to be stored with a run."""

    def __init__(self, seen: Mapping[int, Head] | None = None) -> None:
        self.seen: dict[int, Head] = dict(seen or {})

    def since(self, client: int) -> int:
        """From which entry on this client has to show its links."""
        return self.seen[client].count if client in self.seen else 0

    def judge(self, client: int, head: Head | None, start: int, links: Sequence[bytes]) -> str | None:
        """Keeps a client's new head, or says why it cannot be its old ledger grown on.

        Args:
            head: what the client shows now; None where it keeps no ledger.
            start, links: its proof, the links after its first `start`. One that begins after the head that was seen
                here proves nothing: whoever asks for proofs asks from the oldest head that a party has seen.
        """
        old = self.seen.get(client)
        if old is None:
            if head is not None:
                self.seen[client] = head
            return None
        if head is None:
            return f"client {client} kept a privacy ledger with {old.count} entries and shows none now"
        if start > old.count:
            return f"client {client} does not show its privacy ledger's links since entry {old.count}, which was seen"
        if head.count < old.count:
            return f"client {client}'s privacy ledger was cut short: {old.count} entries were seen, it shows {head.count}"
        if follow(old, links[old.count - start :]) != head:
            return (
                f"client {client}'s privacy ledger was rolled back or rewritten: its {head.count} entries do not go on "
                f"from the {old.count} that were seen"
            )
        self.seen[client] = head
        return None

    def to_json(self) -> dict[str, str]:
        """Client -> head as text."""
        return {str(client): str(head) for client, head in sorted(self.seen.items())}

    @classmethod
    def from_json(cls, tree: Mapping[str, str]) -> Witness:
        """The inverse of `to_json`. Raises ValueError where an entry is no head."""
        return cls({int(client): Head.parse(head) for client, head in tree.items()})
