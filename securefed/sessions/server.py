"""The server over a whole run: offers a round, hears who takes part or refuses, plays it, tells how it ended.

Sans-IO: it has no socket and no clock. Whoever carries the bytes says when nobody is waited for any longer
(`advance`, at a deadline) and when a connection is gone (`lost`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.crypto.identity import Identity, Roster
from securefed.errors import PrivacyError, ProtocolError
from securefed.layout import vector_digest
from securefed.privacy.chain import Head
from securefed.privacy.heads import Witness, heads_digest
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
from securefed.types import SERVER, Awaiting, Joinable, Message, Output, RoundParameters, Vector
from securefed.types import ServerSession as RoundSession

MOST_ADVANCES = 16
"""No protocol has as many steps; more in a row mean a session that cannot end."""


class ServerSession:
    """The server's many rounds: `begin`, then `receive`, `lost`, `advance` until a result or an abort comes.

    Args:
        run: its name; a new one for each run. size: d.
        identity, roster: its own key, and everybody's.
        terms: signed in every offer; the clients' sites hold their policies against them.
        protection: what the clients speak too.
        layout: names what the coordinates are (`Layout.digest`, hex).
        secret_weights: each client's weight travels inside the sum; else all weigh 1.
        witness: heads of the clients' ledgers seen so far; store `witness.to_json()` with the run's state.

    Raises:
        PrivacyError: terms that cannot hold, such as a finite epsilon without noise.
        ProtocolError: another key than the roster's, or a protection that sessions do not carry.
    """

    def __init__(
        self,
        run: str,
        size: int,
        *,
        identity: Identity,
        roster: Roster,
        terms: Terms,
        protection: Joinable,
        layout: str = "00" * 32,
        secret_weights: bool = False,
        witness: Witness | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        if identity.public != roster.server:
            raise ProtocolError("the server of the roster has another key than this identity")
        if terms.protection != protection.name:
            raise ProtocolError(f'the terms say "{terms.protection}", the protection is "{protection.name}"')
        if terms.fault:
            raise PrivacyError(f"terms: {terms.fault}")
        self.run, self.size, self.terms = run, size, terms
        self.witness = witness or Witness()
        self.refusals: dict[int, Refusal] = {}
        self._identity, self._roster, self._layout = identity, roster, layout
        self._protection = joined(protection, SERVER, identity, roster, entropy or SystemEntropy())
        self._secret_weights, self._tag = secret_weights, run_tag(run)
        self._last, self._model = -1, np.empty(0, np.float32)
        self._offered = self._begun = b""
        self._answers: dict[int, tuple[bytes, Answer]] = {}
        self._asked: set[int] = set()
        self._refused: dict[int, str] = {}
        self._out: dict[int, str] = {}
        self._lost: set[int] = set()
        self._shown: dict[int, dict[int, int]] = {}
        self._heads: dict[int, Head] = {}
        self._round: RoundSession | None = None
        self._cohort: tuple[int, ...] = ()
        self._open = False

    def __repr__(self) -> str:
        return f"ServerSession(run={self.run!r}, round={self._last}, step={self.step})"

    @property
    def step(self) -> str:
        """ "idle", "offer", or the step of the round's protocol."""
        if not self._open:
            return "idle"
        if self._round is None:
            return "offer"
        step = getattr(self._round, "step", None)
        return "submit" if step is None else str(step.name.lower())

    @property
    def awaited(self) -> frozenset[int]:
        """Whose answers the step still lacks, without those whose connection is gone."""
        if not self._open:
            return frozenset()
        if self._round is None:
            return frozenset(self._asked - self._lost)
        inner = self._round.awaited if isinstance(self._round, Awaiting) else frozenset(self._cohort)
        return inner - self._lost

    def begin(self, round: int, model: Vector, clients: Iterable[int]) -> Output:
        """Offers a round to these clients, whoever of the roster is connected.

        Args:
            round: above all earlier ones; a number is used once, even where its round ended in an abort.

        Raises:
            ProtocolError: a round is open, the number was used, or the model has another shape.
        """
        if self._open or round <= self._last:
            raise ProtocolError(
                f"session: round {round} cannot begin; round {self._last} is open, or came later"
            )
        if model.shape != (self.size,):
            raise ProtocolError(
                f"session: a model of shape ({self.size},) was announced, found {model.shape}"
            )
        asked = sorted(set(clients) & self._roster.clients.keys())
        self._last, self._open, self._round = round, True, None
        self._asked, self._lost, self._answers = set(asked), set(), {}
        self._refused, self._out = {}, {}
        self._model, self.refusals = np.array(model, np.float32), {}
        since = {k: self._since(k) for k in asked}
        body = Offer(self.terms, bytes.fromhex(self._layout), since, self._model).encode()
        payload = self._seal(Kind.OFFER, body)
        self._offered = unseal(payload).digest
        output = Output(send=tuple(Message(SERVER, k, payload) for k in asked))
        return output if asked else self._start()

    def receive(self, sender: int, payload: bytes) -> Output:
        """One message of the client that the transport knows as `sender`; a bad one changes nothing."""
        if not self._open or sender not in self._roster.clients:
            return Output()  # late, or a stranger's
        try:
            sealed = unseal(payload)
            if sealed.round < self._last:
                return Output()  # of an earlier round: too late
            if (sealed.sender, sealed.round, sealed.run) != (sender, self._last, self._tag):
                raise ProtocolError(f"session: not a message of client {sender} for round {self._last}")
            sealed.check_signature(self._roster)
            output = self._take(sealed)
        except ProtocolError as error:
            self._refused[sender] = str(error)
            return Output()
        return self._go_on(output)

    def lost(self, client: int) -> Output:
        """The client's connection is gone: in this round nobody waits for it any longer."""
        if not self._open:
            return Output()
        self._lost.add(client)
        return self._go_on(Output())

    def advance(self) -> Output:
        """The deadline has passed: whoever has not answered this step is out of the round."""
        if not self._open:
            raise ProtocolError(f"session: round {self._last} has ended")
        return self._go_on(self._start() if self._round is None else self._wrap(self._round.advance()))

    def close(self, clients: Iterable[int], model: Vector | None = None) -> Output:
        """Tells these clients that the run is over, with the final model if they shall have it."""
        self._open = False
        body = b"" if model is None else np.ascontiguousarray(model, "<f4").tobytes()
        payload = self._seal(Kind.CLOSE, body)
        return Output(send=tuple(Message(SERVER, k, payload) for k in sorted(clients)))

    # ----------------------------------------------------------------------------------- a round

    def _take(self, sealed: Sealed) -> Output:
        if sealed.kind is Kind.ANSWER and self._round is None:
            return self._hear(sealed)
        if sealed.kind is Kind.INPUT and self._round is not None and sealed.sender in self._cohort:
            if sealed.body[:32] != self._begun:
                raise ProtocolError(f"session: client {sealed.sender} plays another round than this")
            heads = {k: head.count for k, head in self._heads.items()}
            self._shown.setdefault(sealed.sender, {}).update(heads)  # it has read the round's beginning
            return self._wrap(self._round.receive(sealed.sender, sealed.body[32:]))
        raise ProtocolError(f"session: {sealed.kind.name.lower()} does not belong into step {self.step}")

    def _hear(self, sealed: Sealed) -> Output:
        client, answer = check_answer(sealed.payload, self._last, self._tag, self._offered, self._roster)
        if client not in self._asked:
            raise ProtocolError(f"session: client {client} has answered already, or was not asked")
        self._asked.discard(client)
        if answer.refusal is not None:
            self.refusals[client] = Refusal(client, self._last, *answer.refusal, evidence=sealed.payload)
            self._out[client] = "refused: {2} ({1}, {0})".format(*answer.refusal)
        elif why := self.witness.judge(client, answer.head, answer.start, answer.links):
            self._out[client] = why
        else:
            self._answers[client] = sealed.payload, answer
        return Output()

    def _since(self, client: int) -> int:
        """The oldest head of this client that anybody who is asked has seen last: its proof then serves them all."""
        seen = [shown[client] for k, shown in self._shown.items() if k in self._asked and client in shown]
        return min([self.witness.since(client), *seen])

    def _go_on(self, output: Output) -> Output:
        """Ends every step that nobody is waited for in any longer."""
        for _ in range(MOST_ADVANCES):
            if not self._open or output.result is not None or output.abort is not None or self.awaited:
                return output
            more = self._start() if self._round is None else self._wrap(self._round.advance())
            output = replace(more, send=(*output.send, *more.send))
        raise ProtocolError(f"session: round {self._last} did not end after {MOST_ADVANCES} steps")

    def _start(self) -> Output:
        """The cohort is who has said yes; its protocol starts."""
        cohort = self._cohort = tuple(sorted(self._answers.keys() - self._lost))
        if len(cohort) < max(1, self.terms.min_cohort):
            why = "; ".join(
                f"client {k}: {reason}" for k, reason in sorted({**self._refused, **self._out}.items())[:5]
            )
            return self._end(
                f"{len(cohort)} clients take part, the terms promise {self.terms.min_cohort}"
                + (f" ({why})" if why else "")
            )
        answers = [self._answers[k] for k in cohort]
        body = Begin(self._offered, self._secret_weights, [payload for payload, _ in answers]).encode()
        payload = self._seal(Kind.BEGIN, body)
        self._begun = unseal(payload).digest
        heads = {k: a.head for k, (_, a) in zip(cohort, answers, strict=True) if a.head is not None}
        base = RoundParameters(
            run=self._tag.hex(),
            round=self._last,
            clients=cohort,
            size=self.size,
            layout_digest=self._layout,
            model_digest=vector_digest(self._model),
            weights=None if self._secret_weights else (1.0,) * len(cohort),
            ledgers=heads_digest(heads),
        )
        self._heads = heads
        try:
            self._round = self._protection.server(base)
            started = self._wrap(self._round.start())
        except ProtocolError as error:
            return self._end(str(error))
        return replace(started, send=(*(Message(SERVER, k, payload) for k in cohort), *started.send))

    def _wrap(self, output: Output) -> Output:
        send = tuple(replace(m, payload=self._seal(Kind.INPUT, m.payload)) for m in output.send)
        if output.abort is not None:
            return self._end(output.abort, send)
        if output.result is None:
            return Output(send=send)
        bad = {k: why for k, why in self._refused.items() if k not in output.result.survivors}
        refused = {**bad, **output.result.refused, **self._out}
        ended = self._end("", send)
        return replace(ended, result=replace(output.result, refused=refused), abort=None)

    def _end(self, reason: str, send: tuple[Message, ...] = ()) -> Output:
        self._open = False
        payload = self._seal(Kind.END, reason.encode()[:2000])
        told = tuple(Message(SERVER, k, payload) for k in self._cohort if k not in self._lost)
        return Output(send=(*send, *told), abort=reason)

    def _seal(self, kind: Kind, body: bytes) -> bytes:
        return seal(kind, SERVER, self._last if self._last >= 0 else 0, self._tag, body, self._identity)
