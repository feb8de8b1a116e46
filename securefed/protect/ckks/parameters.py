"""Parameter sets of CKKS, what is secure, and what a round of it will cost and err: known before it starts.

SEAL keeps the last of several primes for key switching; it never is in a ciphertext. Only sums are taken,
so `compact` does without (TenSEAL's own contexts insist on one): an encryption then works modulo its
one prime, which nearly halves its cost and leaves more security. Both halves of a slot are used, the real and the imaginary, so that a ciphertext of degree N holds N
coordinates and not N/2.

Security: the largest total of modulus bits per degree at 128 bits against classical attacks with
ternary secrets is that of SEAL, after the Homomorphic Encryption Standard (Albrecht et al. 2018,
table 1). SEAL checks it a second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from securefed.errors import ConfigError, ProtocolError
from securefed.protect.ckks.primes import ntt_primes
from securefed.protect.ckks.residues import size_of

MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Degree -> most modulus bits at 128-bit security (SEAL's `CoeffModulus::MaxBitCount`, tc128)."""

MIN_PRIME_BITS, MAX_PRIME_BITS = 30, 60
ERROR_STD = math.sqrt(21 / 2)
"""SEAL's errors: centred binomial with 21 coins a side (`sample_poly_cbd`): variance 21/2."""
ERROR_MAX = 21
GUARD = 8.0
"""Noise that the key holder always adds, over the largest standard deviation the sum's own can have."""
FLOOR = 2.0**-36
"""The holder's noise, over the unit, is never smaller: float64 and SEAL's transforms err by less than
2^-44, and noise that drowns in rounding would hide nothing."""


@dataclass(frozen=True)
class ParameterSet:
    """A ring and its primes.

    Attributes:
        name: what a job calls it.
        degree: N, a power of two; a ciphertext holds N coordinates.
        bits: of each prime, the special one last if there are several. Together at most
            `MAX_MODULUS_BITS[degree]`.
        key_primes: the largest primes of those bits that are 1 modulo 2N and distinct, as SEAL chooses them.
    """

    name: str
    degree: int
    bits: tuple[int, ...]
    key_primes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bound = MAX_MODULUS_BITS.get(self.degree)
        if bound is None:
            raise ConfigError(
                f"ckks parameters {self.name}: degree must be one of {list(MAX_MODULUS_BITS)}, found {self.degree}"
            )
        if not self.bits or not all(MIN_PRIME_BITS <= b <= MAX_PRIME_BITS for b in self.bits):
            raise ConfigError(
                f"ckks parameters {self.name}: primes have {MIN_PRIME_BITS} to {MAX_PRIME_BITS} bits, found {list(self.bits)}"
            )
        if sum(self.bits) > bound:
            raise ConfigError(
                f"ckks parameters {self.name}: {sum(self.bits)} modulus bits at degree {self.degree} are below 128-bit "
                f"security, which allows {bound}; take fewer bits or a larger degree"
            )
        object.__setattr__(self, "key_primes", ntt_primes(self.degree, self.bits))

    @property
    def primes(self) -> tuple[int, ...]:
        """Those that a ciphertext has."""
        return self.key_primes[:-1] or self.key_primes

    @property
    def modulus(self) -> int:
        """q, their product."""
        return math.prod(self.primes)

    def fresh_std(self, *, symmetric: bool) -> float:
        """Standard deviation of a fresh ciphertext's error in each half of a slot, unscaled.

        Symmetric: that of e. Public key: of e0 + e1 s - e u with ternary u and s; where there is a special
        prime, that is divided by it, and the rounding of both polynomials remains. A half of a slot is
        a sum of N coefficients with squared weights 1/2 on average.
        """
        n, variance = self.degree, ERROR_STD**2
        if not symmetric:
            variance *= 1 + 4 * n / 3
            if len(self.key_primes) > 1:
                variance = variance / self.key_primes[-1] ** 2 + (1 + 2 * n / 3) / 12
        return math.sqrt(variance * n / 2)

    def error_bound(self, *, symmetric: bool) -> float:
        """What a coefficient of that error never exceeds."""
        return ERROR_MAX * (1 if symmetric else 2 * self.degree + 1) + 1


COMPACT = ParameterSet("compact", 4096, (49,))
"""12.25 bytes a coordinate; errs by 10^-6 of the range and below for cohorts of hundreds. The default."""
PRECISE = ParameterSet("precise", 8192, (60, 40, 40))
"""25 bytes; as exact as float64 lets it be, and room for some noise flooding. NVFLARE's default chain."""
WIDE = ParameterSet("wide", 8192, (60, 60, 60, 38))
"""45 bytes; room for noise flooding with 128 bits of security."""
SETS = {s.name: s for s in (COMPACT, PRECISE, WIDE)}


@dataclass(frozen=True)
class Plan:
    """What a round will be, computed before it starts; all of it is public.

    Attributes:
        set: ring and primes. symmetric: whether clients encrypt with the secret key.
        n: clients. d: coordinates, the weight's included where it is encrypted.
        value_range: bound of a coordinate. max_weight: bound of a weight.
        flooding: bits of security against an adversary who sees decrypted sums; 0: only the guard noise.
        rounds: decryptions that these bits are promised for.
    """

    set: ParameterSet
    n: int
    d: int
    value_range: float
    max_weight: float
    symmetric: bool = False
    flooding: int = 0
    rounds: int = 1000

    @cached_property
    def log2_scale(self) -> int:
        """k, where 2^k is what 1 becomes: the largest for which no sum wraps and `release_std` stays above
        `FLOOR`.

        A coordinate, over value_range x max_weight, lies in [-1, 1], a slot of two in a disc of radius
        sqrt(2); a coefficient is at most the largest slot, plus the error.

        Raises:
            ConfigError: a sum of n does not fit at 2^8.
        """
        error = self.set.error_bound(symmetric=self.symmetric)
        k = min(self.set.modulus.bit_length(), math.floor(math.log2(self._release / FLOOR)))
        while k > 8 and self.n * (math.sqrt(2) * 2**k + error) >= self.set.modulus / 2:
            k -= 1
        if k <= 8:
            raise ConfigError(
                f"ckks parameters {self.set.name}: a sum of n={self.n} does not fit; take a larger set"
            )
        return k

    @property
    def ciphertexts(self) -> int:
        """Full ciphertexts of one client: ceil(d / N)."""
        return -(-self.d // self.set.degree)

    @property
    def bytes_up(self) -> int:
        """Bytes of one client's ciphertexts, without headers. Symmetric ones replace half by a seed."""
        return size_of(self.ciphertexts, 1 if self.symmetric else 2, self.set.degree, self.set.primes)

    @property
    def unit(self) -> float:
        """What 1 stands for in a slot: value_range x max_weight."""
        return self.value_range * self.max_weight

    @property
    def fresh(self) -> float:
        """Standard deviation of one fresh ciphertext's error, in units of a slot."""
        return self.set.fresh_std(symmetric=self.symmetric) / 2.0**self.log2_scale

    @cached_property
    def release_std(self) -> float:
        """Standard deviation of the noise that the key holder adds to each coordinate, in units of a slot.

        Without flooding: `GUARD` times n fresh errors. With kappa bits over tau decryptions it is
        8 sqrt(tau) 2^(kappa/2) t, where t bounds the Euclidean norm of the sum's own error over all
        coordinates (Li, Micciancio, Schultz and Sorrell 2022, ePrint 2022/816, the Gaussian mechanism
        of section 4): the divergence of the released sum from one without that error is at most
        2^(-kappa - 7) / tau. The bound is for the worst sum that a lying server can ask for, n copies of
        one ciphertext, which adds errors and not variances (Guo et al. 2024, USENIX Security).
        """
        return self._release / 2.0**self.log2_scale

    @property
    def _release(self) -> float:
        fresh = self.set.fresh_std(symmetric=self.symmetric)
        if self.flooding == 0:
            return GUARD * self.n * fresh
        coordinates = self.ciphertexts * self.set.degree
        norm = 1.25 * self.n * math.sqrt(coordinates) * fresh  # 1.25: the norm concentrates at 1
        return 8 * math.sqrt(self.rounds) * 2 ** (self.flooding / 2) * norm

    @property
    def error_before(self) -> float:
        """Expected largest error of the mean, over value_range, before the holder's noise; equal weights at
        `max_weight`. Smaller weights err more, by max_weight / weight."""
        return self._largest * math.sqrt(self.n) * self.fresh / self.n

    @property
    def error(self) -> float:
        """The same after the holder's noise: what a round delivers."""
        return self._largest * math.hypot(math.sqrt(self.n) * self.fresh, self.release_std) / self.n

    @property
    def _largest(self) -> float:
        """Expected maximum of d standard Gaussians in absolute value, from above: sqrt(2 ln 2d)."""
        return math.sqrt(2 * math.log(2 * max(self.d, 1)))

    def describe(self) -> str:
        """One line for people: ciphertexts, MiB, error."""
        bits = "+".join(str(b) for b in self.set.bits)
        flood = f", flooding {self.flooding} bits over {self.rounds} rounds" if self.flooding else ""
        return (
            f"{self.set.name} (degree {self.set.degree}, {bits} bits, scale 2^{self.log2_scale}): "
            f"{self.ciphertexts} ciphertexts, {self.bytes_up / 2**20:.2f} MiB a client, "
            f"expected error of the mean {self.error:.1e} of the range{flood}"
        )


def choose(
    name: str,
    n: int,
    d: int,
    value_range: float,
    max_weight: float,
    error: float,
    *,
    symmetric: bool = False,
    flooding: int = 0,
    rounds: int = 1000,
) -> Plan:
    """The plan of a named set, or with "auto" of the smallest set whose expected error is at most `error`.

    Raises:
        ConfigError: an unknown set, or no set reaches the error.
    """
    if name != "auto" and name not in SETS:
        raise ConfigError(f"ckks: no parameters named {name!r}; known: auto, {', '.join(SETS)}")
    names = list(SETS) if name == "auto" else [name]
    plans = [Plan(SETS[k], n, d, value_range, max_weight, symmetric, flooding, rounds) for k in names]
    for plan in plans:
        if plan.error <= error:
            return plan
    best = min(plan.error for plan in plans)
    raise ConfigError(
        f"ckks: {name} parameters err by {best:.1e} of the range for n={n}, above error={error:g}; "
        f"raise error{', take parameters = auto' if name != 'auto' else ''}{' or lower flooding' if flooding else ''}"
    )


def check_sum_fits(plan: Plan, count: int) -> None:
    """Raises ProtocolError where more clients were added than the scale was chosen for."""
    if count > plan.n:
        raise ProtocolError(f"ckks: a sum of {count} does not fit a scale chosen for n={plan.n}")
