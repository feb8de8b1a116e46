"""`protection = "grouped"`: a masked sum inside each group of clients, so that a robust rule has rows to compare.

A mean over everyone hides each client and falls to one liar; a robust rule withstands liars and must see rows.
Between them: the cohort is cut into m groups of g or more, the server learns m sums (masking inside each), and the
rule works on the m group means. The anonymity set is the group, and a liar poisons its whole group.

Groups are drawn once a run (see `drawing.py`). Drawn anew each round, m sums a round would be new equations in updates
that change slowly, and n independent ones give every client away (`securefed_attacks.partition`). A member that
drops out makes a new equation too; so by default a group gives its sum whole or not at all.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.errors import ProtocolError
from securefed.protect.drawing import (
    NONCE,
    Groups,
    commitment,
    cut,
    group_sizes,
    joint_seed,
    partition_rank,
    thin_group_probability,
)
from securefed.protect.masking import (
    Masking,
    MaskingClient,
    MaskingParameters,
    MaskingServer,
    OpenMasking,
    Policy,
)
from securefed.protect.masking.parameters import MIN_HONEST
from securefed.types import (
    SERVER,
    Collected,
    GroupSum,
    Output,
    Reveals,
    RoundParameters,
    Update,
)

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy

_TAG = struct.Struct("<4sBI")  # magic, version, group
_MAGIC, _VERSION = b"SFGR", 1


@dataclass(frozen=True)
class WholeGroup(Policy):
    """A client that takes part only where all of its group is in the sum, or nobody."""

    def floors(self, n: int) -> tuple[int, int, int, int]:
        """As the table says, but every member must survive; more than n where the table's floor is above n."""
        k, threshold, quorum, survivors = super().floors(n)
        return k, threshold, quorum, max(survivors, n)


@dataclass(frozen=True)
class Grouped(Masking):
    """Secure sums inside fixed groups. Options beside masking's, which hold in each group by itself.

    Adversary: masking's, per group: a lying server with up to `gamma` of a group. Against liars among the clients it does
    nothing itself: that is the rule's work, which tolerates f < m / 2 poisoned groups at best.

    Attributes:
        size: smallest group, at least 3.
        whole_groups: a group in which anybody drops out gives no sum. False lets masking's floors decide, and
            tells the server sums over subsets of a group.
    """

    size: int = 5
    whole_groups: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < max(MIN_HONEST, self.min_cohort):
            raise ValueError(
                f"size must be at least {max(MIN_HONEST, self.min_cohort)} (min_cohort), found {self.size}"
            )

    @property
    def name(self) -> str:
        return "grouped"

    @property
    def reveals(self) -> Reveals:
        return "group sums"

    @property
    def policy(self) -> Policy:
        """The floors of a client, in its group."""
        policy = super().policy
        return WholeGroup(**vars(policy)) if self.whole_groups else policy

    def rows(self, n: int) -> int:
        """How many group means a rule gets from n clients."""
        return len(group_sizes(n, self.size))

    def check_cohort(self, n: int, largest_weight: float | None) -> None:
        """Raises ProtocolError where there are no two groups, or one of them could not hold a masked sum."""
        for g in sorted(set(group_sizes(n, self.size))):
            super().check_cohort(g, largest_weight)

    @property
    def facts(self) -> Mapping[str, str]:
        """What a report says of it, whatever the cohort."""
        whole = "a group in which anybody drops out gives no sum"
        partly = "where a member drops out the server learns a second sum of its group, and so that member's update"
        return {
            **super().facts,
            "Not hidden": "each group's sum, its weight, who is in which group and who dropped out; only differential "
            "privacy bounds what a sum tells",
            "Groups": "drawn once, by a hash of the roster and a nonce of every client (commit, then reveal); whoever "
            "reveals last can refuse, which stops the run and names it",
            "Drops": whole if self.whole_groups else partly,
        }

    def facts_of(self, n: int) -> Mapping[str, str]:
        """What the numbers of this cohort mean: heading -> sentence.

        Raises:
            ProtocolError: n clients make no two groups.
        """
        sizes = group_sizes(n, self.size)
        m, corrupt = len(sizes), math.floor(self.gamma * n)
        thin = thin_group_probability(sizes, corrupt, MIN_HONEST)
        rank = partition_rank([cut(range(n), self.size, bytes(32))])
        return {
            "Anonymity set": f"{min(sizes)} clients, less those of the group that collude with the server",
            "Liars tolerated": f"at most {(m - 1) // 2}, each of whom may poison one of the {m} groups; the rule's own f "
            "counts poisoned groups",
            "Thin groups": f"with {corrupt} of {n} clients colluding, some group has fewer than {MIN_HONEST} honest members "
            f"with probability {thin:.3g}",
            "Rank of all partitions": f"{rank} equations in {n} updates, however many rounds"
            + ("" if self.whole_groups else ", and one more for every set of drops"),
        }

    def open(  # type: ignore[override]  # its sessions are groups of masking's, not one of them
        self, run: str, clients: Sequence[int], entropy: Entropy
    ) -> OpenGrouped:
        """Identities first, then the ceremony that draws the groups; all in this process."""
        masking = super().open(run, clients, entropy)
        roster = masking.roster.digest
        nonces = {k: entropy.stream("group nonce", run, k).bytes(NONCE) for k in clients}
        promised = {k: commitment(nonce, k, run, roster) for k, nonce in nonces.items()}
        return OpenGrouped(self, masking, cut(clients, self.size, joint_seed(run, roster, promised, nonces)))


@dataclass(frozen=True, eq=False)
class OpenGrouped:
    """Grouped with a run's parties and its groups, which stay as they are until the run ends."""

    config: Grouped
    masking: OpenMasking = field(repr=False)
    groups: Groups

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def reveals(self) -> Reveals:
        return self.config.reveals

    @property
    def steps(self) -> tuple[str, ...]:
        """A client's messages, in order."""
        return self.config.steps

    def with_groups(self, groups: Groups) -> OpenGrouped:
        """The same parties in the groups of the run that is resumed.

        Raises:
            ProtocolError: they are not a cut of these clients into groups of this size.
        """
        everyone = sorted(k for group in groups for k in group)
        sizes = sorted(len(group) for group in groups)
        if everyone != sorted(self.masking.roster.clients) or sizes != sorted(
            group_sizes(len(everyone), self.config.size)
        ):
            raise ProtocolError(
                "grouped: the stored groups are not of this job's clients and size; start a new run"
            )
        return replace(self, groups=groups)

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> GroupedClient:
        number = next(j for j, group in enumerate(self.groups) if client in group)
        inner = part_of(parameters, self.groups)[number]
        return GroupedClient(number, self.masking.client(inner, client, entropy))

    def server(self, parameters: RoundParameters) -> GroupedServer:
        parts = part_of(parameters, self.groups)
        return GroupedServer(parameters, tuple(self._server(part) for part in parts))

    def _server(self, part: RoundParameters) -> MaskingServer:
        proposed: MaskingParameters = self.config.parameters(part, self.masking.roster.digest)
        return MaskingServer(proposed, self.masking.parties[SERVER], self.config.threads)


def part_of(parameters: RoundParameters, groups: Groups) -> tuple[RoundParameters, ...]:
    """What each group's members agree on: the round's parameters with the group as its cohort.

    Raises:
        ProtocolError: the cohort is not everyone, so that some group would be in the round in part.
    """
    everyone = tuple(sorted(k for group in groups for k in group))
    if parameters.clients != everyone:
        raise ProtocolError(
            f"grouped: a cohort of {len(parameters.clients)} breaks groups that are fixed for all {len(everyone)} clients; "
            "let every client take part in every round"
        )
    weight = dict(zip(everyone, parameters.weights or (), strict=False))
    return tuple(
        replace(parameters, clients=group, weights=tuple(weight[k] for k in group) if weight else None)
        for group in groups
    )


def tagged(group: int, output: Output) -> Output:
    """The messages with their group's number in front."""
    tag = _TAG.pack(_MAGIC, _VERSION, group)
    return replace(output, send=tuple(replace(m, payload=tag + m.payload) for m in output.send))


def untagged(group: int, payload: bytes) -> bytes:
    """The message behind the tag. The tag only routes: masking signs the group's member list.

    Raises:
        ProtocolError: no such tag, or that of another group.
    """
    if payload[: _TAG.size] != _TAG.pack(_MAGIC, _VERSION, group):
        raise ProtocolError(f"grouped: not a version {_VERSION} message of group {group}")
    return payload[_TAG.size :]


@dataclass(eq=False)
class GroupedClient:
    """One client in one round: masking with the members of its own group."""

    group: int
    _inner: MaskingClient = field(repr=False)

    def start(self) -> Output:
        return tagged(self.group, self._inner.start())

    def receive(self, payload: bytes) -> Output:
        """One message of the server. Raises ProtocolError where it is not of this group, step and round."""
        return tagged(self.group, self._inner.receive(untagged(self.group, payload)))

    def submit(self, update: Update) -> Output:
        return tagged(self.group, self._inner.submit(update))


@dataclass(eq=False)
class GroupedServer:
    """The server in one round: m masked sums side by side. A group that ends without a sum is left out."""

    parameters: RoundParameters
    _servers: tuple[MaskingServer, ...] = field(repr=False)
    _results: dict[int, Collected] = field(default_factory=dict, repr=False)
    _failed: dict[int, str] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)
    _done: bool = False

    def __post_init__(self) -> None:
        self._group = {k: j for j, server in enumerate(self._servers) for k in server.parameters.base.clients}

    def start(self) -> Output:
        return self._gather({j: server.start() for j, server in enumerate(self._servers)})

    def receive(self, sender: int, payload: bytes) -> Output:
        """Takes one message; a bad one changes nothing and its sender is listed with the reason.

        Raises:
            ProtocolError: the round has ended.
        """
        self._require_open()
        group = self._group.get(sender)
        if group is None or self._ended(group):
            return Output()  # a stranger, or late: its group has its sum, or never will
        try:
            inner = untagged(group, payload)
        except ProtocolError as error:
            self._refused[sender] = str(error)
            return Output()
        return self._gather({group: self._servers[group].receive(sender, inner)})

    def advance(self) -> Output:
        """Nobody else will answer, in any group that still waits."""
        self._require_open()
        return self._gather({j: s.advance() for j, s in enumerate(self._servers) if not self._ended(j)})

    def _require_open(self) -> None:
        if self._done:
            raise ProtocolError(f"grouped: round {self.parameters.round} has already ended")

    def _ended(self, group: int) -> bool:
        return group in self._results or group in self._failed

    def _gather(self, outputs: Mapping[int, Output]) -> Output:
        for j, output in outputs.items():
            if output.abort is not None:
                self._failed[j] = output.abort
            elif output.result is not None and output.result.weight > 0:
                self._results[j] = output.result
            elif output.result is not None:
                self._failed[j] = f"its weight is {output.result.weight:g}, so it has no mean"
        send = tuple(m for j, output in outputs.items() for m in tagged(j, output).send)
        if len(self._results) + len(self._failed) < len(self._servers):
            return Output(send=send)
        self._done = True
        if not self._results:
            reasons = "; ".join(f"group {j}: {why}" for j, why in sorted(self._failed.items())[:3])
            return Output(send=send, abort=f"grouped: no group has a sum: {reasons}")
        return Output(send=send, result=self._collected())

    def _collected(self) -> Collected:
        found = dict(sorted(self._results.items()))
        lost = {
            k: f"group {j} has no sum: {why}"
            for j, why in sorted(self._failed.items())
            for k in self._servers[j].parameters.base.clients
        }
        survivors = tuple(sorted(k for c in found.values() for k in c.survivors))
        clipped = sum((c.clipped_share or 0.0) * len(c.survivors) for c in found.values())
        return Collected(
            survivors=survivors,
            total=np.sum([c.total for c in found.values()], axis=0),
            weight=float(sum(c.weight for c in found.values())),
            refused={**self._refused, **{k: v for c in found.values() for k, v in c.refused.items()}, **lost},
            dropped={k: v for c in found.values() for k, v in c.dropped.items()},
            clipped_share=clipped / len(survivors),
            groups={j: GroupSum(c.survivors, c.total, c.weight) for j, c in found.items()},
        )
