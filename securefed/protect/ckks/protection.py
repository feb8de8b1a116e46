"""`protection = "ckks"`: the component of a job, and the same with a run's identities and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from securefed.crypto.identity import Identity, Roster
from securefed.errors import ConfigError, ProtocolError
from securefed.protect.ckks.client import CKKSClient
from securefed.protect.ckks.holder import CKKSKeyHolder
from securefed.protect.ckks.keys import HolderParty, Party
from securefed.protect.ckks.messages import HOLDER_SEAT, KEY_HOLDER
from securefed.protect.ckks.parameters import SETS
from securefed.protect.ckks.round import TRUST, CKKSRound, Trust
from securefed.protect.ckks.scheme import Scheme, available
from securefed.protect.ckks.server import CKKSServer
from securefed.types import SERVER, Reveals, RoundParameters

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy


@dataclass(frozen=True)
class CKKS:
    """Secure aggregation by approximate homomorphic encryption (Cheon, Kim, Kim and Song 2017).

    Adversary: see `TRUST` for each model. None hides the sum, none stops a client from lying, and nobody
    has audited this.

    Attributes:
        trust: "key_holder" (clients cannot decrypt; server and holder do not collude), "verified" (the
            holder adds the signed ciphertexts itself) or "shared_key" (all clients hold the key).
        parameters: "compact", "precise", "wide", or "auto": the smallest set that reaches `error`.
        error: largest acceptable expected error of the mean, over value_range.
        value_range: an update with a coordinate beyond it is refused; a public constant.
        max_weight: a client with a larger weight cannot take part; the error grows with max_weight / weight.
        flooding: bits of security against whoever sees the decrypted sums; 0 promises none. See SECURITY.md.
        flooding_rounds: decryptions that this is promised for.
        min_survivors: the key holder opens no sum of fewer.
        gamma: share of the cohort assumed to pool what it knows with whoever sees the sums; it counts where
            clients share noise among them.
        encrypted_share: below 1, only the coordinates that moved most in the first round stay encrypted;
            the others travel in clear, and their senders' updates are seen in part.
    """

    trust: Trust = "key_holder"
    parameters: str = "auto"
    error: float = 1e-6
    value_range: float = 8.0
    max_weight: float = 10_000.0
    flooding: int = 0
    flooding_rounds: int = 1000
    min_survivors: int = 2
    gamma: float = 0.1
    encrypted_share: float = 1.0

    def __post_init__(self) -> None:
        for name, ok, bound in (
            ("trust", self.trust in TRUST, f"one of {', '.join(TRUST)}"),
            ("parameters", self.parameters in ("auto", *SETS), f"auto, {', '.join(SETS)}"),
            ("error", 0 < self.error < 1, "in (0, 1)"),
            ("value_range", math.isfinite(self.value_range) and self.value_range > 0, "above 0"),
            ("max_weight", math.isfinite(self.max_weight) and self.max_weight > 0, "above 0"),
            ("flooding", 0 <= self.flooding <= 256, "0 (off) to 256 bits"),
            ("flooding_rounds", 1 <= self.flooding_rounds < 2**32, "1 or more"),
            (
                "min_survivors",
                2 <= self.min_survivors < 2**32,
                "2 or more: a sum of one is that client's update",
            ),
            ("gamma", 0 <= self.gamma < 0.5, "in [0, 0.5)"),
            ("encrypted_share", 0 < self.encrypted_share <= 1, "in (0, 1]"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {bound}, found {getattr(self, name)!r}")

    @property
    def name(self) -> str:
        return "ckks"

    @property
    def reveals(self) -> Reveals:
        """A part of every update travels in clear where not all is encrypted."""
        return "sum" if self.encrypted_share == 1 else "updates"

    @property
    def steps(self) -> tuple[str, ...]:
        """A client's messages, in order, in the first round; later the context is known."""
        return ("request", "submit")

    @property
    def partial(self) -> bool:
        """Whether the server sees updates, but only in part: enough to learn from, not to aggregate by."""
        return self.encrypted_share < 1

    def noise_floor(self, n: int) -> tuple[int, int]:
        """(fewest clients of any sum that is opened, clients assumed to collude) of a cohort of n."""
        return self.min_survivors, math.floor(self.gamma * n)

    def check_cohort(self, n: int, largest_weight: float | None) -> None:
        """Raises ProtocolError where n clients are too few, weigh too much, or err more than `error`."""
        self._example(n, 1, largest_weight)

    def cost(self, n: int, d: int, largest_weight: float | None) -> list[str]:
        """What a round of n clients and d coordinates will cost and err, and what stays in clear."""
        example = self._example(n, d, largest_weight)
        plan = example.plan
        said = plan.describe()
        if largest_weight is not None:  # weights are hidden among those up to max_weight, and pay for it
            said += (
                f", {plan.error * self.max_weight / largest_weight:.1e} where all weigh {largest_weight:g}"
            )
        lines = [said, f"trust {self.trust}: {TRUST[self.trust]}"]
        if self.partial:
            clear = d - example.encrypted
            lines.append(
                f"IN CLEAR after the first round: {clear:,} of {d:,} coordinates ({clear / d:.1%}) of every update, and "
                f"with them what they tell; encrypted are the {example.encrypted:,} that moved most"
            )
        return lines

    def _example(self, n: int, d: int, largest_weight: float | None) -> CKKSRound:
        if largest_weight is not None and largest_weight > self.max_weight:
            raise ProtocolError(
                f"a weight of {largest_weight:g} is above max_weight={self.max_weight:g}; raise protection.max_weight"
            )
        zero = "00" * 32
        weights = (1.0,) * n if largest_weight is None else None
        return self.round(RoundParameters("check", 0, tuple(range(n)), d, zero, zero, weights))

    @property
    def facts(self) -> Mapping[str, str]:
        """What a report says of it."""
        noise = (
            f"{self.flooding} bits against whoever sees decrypted sums, over {self.flooding_rounds} of them"
            if self.flooding
            else "guard noise only: the known passive key recovery from a decrypted sum fails; nothing is proved"
        )
        found = {
            "Trust": f"{self.trust}: {TRUST[self.trust]}; not audited",
            "Not hidden": "the sum, its weight, who took part and who dropped out; only differential privacy bounds "
            "what a sum tells",
            "Released sums": noise,
        }
        if self.partial:
            found["In clear"] = (
                f"after the first round {1 - self.encrypted_share:.1%} of the coordinates of every update"
            )
        return found

    def round(self, base: RoundParameters, roster: bytes = bytes(32)) -> CKKSRound:
        """The round's public constants, with its plan checked.

        Raises:
            ProtocolError: the cohort is below min_survivors, or no parameters reach the wanted error.
        """
        n = len(base.clients)
        if n < self.min_survivors:
            raise ProtocolError(
                f"ckks: a cohort of {n} is below min_survivors={self.min_survivors}; add clients"
            )
        found = CKKSRound(
            base=base,
            trust=self.trust,
            parameters=self.parameters,
            error=self.error,
            value_range=self.value_range,
            max_weight=self.max_weight if base.weights is None else max(base.weights),
            flooding=self.flooding,
            flooding_rounds=self.flooding_rounds,
            min_survivors=self.min_survivors,
            encrypted_share=self.encrypted_share,
            roster=roster,
        )
        try:
            _ = found.plan
        except ConfigError as error:
            raise ProtocolError(str(error)) from None
        return found

    def open(self, run: str, clients: Sequence[int], entropy: Entropy) -> OpenCKKS:
        """Fresh identities for these clients, the server and a key holder, all in this process.

        Raises:
            ConfigError: TenSEAL does not import here.
        """
        missing = available()
        if missing is not None:
            raise ConfigError(missing)
        ids = (SERVER, KEY_HOLDER, *clients)
        identities = {k: Identity.generate(entropy) for k in ids}
        seats = {HOLDER_SEAT if k == KEY_HOLDER else k: identities[k].public for k in ids if k != SERVER}
        roster = Roster(identities[SERVER].public, seats)
        schemes: dict[bytes, Scheme] = {}
        parties = {k: Party(k, identities[k], roster, schemes=schemes) for k in ids if k != KEY_HOLDER}
        return OpenCKKS(self, parties, HolderParty(KEY_HOLDER, identities[KEY_HOLDER], roster))

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> NoReturn:
        raise ProtocolError(
            "ckks: its parties need identities and keys; call open(run, clients, entropy) once a run"
        )

    def server(self, parameters: RoundParameters) -> NoReturn:
        raise ProtocolError(
            "ckks: its parties need identities and keys; call open(run, clients, entropy) once a run"
        )


@dataclass(frozen=True, eq=False)
class OpenCKKS:
    """CKKS with a run's parties, as a simulation holds them: all in one process."""

    config: CKKS
    parties: Mapping[int, Party] = field(repr=False)
    holder: HolderParty = field(repr=False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def reveals(self) -> Reveals:
        return self.config.reveals

    @property
    def steps(self) -> tuple[str, ...]:
        return self.config.steps

    def client(self, parameters: RoundParameters, client: int, entropy: Entropy) -> CKKSClient:
        return CKKSClient(self._round(parameters), self.parties[client], entropy)

    def server(self, parameters: RoundParameters) -> CKKSServer:
        return CKKSServer(self._round(parameters), self.parties[SERVER])

    def helpers(self, parameters: RoundParameters, entropy: Entropy) -> dict[int, CKKSKeyHolder]:
        """The key holder, beside clients and server."""
        return {KEY_HOLDER: CKKSKeyHolder(self._round(parameters), self.holder, entropy)}

    def _round(self, parameters: RoundParameters) -> CKKSRound:
        return self.config.round(parameters, self.holder.roster.digest)
