"""One client's ciphertexts as they arrive, and the running sum of them: at the server, or at the key holder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError
from securefed.protect.ckks.keys import Positions
from securefed.protect.ckks.messages import DIGEST
from securefed.protect.ckks.residues import Words, add_into, size_of, unpack
from securefed.protect.ckks.round import CKKSRound


class Sum:
    """The sum of submissions, each checked in full before it is added: it could not be taken out again.

    Attributes:
        digest: the context that all of them must name.
        clients: who is inside.
        words: the encrypted part, None before the first. clear: the part in clear, float64.
        hidden: how many of the update's coordinates are encrypted.
    """

    def __init__(self, round: CKKSRound, digest: bytes, positions: Positions | None) -> None:
        self.round, self.digest, self.positions = round, digest, positions
        self.clients: set[int] = set()
        self.words: Words | None = None
        self.hidden = round.base.size if positions is None else int(positions.size)
        self.clear: NDArray[np.float64] = np.zeros(round.base.size - self.hidden)

    @property
    def ciphertexts(self) -> int:
        """Of one client."""
        return -(-(self.hidden + self.round.secret_weights) // self.round.plan.set.degree)

    def take(self, client: int, body: memoryview, *, add: bool) -> None:
        """Adds a submission.

        Args:
            add: False to check it only, where somebody else adds.

        Raises:
            ProtocolError: a second one, of another context or size, or with a value no ciphertext has.
        """
        chosen = self.round.plan.set
        where = f"ckks: client {client}, submit"
        if client in self.clients:
            raise ProtocolError(f"{where}: duplicate submission; the first was kept")
        if len(body) < DIGEST or bytes(body[:DIGEST]) != self.digest:
            raise ProtocolError(f"{where}: encrypted under another context than this run's")
        middle = DIGEST + 4 * self.clear.size
        expected = middle + size_of(self.ciphertexts, 2, chosen.degree, chosen.primes)
        if len(body) != expected:
            raise ProtocolError(
                f"{where}: {self.ciphertexts} ciphertexts of the {chosen.name} parameters have {expected} bytes, found "
                f"{len(body)}: truncated, or made with another set"
            )
        clear = np.frombuffer(body[DIGEST:middle], "<f4")
        if not (np.abs(clear) <= 1).all():  # false for NaN as well
            raise ProtocolError(f"{where}: a coordinate in clear is not finite or beyond value_range")
        words = unpack(body[middle:], self.ciphertexts, 2, chosen.degree, chosen.primes)
        self.clients.add(client)
        self.clear += clear
        if add:
            self.add(words)

    def add(self, words: Words) -> None:
        """Adds checked words to the encrypted part."""
        if self.words is None:
            self.words = words
        else:
            add_into(self.words, words, self.round.plan.set.primes)

    def merge(self, opened: NDArray[np.float64]) -> NDArray[np.float64]:
        """The whole sum, float64 (d,), from its opened part and the part in clear; in units of a slot."""
        total = np.empty(self.round.base.size)
        if self.positions is None:
            total[:] = opened
            return total
        hidden = np.zeros(total.size, bool)
        hidden[self.positions] = True
        total[hidden], total[~hidden] = opened, self.clear
        return total
