"""One client over a whole run: it holds its site's policy and ledger against the server, round by round.

Adversary: the server, as far as the round's protection resists it (SECURITY.md). Every message of the server
is signed; what is not is refused and changes nothing. No job can lower this site's policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.crypto.identity import Identity, Roster
from securefed.errors import PolicyRefusal, ProtocolError
from securefed.layout import vector_digest
from securefed.privacy.heads import Witness, heads_digest
from securefed.privacy.ledger import Ledger
from securefed.privacy.policy import Asked, Policy, load_policy
from securefed.sessions.joining import joined
from securefed.sessions.messages import (
    Answer,
    Begin,
    Kind,
    Offer,
    Refusal,
    Sealed,
    Terms,
    check_answer,
    run_tag,
    seal,
    unseal,
)
from securefed.types import SERVER, Joinable, Output, RoundParameters, Update, Vector
from securefed.types import ClientSession as RoundSession


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A round that this client takes part in: train from `model`, then `ClientSession.submit` new minus old.

    Attributes:
        terms: what the server signed; what is sent must carry the noise of `terms.noise_multiplier`.
        cohort: who else takes part.
        suspects: client -> why its privacy ledger cannot be the one it showed in an earlier round.
    """

    round: int
    model: Vector = field(repr=False)
    terms: Terms
    cohort: tuple[int, ...]
    suspects: Mapping[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What a client answers to an event.

    Attributes:
        send: messages for the server, in order.
        work: a round has begun and waits for this client's update.
        refused: what this client has just refused, signed, in `send`.
        abort: why this client left the round: what the server or a peer was caught at, by name.
        ended: how the round ended, in the server's words ("" for a result).
        closed: the run is over; `model` is the final model.
    """

    send: tuple[bytes, ...] = ()
    work: Work | None = None
    refused: Refusal | None = None
    abort: str | None = None
    ended: str | None = None
    closed: bool = False
    model: Vector | None = field(default=None, repr=False)


class ClientSession:
    """A client's many rounds: `receive` every message of the server, `submit` once for each `Reply.work`.

    Args:
        client: its number in the roster. size: d, of the model and of an update.
        identity, roster: pinned before the run, by a way that the server does not control.
        protection: this client's own; an offer of another is refused, and its floors hold.
        layout: names what the coordinates are (`Layout.digest`, hex); all parties give the same.
        policy: this site's limits; by default those of `policy.toml`, read again for each offer.
        ledger: whose head is shown to the others each round; None for a site without one.
        run: the run to take part in; by default the first that the roster's server offers.
        entropy: of keys and masks.

    Raises:
        ProtocolError: the protection cannot be played on one party's machine.
    """

    def __init__(
        self,
        client: int,
        size: int,
        *,
        identity: Identity,
        roster: Roster,
        protection: Joinable,
        layout: str = "00" * 32,
        policy: Policy | None = None,
        ledger: Ledger | None = None,
        run: str | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self.client, self.size, self._layout = client, size, layout
        self._identity, self._roster, self._entropy = identity, roster, entropy or SystemEntropy()
        if roster.clients.get(client) != identity.public:
            raise ProtocolError(f"client {client} of the roster has another key than this identity")
        self._name = protection.name
        self._protection = joined(protection, client, identity, roster, self._entropy)
        self._policy, self._ledger, self._run = policy, ledger, None if run is None else run_tag(run)
        self._last = -1
        self._offer: tuple[Sealed, Offer, bytes] | None = None
        self._round: RoundSession | None = None
        self._begun = b""
        self.witness = Witness()
        self.closed = False

    def __repr__(self) -> str:
        return f"ClientSession(client={self.client}, round={self._last})"

    def receive(self, payload: bytes) -> Reply:
        """The answer to one message of the server.

        Raises:
            ProtocolError: not a message that the server signed for this run and this point of it. Nothing has
                changed then, and the caller may go on listening.
        """
        sealed = unseal(payload)
        if sealed.sender != SERVER:
            raise ProtocolError(f"session: client {self.client} listens to the server only")
        if self._run is not None and sealed.run != self._run:
            raise ProtocolError("session: a message of another run")
        sealed.check_signature(self._roster)
        if self.closed:
            raise ProtocolError("session: the run is over")
        if sealed.kind is Kind.OFFER:
            return self._answer(sealed)
        if sealed.kind is Kind.CLOSE:
            self.closed, self._round = True, None
            return Reply(closed=True, model=_model(sealed.body, self.size))
        if sealed.round != self._last or self._offer is None:
            raise ProtocolError(
                f"session: a message of round {sealed.round}, this client is in round {self._last}"
            )
        if sealed.kind is Kind.BEGIN:
            return self._begin(sealed)
        if sealed.kind is Kind.END:
            self._round = None
            return Reply(ended=sealed.body.decode("utf-8", "replace"))
        if self._round is None or sealed.kind is not Kind.INPUT:
            raise ProtocolError(
                f"session: {sealed.kind.name.lower()} came before the round had begun, or after it"
            )
        return self._wrap(self._round.receive(sealed.body))

    def submit(self, vector: Vector, weight: float = 1.0) -> Reply:
        """The update of the round that `Reply.work` announced: new minus old, float32 (d,).

        Raises:
            ProtocolError: no round waits for one (it may be over: drop the update), or another shape.
        """
        if self._round is None:
            raise ProtocolError("session: no round waits for an update; it has ended, or was refused")
        update = Update(self.client, self._last, np.asarray(vector, np.float32), weight)
        return self._wrap(self._round.submit(update))

    # ----------------------------------------------------------------------------------- a round

    def _answer(self, sealed: Sealed) -> Reply:
        """Yes with the ledger's head, or a signed no that names the line."""
        if sealed.round <= self._last:
            raise ProtocolError(
                f"session: round {sealed.round} was offered after round {self._last}; a replay"
            )
        offer = Offer.decode(sealed.body, self.size)
        if not np.isfinite(offer.model).all():
            raise ProtocolError("session: the server's model is not finite")
        self._run, self._last, self._round, self._offer = sealed.run, sealed.round, None, None
        self._begun = b""
        no = self._forbidden(offer, sealed.round)
        if no is not None:
            answer = Answer(sealed.digest, refusal=no)
        elif self._ledger is None:
            answer = Answer(sealed.digest)
        else:
            answer = Answer(sealed.digest, *self._ledger.proof(offer.since.get(self.client, 0)))
        payload = self._seal(Kind.ANSWER, answer.encode())
        if no is not None:
            return Reply((payload,), refused=Refusal(self.client, sealed.round, *no, evidence=payload))
        self._offer = sealed, offer, payload
        return Reply((payload,))

    def _forbidden(self, offer: Offer, round: int) -> tuple[str, str, str] | None:
        """(key, file:line, reason) of the first limit that the terms break."""
        t = offer.terms
        if t.protection != self._name:
            return (
                "protection",
                "the client's session",
                f'this client speaks "{self._name}", not "{t.protection}"',
            )
        if t.fault:
            return "terms", "the server's own terms", t.fault
        if offer.layout != bytes.fromhex(self._layout):
            return "layout", "the client's session", "the server's numbers are of another layout"
        if round >= t.rounds:
            return "max_rounds", "the server's own terms", f"round {round} of a run of {t.rounds}"
        asked = Asked(
            epsilon=math.inf if t.epsilon is None else t.epsilon,
            delta=t.delta,
            noise_multiplier=t.noise_multiplier,
            protection=t.protection,
            cohort=t.min_cohort,
            rounds=t.rounds,
            capped=False,
        )
        try:
            (load_policy() if self._policy is None else self._policy).check(asked)
        except PolicyRefusal as refusal:
            return refusal.key, refusal.place, refusal.words
        return None

    def _begin(self, sealed: Sealed) -> Reply:
        """Checks who takes part, and what all have signed of their ledgers; the round's own protocol starts."""
        if self._offer is None or self._begun:
            raise ProtocolError(f"session: round {sealed.round} has begun already, or was refused")
        offered, offer, mine = self._offer
        begin = Begin.decode(sealed.body)
        if begin.offer != offered.digest:
            raise ProtocolError("session: the server begins another round than it offered")
        checked = [
            check_answer(a, sealed.round, sealed.run, begin.offer, self._roster) for a in begin.answers
        ]
        answers = dict(checked)
        if len(answers) != len(checked) or mine not in begin.answers:
            raise ProtocolError("session: this client's answer is missing, or another is there twice")
        if any(answer.refusal is not None for answer in answers.values()):
            raise ProtocolError("session: the server counts a client that refused")
        if len(answers) < offer.terms.min_cohort:
            raise ProtocolError(
                f"session: the round begins with {len(answers)} clients, its terms promise {offer.terms.min_cohort}"
            )
        cohort = tuple(sorted(answers))
        base = RoundParameters(
            run=sealed.run.hex(),
            round=sealed.round,
            clients=cohort,
            size=self.size,
            layout_digest=self._layout,
            model_digest=vector_digest(offer.model),
            weights=None if begin.secret_weights else (1.0,) * len(cohort),
            ledgers=heads_digest({k: a.head for k, a in answers.items() if a.head is not None}),
        )
        suspects = {
            k: why
            for k, a in sorted(answers.items())
            if (why := self.witness.judge(k, a.head, a.start, a.links)) is not None
        }
        self._begun = (
            sealed.digest
        )  # once: sums of one update over two cohorts would differ by who is left out
        self._round = self._protection.client(base, self.client, self._entropy)
        started = self._wrap(self._round.start())
        work = Work(sealed.round, offer.model.copy(), offer.terms, cohort, suspects)
        return Reply(started.send, work=work)

    def _wrap(self, output: Output) -> Reply:
        send = tuple(self._seal(Kind.INPUT, self._begun + message.payload) for message in output.send)
        if output.abort is not None:
            self._round = None
        return Reply(send, abort=output.abort)

    def _seal(self, kind: Kind, body: bytes) -> bytes:
        assert self._run is not None
        return seal(kind, self.client, self._last, self._run, body, self._identity)


def _model(body: bytes, size: int) -> Vector | None:
    if not body:
        return None
    if len(body) != 4 * size:
        raise ProtocolError(f"session: the final model has {len(body)} bytes, expected {4 * size}")
    return np.frombuffer(body, "<f4").astype(np.float32)
