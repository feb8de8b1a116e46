"""A protection as one party plays it on its own machine."""

from __future__ import annotations

from securefed.crypto.entropy import Entropy
from securefed.crypto.identity import Identity, Roster
from securefed.errors import ProtocolError
from securefed.types import Joinable, Protection


def joined(
    protection: Joinable, party: int, identity: Identity, roster: Roster, entropy: Entropy
) -> Protection:
    """The protection for `SERVER` or a client's id.

    Raises:
        ProtocolError: it needs more parties than a server and clients, or a ceremony of all of them.
    """
    if not isinstance(protection, Joinable):
        raise ProtocolError(
            f"sessions carry protections of a server and its clients; {protection.name} needs another party: "
            "drive its own halves (sf.CKKSClient, sf.CKKSServer, sf.CKKSKeyHolder)"
        )
    return protection.join(party, identity, roster, entropy)
