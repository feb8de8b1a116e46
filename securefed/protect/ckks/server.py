"""The server half of CKKS aggregation: it adds ciphertexts as they come and never holds a key.

Memory is one sum, O(d), however many clients there are. With `verified` the ciphertexts pass through
to the key holder, who adds them itself.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError
from securefed.protect.ckks.context import read_context, write_request
from securefed.protect.ckks.keys import Party, Positions
from securefed.protect.ckks.messages import KEY_HOLDER, Step, read, read_ids, write, write_ids
from securefed.protect.ckks.residues import pack
from securefed.protect.ckks.round import CKKSRound
from securefed.protect.ckks.submission import Sum
from securefed.types import SERVER, Collected, Message, Output


class Phase(enum.Enum):
    """What the server waits for."""

    COLLECT = "submit"
    OPEN = "open"
    ENDED = "ended"


class CKKSServer:
    """The server in one round; `advance` says that nobody else will answer.

    Args:
        round: what it knows of the round. party: its identity, the roster, the context's name.
    """

    def __init__(self, round: CKKSRound, party: Party) -> None:
        self._round, self._party = round, party
        self._phase = Phase.COLLECT
        self._positions: Positions | None = None
        self._informed = False
        self._early: list[tuple[int, bytes]] = []
        self._sum: Sum | None = None
        self._refused: dict[int, str] = {}
        self._again: Message | None = None

    def start(self) -> Output:
        """Asks for the context's name, and for which coordinates are encrypted, where it does not know."""
        known = self._party.contexts.get(self._round.plan.set.name)
        if known is not None and self._round.encrypted_share == 1:
            self._begin()
            return Output()
        return self._send(Step.REQUEST, write_request(None if known is None else known.digest, None))

    def receive(self, sender: int, payload: bytes) -> Output:
        """Takes one message; a bad one changes nothing, and a client who sent it is listed with the reason.

        Raises:
            ProtocolError: the round has ended.
        """
        if self._phase is Phase.ENDED:
            raise ProtocolError(f"ckks: round {self._round.base.round} has ended; too late, party {sender}")
        if sender == KEY_HOLDER:
            return self._from_holder(payload)
        if sender not in self._round.base.clients or self._phase is not Phase.COLLECT:
            return Output()  # a stranger's bytes change nothing, and what is late stays out
        if not self._informed:
            self._early.append((sender, payload))
            return Output()
        return self._from_client(sender, payload)

    def advance(self) -> Output:
        """Nobody else will answer: the sum over those who did is opened, or the round ends."""
        if self._phase is Phase.ENDED:
            raise ProtocolError(f"ckks: round {self._round.base.round} has already ended")
        if not self._informed:
            return self._abort("the key holder did not answer the server's request for the context")
        if self._phase is Phase.OPEN and self._again is not None:
            again, self._again = self._again, None
            return Output(send=(again,))
        if self._phase is Phase.OPEN:
            return self._abort("the key holder did not answer step open")
        return self._open()

    # ---------------------------------------------------------------------------------------- clients

    def _from_client(self, sender: int, payload: bytes) -> Output:
        assert self._sum is not None
        try:
            envelope = read(payload, sender, SERVER, self._round, self._party.roster)
            if envelope.step is Step.LEAVE:
                self._leave(sender, bytes(envelope.body))
            elif envelope.step is not Step.SUBMIT:
                raise ProtocolError(
                    f"ckks: the server expects a submission, got {envelope.step.name.lower()}"
                )
            else:
                self._sum.take(sender, envelope.body, add=self._round.trust != "verified")
                self._refused.pop(sender, None)  # garbage first, then a good message: the good one counts
        except ProtocolError as error:
            self._refused[sender] = str(error)
            return self._complete()
        forward = self._round.trust == "verified" and envelope.step is Step.SUBMIT
        passed = (Message(SERVER, KEY_HOLDER, payload),) if forward else ()
        after = self._complete()
        return Output(send=(*passed, *after.send), abort=after.abort)

    def _leave(self, sender: int, reason: bytes) -> None:
        assert self._sum is not None
        if sender in self._sum.clients:
            raise ProtocolError(f"ckks: client {sender} left after it had submitted; what it sent was kept")
        self._refused[sender] = reason.decode("utf-8", "replace")[:300]

    def _complete(self) -> Output:
        """The next step, once everybody has been heard."""
        assert self._sum is not None
        heard = self._sum.clients | self._refused.keys()
        return self._open() if len(heard) == len(self._round.base.clients) else Output()

    def _begin(self) -> None:
        context = self._party.contexts[self._round.plan.set.name]
        self._sum = Sum(self._round, context.digest, self._positions)
        self._informed = True

    # ------------------------------------------------------------------------------------- key holder

    def _from_holder(self, payload: bytes) -> Output:
        try:
            envelope = read(payload, KEY_HOLDER, SERVER, self._round, self._party.roster)
            if envelope.step is Step.CONTEXT and not self._informed:
                return self._take_context(envelope.body)
            if envelope.step is Step.SUM and self._phase is Phase.OPEN:
                return self._finish(envelope.body)
        except ProtocolError as error:
            return self._abort(f"the key holder's answer is refused: {error}")
        if envelope.step is Step.DENY:
            return self._abort(bytes(envelope.body).decode("utf-8", "replace")[:300])
        return Output()  # a second copy changes nothing

    def _take_context(self, body: memoryview) -> Output:
        name = self._round.plan.set.name
        context, self._positions = read_context(
            body, self._round, self._party.contexts.get(name), None, self._party.schemes
        )
        self._party.contexts[name] = context
        self._begin()
        early, self._early = self._early, []
        outputs = [self._from_client(k, payload) for k, payload in early]
        return Output(
            send=tuple(m for o in outputs for m in o.send),
            abort=next((o.abort for o in outputs if o.abort), None),
        )

    def _open(self) -> Output:
        """Asks the key holder to open the sum of those who submitted."""
        assert self._sum is not None
        floor, survivors = self._round.min_survivors, sorted(self._sum.clients)
        if len(survivors) < floor:
            return self._abort(f"{len(survivors)} of the needed {floor} clients submitted (min_survivors)")
        self._phase = Phase.OPEN
        words = b"" if self._sum.words is None else pack(self._sum.words, self._round.plan.set.primes)
        self._sum.words = None
        asked = self._send(Step.OPEN, self._sum.digest, write_ids(survivors), words)
        if (
            self._round.trust == "verified"
        ):  # it may overtake a ciphertext; the holder then waits to be asked again
            self._again = asked.send[0]
        return asked

    def _finish(self, body: memoryview) -> Output:
        """The result, from the opened sum; the one place where the server learns something."""
        assert self._sum is not None
        base = self._round.base
        survivors, rest = read_ids(body, base.clients)
        hidden = self._sum.hidden
        if survivors != tuple(sorted(self._sum.clients)) or len(rest) != 8 * (
            hidden + self._round.secret_weights
        ):
            raise ProtocolError("ckks: the opened sum is of other clients or another size than was asked for")
        values: NDArray[np.float64] = np.frombuffer(rest, "<f8")
        if not np.isfinite(values).all():
            raise ProtocolError("ckks: the opened sum is not finite")
        total = self._sum.merge(values[:hidden]) * self._round.plan.unit
        if self._round.secret_weights:
            weight = float(values[hidden]) * self._round.max_weight
        else:
            weight = sum(self._round.public_weight(k) or 0.0 for k in survivors)
        self._phase = Phase.ENDED
        dropped = {k: "submit" for k in base.clients if k not in survivors and k not in self._refused}
        result = Collected(survivors, total, weight, refused=dict(self._refused), dropped=dropped)
        return Output(result=result)

    # ------------------------------------------------------------------------------------------ sending

    def _abort(self, reason: str) -> Output:
        self._phase = Phase.ENDED
        refusals = "; ".join(f"client {k}: {why}" for k, why in sorted(self._refused.items())[:3])
        return Output(abort=f"{reason} ({refusals})" if refusals else reason)

    def _send(self, step: Step, *parts: bytes) -> Output:
        payload = write(step, SERVER, KEY_HOLDER, self._round, self._party.identity, parts)
        return Output(send=(Message(SERVER, KEY_HOLDER, payload),))

    def __repr__(self) -> str:
        return f"CKKSServer(round {self._round.base.round}, {self._phase.value})"
