"""`protection = "masking"`: the component of a job, and the same with a run's identities and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from securefed.crypto.identity import Identity, Roster
from securefed.crypto.keys import KeyPair
from securefed.crypto.prg import CipherName
from securefed.errors import ProtocolError
from securefed.protect.masking.client import MaskingClient
from securefed.protect.masking.codec import Codecs, agreed
from securefed.protect.masking.fixedpoint import levels_for
from securefed.protect.masking.messages import Step
from securefed.protect.masking.parameters import MAX_BITS, MIN_BITS, MIN_HONEST, MaskingParameters, Policy
from securefed.protect.masking.party import Party
from securefed.protect.masking.server import MaskingServer
from securefed.types import SERVER, Reveals, RoundParameters

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy


STEPS = tuple(step.name.lower() for step in Step if step is not Step.LEAVE)


@dataclass(frozen=True)
class Masking:
    """Secure aggregation by pairwise masks: the server learns the sum of the survivors, nothing else.

    Adversary: a lying server together with up to `gamma` of the cohort, inside the limits that SECURITY.md
    names. Nobody has audited it. The sum itself is not hidden; only differential privacy bounds what it tells.

    Attributes:
        value_range: coordinates beyond +-value_range are clipped; a public constant.
        bits: width of the ring, 16 to 32; each coordinate costs as many bits on the wire.
        levels: codes on each side of zero; 0 takes the most that cannot wrap.
        max_weight: a client with a larger weight cannot take part.
        gamma: share of the cohort assumed to collude with the server. drop: share expected to vanish.
        k, threshold, quorum, min_survivors: 0 takes the table's number; smaller than the table's is
            refused unless `below_table`.
        max_clipped_share: of all coordinates; a round that clips more is aborted.
        min_cohort: smallest cohort a client takes part in.
        cipher: "aes", or "chacha20" on machines without AES instructions.
        threads: for the mask streams; 1 keeps CPU time lowest, more is faster for large vectors.
    """

    value_range: float = 8.0
    bits: int = 32
    levels: int = 0
    max_weight: float = 10_000.0
    gamma: float = 0.1
    drop: float = 0.1
    k: int = 0
    threshold: int = 0
    quorum: int = 0
    min_survivors: int = 0
    max_clipped_share: float = 0.01
    min_cohort: int = MIN_HONEST
    below_table: bool = False
    cipher: CipherName = "aes"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, ok, bound in (
            ("value_range", math.isfinite(self.value_range) and self.value_range > 0, "above 0"),
            ("max_weight", math.isfinite(self.max_weight) and self.max_weight > 0, "above 0"),
            ("bits", MIN_BITS <= self.bits <= MAX_BITS, f"in {MIN_BITS} .. {MAX_BITS}"),
            ("levels", self.levels >= 0, "0 (the most that fit) or more"),
            ("gamma", 0 <= self.gamma < 0.5, "in [0, 0.5)"),
            ("drop", 0 <= self.drop < 0.5, "in [0, 0.5)"),
            ("max_clipped_share", 0 <= self.max_clipped_share <= 1, "in [0, 1]"),
            ("min_cohort", self.min_cohort >= MIN_HONEST, f"at least {MIN_HONEST}"),
            ("threads", self.threads >= 1, "at least 1"),
            ("cipher", self.cipher in ("aes", "chacha20"), "aes or chacha20"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {bound}, found {getattr(self, name)}")
        for name in ("k", "threshold", "quorum", "min_survivors"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (the table's) or more, found {getattr(self, name)}")

    @property
    def name(self) -> str:
        return "masking"

    @property
    def reveals(self) -> Reveals:
        return "sum"

    @property
    def steps(self) -> tuple[str, ...]:
        """A client's messages, in order."""
        return STEPS

    @property
    def policy(self) -> Policy:
        """The floors of a client that holds this configuration."""
        own = self.below_table
        return Policy(
            min_cohort=self.min_cohort,
            gamma=self.gamma,
            drop=self.drop,
            k=self.k if own and self.k else None,
            threshold=self.threshold if own and self.threshold else None,
            quorum=self.quorum if own and self.quorum else None,
            min_bits=self.bits,
            min_value_range=self.value_range,
            max_value_range=self.value_range,
            max_clipped_share=self.max_clipped_share,
        )

    def largest_sum(self, n: int) -> int:
        """The most clients in one sum of a cohort of n."""
        return n

    def noise_floor(self, n: int) -> tuple[int, int]:
        """(fewest survivors of any sum that is unmasked, clients assumed to collude) of a cohort of n."""
        return self.sum_floor(n)

    def sum_floor(self, n: int) -> tuple[int, int]:
        """The same of the one sum over n clients.

        A sum is unmasked only if a quorum of its survivors signs for it, so no fewer than that are in it.
        """
        _, _, quorum, survivors = self.policy.floors(n)
        return max(self.min_survivors or survivors, self.quorum or quorum), math.floor(self.gamma * n)

    def parameters(
        self, base: RoundParameters, roster: bytes = bytes(32), codec: bytes = b""
    ) -> MaskingParameters:
        """What a server with this configuration proposes, checked against the floors of its clients.

        Raises:
            ProtocolError: the cohort is too small, the sum could wrap, a number is below the table's.
        """
        n = len(base.clients)
        if n < self.min_cohort:
            raise ProtocolError(
                f"masking: a cohort of {n} is below min_cohort={self.min_cohort}; add clients"
            )
        k, threshold, quorum, survivors = self.policy.floors(n)
        if codec:
            survivors, _ = self.sum_floor(n)
        weights = base.weights
        p = MaskingParameters(
            base=base,
            roster=roster,
            bits=self.bits,
            levels=self.levels or levels_for(n, self.bits),
            value_range=self.value_range,
            max_weight=self.max_weight if weights is None else max(weights),
            k=min(self.k or k, n - 1),
            threshold=self.threshold or threshold,
            quorum=self.quorum or quorum,
            min_survivors=survivors if codec else self.min_survivors or survivors,
            max_clipped_share=self.max_clipped_share,
            cipher=self.cipher,
            codec=codec,
        )
        self.policy.check(p)
        return p

    def check_cohort(self, n: int, largest_weight: float | None) -> None:
        """Raises ProtocolError where n clients could wrap the ring, fall below a floor, or weigh too much."""
        if largest_weight is not None and largest_weight > self.max_weight:
            raise ProtocolError(
                f"a weight of {largest_weight:g} is above max_weight={self.max_weight:g}; raise protection.max_weight"
            )
        zero = "00" * 32
        weights = (1.0,) * n if largest_weight is None else None
        self.parameters(RoundParameters("check", 0, tuple(range(n)), 1, zero, zero, weights))

    @property
    def facts(self) -> Mapping[str, str]:
        """What a report says of it."""
        return {
            "Adversary": f"a lying server with up to {self.gamma:.0%} of the cohort, corrupted before the graph is drawn; "
            "not audited, not constant-time",
            "Not hidden": "the sum, its weight, who took part and who dropped out; only differential privacy bounds "
            "what a sum tells",
            "Fixed point": f"{self.bits} bits a coordinate, clipped at {self.value_range:g}, rounded stochastically; a round "
            f"that clips more than {self.max_clipped_share:.2%} is aborted",
        }

    def open(self, run: str, clients: Sequence[int], entropy: Entropy) -> OpenMasking:
        """Fresh identities and transport keys for these clients and the server, all in this process."""
        ids = (SERVER, *clients)
        identities = {k: Identity.generate(entropy) for k in ids}
        roster = Roster(
            identities[SERVER].public,
            {k: identity.public for k, identity in identities.items() if k != SERVER},
        )
        return OpenMasking(
            self, {k: Party(k, identities[k], KeyPair.generate(entropy), roster) for k in ids}, roster
        )

    def join(self, party: int, identity: Identity, roster: Roster, entropy: Entropy) -> OpenMasking:
        """The same for one party alone, as it runs on that party's own machine; a fresh transport key."""
        return OpenMasking(self, {party: Party(party, identity, KeyPair.generate(entropy), roster)}, roster)

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> NoReturn:
        raise ProtocolError(
            "masking: its parties need identities; call open(run, clients, entropy) once a run"
        )

    def server(self, parameters: RoundParameters) -> NoReturn:
        raise ProtocolError(
            "masking: its parties need identities; call open(run, clients, entropy) once a run"
        )


@dataclass(frozen=True, eq=False)
class OpenMasking:
    """Masking with a run's parties, as a simulation holds them: all in one process."""

    config: Masking
    parties: Mapping[int, Party] = field(repr=False)
    roster: Roster = field(repr=False)
    codecs: Codecs | None = field(default=None, repr=False)

    def carrying(self, codecs: Codecs) -> OpenMasking:
        """The same parties, who send and accept these words in place of fixed point."""
        return replace(self, codecs=codecs)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def reveals(self) -> Reveals:
        return self.config.reveals

    @property
    def steps(self) -> tuple[str, ...]:
        """A client's messages, in order."""
        return STEPS

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> MaskingClient:
        return MaskingClient(
            parameters,
            self.parties[client],
            self.config.policy,
            entropy,
            threads=self.config.threads,
            codecs=self.codecs,
        )

    def server(self, parameters: RoundParameters) -> MaskingServer:
        constants = b"" if self.codecs is None else self.codecs.propose(parameters)
        proposed = self.config.parameters(parameters, self.roster.digest, constants)
        codec = agreed(proposed, self.codecs)
        return MaskingServer(proposed, self.parties[SERVER], self.config.threads, codec)
