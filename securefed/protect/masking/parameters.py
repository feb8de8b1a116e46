"""What all parties of one round agree on before it begins, and the floors no server can lower.

The server signs the parameters and proposes them; each client compares them with what it knows
itself (run, round, cohort, layout, its own global model) and with its own `Policy`, and from then on
signs their digest in every message. Two parties that hold other parameters cannot complete a step.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast, get_args

from securefed.crypto.encoding import Reader, Writer
from securefed.crypto.prg import CipherName
from securefed.errors import ProtocolError
from securefed.protect.graph import neighbourhood
from securefed.protect.masking.fixedpoint import Limbs, Quantizer, levels_for
from securefed.types import RoundParameters

DOMAIN = b"securefed masking"
VERSION = 1
MIN_BITS, MAX_BITS = 16, 32
MOST_CODEC = 1 << 12
MIN_HONEST = 3
"""A sum over fewer honest clients tells one of them, or whoever joins it, the other's update."""


@dataclass(frozen=True)
class MaskingParameters:
    """The public constants of one round of masking.

    Attributes:
        base: run, round, cohort, layout and global model.
        roster: digest of the pinned identities.
        bits: width of the ring. levels, value_range: the quantizer's.
        max_weight: weights above it do not fit; 1 where the weights are public.
        k: neighbours of a client; n - 1 is the complete graph.
        threshold: shares that open a secret. quorum: signatures on one digest before any is opened.
        min_survivors: the fewest inputs a released sum may hold.
        max_clipped_share: of all coordinates, the share that may be clipped.
        cipher: of the mask stream, "aes" or "chacha20".
        codec: public constants of what travels instead of fixed point (`codec.py`); empty for fixed point.
            With a codec levels, value_range and max_clipped_share have no effect.
    """

    base: RoundParameters
    roster: bytes
    bits: int
    levels: int
    value_range: float
    max_weight: float
    k: int
    threshold: int
    quorum: int
    min_survivors: int
    max_clipped_share: float
    cipher: CipherName = "aes"
    codec: bytes = b""

    @property
    def n(self) -> int:
        """The size of the cohort."""
        return len(self.base.clients)

    @property
    def quantizer(self) -> Quantizer:
        return Quantizer(self.bits, self.levels, self.value_range)

    @property
    def limbs(self) -> Limbs:
        return Limbs.for_cohort(self.n, self.bits)

    @property
    def tail(self) -> int:
        """Words behind the d coordinates: the clipped count and, unless it is public, the weight.

        None with a codec: a count beside noised words would be without noise.
        """
        if self.codec:
            return 0
        return self.limbs.count * (1 if self.base.weights is not None else 2)

    @property
    def model(self) -> bytes:
        """H(global model), 32 bytes."""
        return bytes.fromhex(self.base.model_digest)

    def public_weight(self, client: int) -> float | None:
        """The client's public weight, None where weights are secret."""
        weights = self.base.weights
        return None if weights is None else weights[self.base.clients.index(client)]

    def encode(self) -> bytes:
        """The canonical bytes that are signed and hashed; the global model's digest is not in them."""
        w, b = Writer(), self.base
        w.text(b.run).u32(b.round).u64(b.size).raw(bytes.fromhex(b.layout_digest)).u32(len(b.clients))
        for client in b.clients:
            w.u32(client)
        w.u8(b.weights is not None)
        for weight in b.weights or ():
            w.f64(weight)
        w.raw(self.roster).u8(self.bits).u32(self.levels).f64(self.value_range).f64(self.max_weight)
        w.u32(self.k).u32(self.threshold).u32(self.quorum).u32(self.min_survivors)
        return (
            w.f64(self.max_clipped_share)
            .text(self.cipher)
            .blob(self.codec)
            .blob(bytes.fromhex(b.ledgers))
            .finish()
        )

    @classmethod
    def decode(cls, payload: bytes, model_digest: str) -> MaskingParameters:
        """The parameters in these bytes.

        Raises:
            ProtocolError: malformed, or values no round can have.
        """
        r = Reader(payload)
        run, round_, size, layout = r.text(256), r.u32(), r.u64(), r.raw(32)
        clients = tuple(r.u32() for _ in range(r.count(1 << 20, 4)))
        public = r.u8()
        weights = tuple(r.f64() for _ in clients) if public else None
        base = RoundParameters(run, round_, clients, size, layout.hex(), model_digest, weights)
        roster, bits, levels, value_range, max_weight = r.raw(32), r.u8(), r.u32(), r.f64(), r.f64()
        k, threshold, quorum, survivors = r.u32(), r.u32(), r.u32(), r.u32()
        found = cls(
            base,
            roster,
            bits,
            levels,
            value_range,
            max_weight,
            k,
            threshold,
            quorum,
            survivors,
            r.f64(),
            _cipher(r.text(16)),
            r.blob(MOST_CODEC),
        )
        found = replace(found, base=replace(base, ledgers=r.blob(32).hex()))
        r.finish()
        found.validate()
        if found.encode() != payload:
            raise ProtocolError("masking: the parameters are not in their canonical encoding")
        return found

    @cached_property
    def digest(self) -> bytes:
        """H(round parameters), 32 bytes."""
        return hashlib.sha256(DOMAIN + b" parameters" + self.encode()).digest()

    @cached_property
    def context(self) -> bytes:
        """One hash over domain, version, run, round, parameters and global model: enters every key."""
        return hashlib.sha256(DOMAIN + bytes([VERSION]) + self.digest + self.model).digest()

    @cached_property
    def header(self) -> bytes:
        """What all headers of the round have in common: round, H(run), H(parameters), H(global model)."""
        return struct.pack("<I32s32s32s", self.base.round, run_tag(self.base.run), self.digest, self.model)

    def validate(self) -> None:
        """Raises ProtocolError where the numbers contradict each other, whoever proposed them."""
        n, b = self.n, self.base
        _need(tuple(sorted(set(b.clients))) == b.clients, "the cohort is not ascending without repetition")
        _need(MIN_BITS <= self.bits <= MAX_BITS, f"bits={self.bits} lies outside {MIN_BITS} .. {MAX_BITS}")
        _need(n < 1 << (self.bits - 1), f"a ring of {self.bits} bits cannot hold a cohort of {n}")
        _need(
            1 <= self.levels <= levels_for(n, self.bits),
            f"n x levels = {n} x {self.levels} does not fit half of a {self.bits}-bit ring: the sum could wrap",
        )
        _need(_positive(self.value_range), f"value_range must be above 0, found {self.value_range}")
        _need(_positive(self.max_weight), f"max_weight must be above 0, found {self.max_weight}")
        _need(0 <= self.max_clipped_share <= 1, f"max_clipped_share={self.max_clipped_share} is no share")
        _need(self.k == n - 1 or self.k % 2 == 0, f"k={self.k} is neither even nor n - 1 = {n - 1}")
        _need(1 <= self.k < n, f"k={self.k} neighbours need a cohort above {self.k}, found {n}")
        _need(
            2 <= self.threshold <= self.k + 1,
            f"threshold={self.threshold} lies outside 2 .. k + 1 = {self.k + 1}",
        )
        _need(
            n < 2 * self.quorum <= 2 * n, f"quorum={self.quorum} must be more than half of {n}, at most all"
        )
        _need(self.min_survivors <= n, f"min_survivors={self.min_survivors} is more than the cohort of {n}")
        for weight in b.weights or ():
            _need(
                0 < weight <= self.max_weight, f"a public weight {weight} lies outside (0, {self.max_weight}]"
            )


@dataclass(frozen=True)
class Policy:
    """What a client demands of any round, whatever the server proposes.

    Attributes:
        min_cohort: the smallest cohort.
        gamma: share of the cohort assumed to collude with the server.
        drop: share expected to vanish. Both choose the table's row for k, threshold and quorum.
        k, threshold, quorum: floors that replace the table's (None: the table's row for the cohort).
        min_bits: the narrowest ring. max_value_range, min_value_range: of the quantizer.
        max_clipped_share: the largest bound the server may set.
    """

    min_cohort: int = MIN_HONEST
    gamma: float = 0.1
    drop: float = 0.1
    k: int | None = None
    threshold: int | None = None
    quorum: int | None = None
    min_bits: int = MIN_BITS
    min_value_range: float = 0.0
    max_value_range: float = math.inf
    max_clipped_share: float = 1.0

    def floors(self, n: int) -> tuple[int, int, int, int]:
        """(k, threshold, quorum, min_survivors) for a cohort of n."""
        row = neighbourhood(n, self.gamma, self.drop, chosen_drops=True)
        k = row.k if self.k is None else min(self.k, n - 1)
        threshold = row.threshold if self.threshold is None else min(self.threshold, k + 1)
        quorum = row.quorum if self.quorum is None else self.quorum
        return k, threshold, quorum, math.floor(self.gamma * n) + MIN_HONEST

    def check(self, p: MaskingParameters) -> None:
        """Raises ProtocolError naming the first value below this client's floor."""
        n = p.n
        _need(n >= self.min_cohort, f"a cohort of {n} is below this client's floor of {self.min_cohort}")
        p.validate()
        k, threshold, quorum, survivors = self.floors(n)
        for name, found, floor in (
            ("k", p.k, k),
            ("threshold", p.threshold, threshold),
            ("quorum", p.quorum, quorum),
            ("min_survivors", p.min_survivors, survivors),
            ("bits", p.bits, self.min_bits),
            ("value_range", p.value_range, self.min_value_range),
        ):
            _need(
                found >= floor, f"{name}={found} is below this client's floor of {floor} for a cohort of {n}"
            )
        for name, value, bound in (
            ("value_range", p.value_range, self.max_value_range),
            ("max_clipped_share", p.max_clipped_share, self.max_clipped_share),
        ):
            _need(value <= bound, f"{name}={value} is above this client's bound of {bound}")


def _cipher(name: str) -> CipherName:
    for known in get_args(CipherName):
        if name == known:
            return cast(CipherName, known)
    raise ProtocolError(f"masking parameters: unknown cipher {name!r}")


def run_tag(run: str) -> bytes:
    """H(run), 32 bytes."""
    return hashlib.sha256(run.encode()).digest()


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise ProtocolError(f"masking parameters: {message}")
