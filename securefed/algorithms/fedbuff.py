"""FedBuff: clients train at their own pace, and the server steps whenever a buffer of updates is full.

Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (arXiv 2106.06639), Algorithm 1, over a
simulated clock. A round is one buffer: its cohort are the next K clients that are ready, each of which trained from
the version of the model it was handed; its update is weighed by its staleness and the K are added in one sum.

What differs from the paper: a client is in a buffer at most once (a secure sum has one input a client; the
paper's buffer may hold two), a client that is ready keeps its update to itself until the buffer is full, so that
one masked sum can add it up, and updates staler than `max_staleness` are refused. The weight is applied by the
client after its update is clipped and before anybody's noise: s <= 1, so no sensitivity grows.

Who is ready when is drawn from the public seed, so there is no amplification by sampling: a client is charged for
every turn it takes, twice for two, and for a turn whose update came too late to be taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from securefed.algorithms.clock import Clock
from securefed.algorithms.fedavg import FedAvg
from securefed.config import Config
from securefed.config.require import require

_HANDS = 0xFEDB  # label of the server's draws in the experiment's seed


@dataclass(frozen=True, slots=True)
class Arrival:
    """One turn of one client: the version it was handed, and when its update was ready (simulated seconds)."""

    client: int
    version: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Buffer:
    """What leads from one version of the model to the next.

    Attributes:
        taken: the K whose updates are summed. late: those refused for their staleness.
        seconds: when the buffer was full, since the start.
    """

    taken: tuple[Arrival, ...]
    late: tuple[Arrival, ...]
    seconds: float


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """Buffered asynchronous aggregation; `clients_per_round` of the job is K, the size of the buffer.

    Attributes:
        concurrency: clients that train at the same time.
        exponent: a of the weight 1 / (1 + staleness)^a; the paper takes 1/2, and 0 weighs all alike.
        max_staleness: versions that the model may have moved on before an update is refused.
    """

    head_rounds: int = field(default=0, init=False)  # a phase of rounds has no meaning between versions
    concurrency: int = 0
    exponent: float = 0.5
    max_staleness: int = 20

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(
                f"concurrency, the clients that train at the same time, must be at least 1, found {self.concurrency}; "
                "set algorithm.concurrency to twice clients_per_round, say"
            )
        if self.exponent < 0:
            raise ValueError(f"exponent must be 0 (all weigh alike) or more, found {self.exponent}")
        if self.max_staleness < 0:
            raise ValueError(
                f"max_staleness must be 0 (fresh updates only) or more, found {self.max_staleness}"
            )

    # ------------------------------------------------------------------------------------ the schedule

    def buffer(self, config: Config, clients: int, round: int) -> Buffer:
        """The buffer that ends round `round`, 0-based."""
        clock = Clock(config.clock, config.seed, clients)
        return timeline(self, clock, config.clients_per_round, config.rounds)[round]

    def cohort(self, config: Config, clients: int, round: int) -> tuple[int, ...] | None:
        return tuple(sorted(a.client for a in self.buffer(config, clients, round).taken))

    def late(self, config: Config, clients: int, round: int) -> tuple[int, ...]:
        return tuple(a.client for a in self.buffer(config, clients, round).late)

    def weight(self, staleness: int) -> float:
        """s(staleness) = 1 / (1 + staleness)^a, in (0, 1]."""
        return float((1 + staleness) ** -self.exponent)

    def needed_later(self, config: Config, clients: int, round: int) -> frozenset[int]:
        """Versions up to `round` that some buffer after it still gets an update from."""
        later = range(round + 1, min(config.rounds, round + 2 + self.max_staleness))
        turns = (a for r in later for a in self.buffer(config, clients, r).taken)
        return frozenset(a.version for a in turns if a.version <= round)

    # -------------------------------------------------------------------------------------- the checks

    def check(self, config: Config) -> None:
        k, c = config.clients_per_round, self.concurrency
        require(
            k > 0,
            "fedbuff needs the size of its buffer: set clients_per_round to how many updates make one step (8, say)",
        )
        require(
            config.clock.seconds > 0,
            "fedbuff plays over a simulated clock; set clock.seconds to the time a median client needs (60, say)",
        )
        require(
            config.data.clients == 0 or c <= config.data.clients,
            f"algorithm.concurrency={c} is more than data.clients={config.data.clients}; lower it, or add clients",
        )
        require(
            c >= k or config.protection.name == "plain",
            f"protection {config.protection.name} adds a buffer in one session of its {k} clients, and "
            f"algorithm.concurrency={c} has fewer at work at a time; raise concurrency to {k} or lower clients_per_round",
        )
        require(
            not config.model.head_centre,
            "model.head_centre is measured by a round of its own, which a stream of updates has not; leave it out with "
            "fedbuff",
        )

    def check_clients(self, clients: int) -> None:
        """Raises ConfigError where more would have to train at the same time than there are."""
        require(
            self.concurrency <= clients,
            f"algorithm.concurrency={self.concurrency} but only {clients} clients have data; lower it, or add clients",
        )


@lru_cache(maxsize=4)
def timeline(algorithm: FedBuff, clock: Clock, k: int, rounds: int) -> tuple[Buffer, ...]:
    """Algorithm 1, the server's part: who trains from which version, and in whose buffer it ends."""
    generator = np.random.default_rng([clock.seed, _HANDS])
    training: list[tuple[float, int, int]] = []  # (ready at, client, version), a heap
    free, turns, now, buffers = set(range(clock.clients)), [0] * clock.clients, 0.0, []
    for version in range(rounds):
        taken: list[Arrival] = []
        late: list[Arrival] = []
        while len(taken) < k:
            while len(training) < algorithm.concurrency and free:
                client = int(generator.choice(sorted(free)))
                free.remove(client)
                heapq.heappush(training, (now + clock.duration(client, turns[client]), client, version))
                turns[client] += 1
            now, client, handed = heapq.heappop(training)
            if version - handed > algorithm.max_staleness:
                late.append(Arrival(client, handed, now))
                free.add(client)
            else:
                taken.append(Arrival(client, handed, now))  # not free until this buffer is summed
        free |= {a.client for a in taken}
        buffers.append(Buffer(tuple(taken), tuple(late), now))
    return tuple(buffers)


def turns_of(algorithm: FedBuff, config: Config, clients: int) -> Mapping[int, int]:
    """Client -> turns that end within the run, late ones included: what it is charged for."""
    found = dict.fromkeys(range(clients), 0)
    for round in range(config.rounds):
        buffer = algorithm.buffer(config, clients, round)
        for arrival in (*buffer.taken, *buffer.late):
            found[arrival.client] += 1
    return found
