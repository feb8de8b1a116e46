"""What outlives a round: identities, transport keys, and the memory of rounds already taken part in."""

from __future__ import annotations

from dataclasses import dataclass, field

from securefed.crypto.identity import Identity, Roster
from securefed.crypto.keys import KeyPair
from securefed.errors import ProtocolError


@dataclass(eq=False)
class Party:
    """One party's long-lived secrets; `id` is a client's index or `SERVER`.

    A client that is restarted should come back with a new transport key or with its memory of rounds;
    mask keys and sharings are made for one round and are not here.
    """

    id: int
    identity: Identity = field(repr=False)
    transport: KeyPair = field(repr=False)
    roster: Roster = field(repr=False)
    met: set[tuple[int, bytes]] = field(default_factory=set, repr=False)
    """(peer, transport key) whose signature has been checked; what they tag or seal needs no other check."""
    server_transport: bytes | None = None
    """The server's transport key, once it has signed it."""
    _shared: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    _rounds: dict[str, int] = field(default_factory=dict)

    def shared(self, public: bytes) -> bytes:
        """X25519 of the transport keys with a peer, computed once a run.

        Raises:
            ProtocolError: a public key of low order.
        """
        found = self._shared.get(public)
        if found is None:
            found = self._shared[public] = self.transport.exchange(public)
        return found

    def begin(self, run: str, round: int) -> None:
        """Notes that this round is being played.

        Raises:
            ProtocolError: it, or a later one, has been: a server that replays a round is refused.
        """
        last = self._rounds.get(run, -1)
        if round <= last:
            raise ProtocolError(
                f"server: round {round} was proposed after round {last} had been played; a replay"
            )
        self._rounds[run] = round
