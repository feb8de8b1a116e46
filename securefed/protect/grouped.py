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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from securefed.errors import ProtocolError
from securefed.protect.ceremony import Terms, held_in_process
from securefed.protect.drawing import (
    Groups,
    cut,
    group_sizes,
    partition_rank,
    thin_group_probability,
)
from securefed.protect.group_sessions import GroupedClient, GroupedServer, part_of
from securefed.protect.masking import (
    Masking,
    MaskingParameters,
    MaskingServer,
    OpenMasking,
    Policy,
)
from securefed.protect.masking.codec import Codecs, agreed
from securefed.protect.masking.parameters import MIN_HONEST
from securefed.types import (
    SERVER,
    Reveals,
    RoundParameters,
)

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy
    from securefed.crypto.identity import Identity, Roster


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

    def largest_sum(self, n: int) -> int:
        """The most clients in one sum of a cohort of n: the largest group."""
        return max(group_sizes(n, self.size))

    def noise_floor(self, n: int) -> tuple[int, int]:
        """(fewest survivors of any group's sum, most of a group's clients assumed to collude) of a cohort of n."""
        floors = [self.sum_floor(g) for g in set(group_sizes(n, self.size))]
        return min(survivors for survivors, _ in floors), max(corrupt for _, corrupt in floors)

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

    def join(self, party: int, identity: Identity, roster: Roster, entropy: Entropy) -> NoReturn:
        """Raises ProtocolError: the ceremony that draws the groups is played in one process only."""
        raise ProtocolError(
            'grouped: its groups are drawn by all parties in one process; over a network use protection "masking"'
        )

    def open(  # type: ignore[override]  # its sessions are groups of masking's, not one of them
        self, run: str, clients: Sequence[int], entropy: Entropy
    ) -> OpenGrouped:
        """Identities first, then the signed ceremony that draws the groups; all in this process."""
        masking = super().open(run, clients, entropy)
        terms = Terms(run, masking.roster, self.size)
        return OpenGrouped(self, masking, held_in_process(terms, masking.parties, entropy))


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

    def carrying(self, codecs: Codecs) -> OpenGrouped:
        """The same parties and groups, who send and accept these words in place of fixed point."""
        return replace(self, masking=self.masking.carrying(codecs))

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
        codecs = self.masking.codecs
        constants = b"" if codecs is None else codecs.propose(part)
        proposed: MaskingParameters = self.config.parameters(part, self.masking.roster.digest, constants)
        codec = agreed(proposed, codecs)
        return MaskingServer(proposed, self.masking.parties[SERVER], self.config.threads, codec)
