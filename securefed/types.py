"""The vocabulary: what passes between the rooms of the house. No logic lives here.

An *update* is always new minus old, float32, shape (d,). `n` clients form a round's cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from securefed.crypto.entropy import Entropy
    from securefed.crypto.identity import Identity, Roster
    from securefed.factors import AdapterSpace

Vector = NDArray[np.float32]
"""A flat model or update, float32, shape (d,)."""

Reveals = Literal["updates", "sum", "group sums"]
"""What a protection lets the server see of a round."""

Adversary = Literal["server", "client", "outsider"]

SERVER = -1
"""The server's id where messages name their sender or receiver; clients are 0, 1, 2, ..."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One client's contribution to one round.

    Attributes:
        client: the client's index, 0 <= client.
        round: the round it was trained in.
        vector: new minus old, float32 (d,); under DP it already carries its noise.
        weight: public weight (n_k without DP; a public constant under DP).
        private: True if the vector is the output of a DP mechanism recorded in the ledger.
        rows: float32 (b, d), what the vector is the sum of, for a mechanism that bounds and noises each row by
            itself before anything leaves (`Codec.encode`); None for every other update.
        bit: where the clip moves, +1/2 if the update's norm was within it, else -1/2, with its share of the noise
            if that is a real number; it travels behind the vector.
    """

    client: int
    round: int
    vector: Vector = field(repr=False)
    weight: float = 1.0
    private: bool = False
    rows: Vector | None = field(default=None, repr=False)
    bit: float | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RoundParameters:
    """What every party of one round must agree on before it takes part; all of it is public.

    Attributes:
        run: the run's identity.
        round: 0-based.
        clients: the cohort, ascending.
        size: d, the number of coordinates of an update.
        layout_digest: names, order and shapes of those coordinates (`Layout.digest`).
        model_digest: the global model the cohort trains from (`layout.vector_digest`).
        weights: the clients' weights in their order where they are public constants (under DP always);
            None where a weight is the client's own secret or travels with its update.
        ledgers: digest over the heads of the cohort's privacy ledgers (`privacy.heads.heads_digest`), hex; empty
            where nobody keeps one. Whatever is signed in the round is signed over it.
    """

    run: str
    round: int
    clients: tuple[int, ...]
    size: int
    layout_digest: str
    model_digest: str
    weights: tuple[float, ...] | None = None
    ledgers: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes from one party to another; the server is `SERVER`."""

    sender: int
    receiver: int
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class GroupSum:
    """One group's sum: its survivors ascending, sum of weight x vector float64 (d,), sum of their weights."""

    members: tuple[int, ...]
    total: NDArray[np.float64] = field(repr=False)
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """What the server holds when a round's protocol has ended.

    Attributes:
        survivors: clients whose input is inside, ascending.
        total: sum over survivors of weight x vector, float64 (d,).
        weight: sum of the survivors' weights.
        updates: each survivor's own vector, only where the protection reveals updates.
        weights: each survivor's weight, only where the protection reveals updates.
        refused: client -> reason, for input that was refused (non-finite, wrong shape, replay ...).
        bytes_up: client -> bytes sent to the server. bytes_down: client -> bytes received.
        dropped: client -> name of the step it did not answer, where the protection has steps.
        clipped_share: of all survivors' coordinates, the share that fixed point clipped; None where
            the protection has no fixed point.
        groups: group number -> its sum, ascending, only where the protection reveals group sums.
    """

    survivors: tuple[int, ...]
    total: NDArray[np.float64] = field(repr=False)
    weight: float
    updates: Mapping[int, Vector] | None = field(default=None, repr=False)
    weights: Mapping[int, float] | None = None
    refused: Mapping[int, str] = field(default_factory=dict)
    bytes_up: Mapping[int, int] = field(default_factory=dict)
    bytes_down: Mapping[int, int] = field(default_factory=dict)
    dropped: Mapping[int, str] = field(default_factory=dict)
    clipped_share: float | None = None
    groups: Mapping[int, GroupSum] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Output:
    """What a session answers to an event: messages to carry, and at its end a result or an abort."""

    send: tuple[Message, ...] = ()
    result: Collected | None = None
    abort: str | None = None


class ClientSession(Protocol):
    """The client half of one round of a protection: bytes in, bytes out; no socket, clock or thread."""

    def start(self) -> Output: ...

    def receive(self, payload: bytes) -> Output: ...

    def submit(self, update: Update) -> Output:
        """The client's training is done; this is its input."""
        ...


class ServerSession(Protocol):
    """The server half. `advance` is the engine saying that nobody else will answer this step."""

    def start(self) -> Output: ...

    def receive(self, sender: int, payload: bytes) -> Output: ...

    def advance(self) -> Output: ...


@runtime_checkable
class Protection(Protocol):
    """How updates travel, and what the server sees of them (DESIGN decision 1)."""

    @property
    def name(self) -> str: ...

    @property
    def reveals(self) -> Reveals: ...

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> ClientSession: ...

    def server(self, parameters: RoundParameters) -> ServerSession: ...


@runtime_checkable
class PerRun(Protocol):
    """A protection whose parties keep identities and keys for a whole run: it is opened once, then used.

    The component itself is a frozen dataclass of configuration and holds no secret.
    """

    def open(self, run: str, clients: Sequence[int], entropy: Entropy) -> Protection:
        """The protection with fresh keys for these clients and their server."""
        ...


@runtime_checkable
class Joinable(Protocol):
    """A protection that one party can run alone on its own machine, `securefed.sessions`."""

    @property
    def name(self) -> str: ...

    def join(self, party: int, identity: Identity, roster: Roster, entropy: Entropy) -> Protection:
        """The protection as this party (`SERVER`, or a client's id) plays it for a whole run."""
        ...


@runtime_checkable
class Awaiting(Protocol):
    """A server session that says whose answers its step still lacks, so that nobody is waited for in vain."""

    @property
    def awaited(self) -> frozenset[int]: ...


class HelperSession(Protocol):
    """One round of a party that is neither client nor server, such as the holder of a decryption key."""

    def start(self) -> Output: ...

    def receive(self, sender: int, payload: bytes) -> Output: ...


@runtime_checkable
class Assisted(Protocol):
    """A protection that needs more parties than clients and server; ids below `SERVER` are theirs."""

    def helpers(self, parameters: RoundParameters, entropy: Entropy) -> Mapping[int, HelperSession]:
        """Party id -> its session of this round."""
        ...


@runtime_checkable
class CohortBound(Protocol):
    """A protection that cannot carry every cohort; the config asks before anything is read."""

    def check_cohort(self, n: int, largest_weight: float | None) -> None:
        """Raises ProtocolError where n clients, or a weight (None: 1 or public), do not fit."""
        ...


@runtime_checkable
class NoiseCarrying(Protocol):
    """A protection whose sums may carry noise that the clients share."""

    def noise_floor(self, n: int) -> tuple[int, int]:
        """(fewest survivors of a released sum, of those assumed to collude) of a cohort (or group) of n."""
        ...


@runtime_checkable
class Describable(Protocol):
    """A protection that has more to say in a report than what it reveals."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Heading -> sentence: what it assumes, what it does not hide, how exact it is."""
        ...


@runtime_checkable
class CohortDescribable(Protocol):
    """A protection whose promises have numbers that follow from the cohort."""

    def facts_of(self, n: int) -> Mapping[str, str]:
        """Heading -> sentence, for n clients."""
        ...


@runtime_checkable
class GroupRevealing(Protocol):
    """A protection that reveals group sums: a rule's rows are groups, and everybody is in one, every round."""

    def rows(self, n: int) -> int:
        """How many groups n clients make."""
        ...


@runtime_checkable
class Costed(Protocol):
    """A protection whose cost and error follow from the cohort and d: said before a run starts."""

    def cost(self, n: int, d: int, largest_weight: float | None) -> Sequence[str]:
        """Lines for people: what one client sends, the expected error, what stays in clear.

        Raises:
            ProtocolError: this cohort cannot be carried.
        """
        ...


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What a robust rule may read beside the updates.

    Attributes:
        round: 0-based. clients: ids of the rows, in row order. weights: public weights, in row order.
        layout_digest: which coordinates the rows hold (a rule with memory keeps one state per layout).
        root_update: the server's own update on trusted data, for rules that need one.
        generator: seeded randomness of the experiment, for random rules.
        space: how to read an update of adapters, for rules that measure distances in product space.
    """

    round: int
    clients: tuple[int, ...]
    weights: tuple[float, ...]
    layout_digest: str
    root_update: torch.Tensor | None = None
    generator: torch.Generator | None = None
    space: AdapterSpace | None = None


@runtime_checkable
class Aggregator(Protocol):
    """A rule (n, d) -> (d,). `needs` says what it must see; the config compares it with `reveals`."""

    @property
    def needs(self) -> Reveals: ...

    def __call__(self, updates: torch.Tensor) -> torch.Tensor: ...

    def step(self, updates: torch.Tensor, context: RoundContext, state: Any) -> tuple[torch.Tensor, Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Exactly what one adversary saw of one round, built from the transcript (DESIGN decision 2).

    `updates` is empty where the protection hid them; `total` is the sum the server decoded; `groups` are
    the sums of groups, where the protection reveals those (`securefed.views` makes a view of a round).
    """

    adversary: Adversary
    round: int
    reveals: Reveals
    clients: tuple[int, ...]
    layout_digest: str
    before: Vector = field(repr=False)
    after: Vector | None = field(default=None, repr=False)
    updates: Mapping[int, Vector] = field(default_factory=dict, repr=False)
    total: NDArray[np.float64] | None = field(default=None, repr=False)
    weight: float = 0.0
    groups: Mapping[int, GroupSum] | None = field(default=None, repr=False)
