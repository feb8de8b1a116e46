"""Randomness that must not be guessed: keys, masks, sampled batches and released noise.

A `Stream` is the AES-256 keystream in counter mode under one secret key (NIST SP 800-38A, section
6.5), read as bytes, uniforms, coins or Gaussians. `SystemEntropy` keys every stream afresh from the
operating system and is the only kind in the library; the seeded kind lives in the tests.

Noise state is a secret: whoever learns a stream's key can subtract the noise and void the guarantee.
So nothing here can be pickled or copied, and nothing shows itself in a repr.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from securefed.errors import PrivacyError

KEY_BYTES = 32
_TO_UNIT = 2.0**-53
_SUMMANDS = 4  # 2n with n = 2: guessing costs 2^(53 (2n - 1)) (Holohan and Braghin 2021, section 5.1)
_AT_ONCE = 16384  # pairs at a time: what is computed of them stays in the cache, a third off a million draws


class Stream:
    """One secret keystream and the distributions drawn from it; every draw consumes new bytes.

    A stream works only in the process that made it: after a fork, parent and child would otherwise
    release the same noise twice.

    Args:
        key: 32 bytes nobody else knows, used for this stream and nothing else (the counter starts at
            zero, so two streams of one key are the same stream).

    Raises:
        PrivacyError: a key of another length; a draw in a forked process; pickling or copying.
    """

    __slots__ = ("_keystream", "_process")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise PrivacyError(f"a stream's key has {KEY_BYTES} bytes, got {len(key)}")
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def bytes(self, n: int) -> bytes:
        """The next n bytes of the keystream."""
        if os.getpid() != self._process:
            raise PrivacyError("a noise stream was carried into a forked process; open a new one there")
        if n < 0:
            raise ValueError(f"cannot draw n={n} values; n must be at least 0")
        return self._keystream.update(bytes(n))

    def words(self, n: int) -> NDArray[np.uint64]:
        """n independent uniform 64-bit words, uint64 (n,)."""
        return np.frombuffer(self.bytes(8 * n), dtype="<u8").astype(np.uint64, copy=False)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """n uniforms on the multiples of 2^-53 in [0, 1), float64 (n,)."""
        uniform: NDArray[np.float64] = np.multiply(self.words(n) >> np.uint64(11), _TO_UNIT, dtype=np.float64)
        return uniform

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        """n coins that are True with probability p rounded down to a multiple of 2^-53, bool (n,).

        A 53-bit integer is compared with floor(p 2^53): the realized probability is never above p, so
        an accountant that is told p overstates, and it is below p by less than 2^-53 (exact for
        p = 0, p = 1 and p >= 1/2).
        """
        if not 0 <= p <= 1:
            raise ValueError(f"a probability lies in [0, 1], got p={p}")
        return (self.words(n) >> np.uint64(11)) < np.uint64(math.floor(p * 2.0**53))

    def normal(self, n: int) -> NDArray[np.float64]:
        """n standard Gaussians hardened against floating-point attacks, float64 (n,).

        A plain floating-point Gaussian takes values whose last bits betray the inputs (Mironov 2012).
        Each value here is the halved sum of four Gaussians from four different Box-Muller pairs, so
        that an attacker would have to guess three of them: 2^159 tries (Holohan and Braghin 2021,
        arXiv 2107.10138, section 5.1; Opacus' secure mode does the same). The sum is rounded, so this
        is hardening, not the exact discrete mechanism. Support: each summand is cut off at 8.57
        standard deviations, whose tail has probability 2^-53.
        """
        pairs = (n + 1) // 2
        # Two halves of one pair (cosine, sine) go to different outputs: rows are summed, columns are not.
        words = self.words(2 * _SUMMANDS * pairs).reshape(2, _SUMMANDS, pairs)
        total = np.zeros(2 * pairs)
        for i in range(0, pairs, _AT_ONCE):
            part = slice(i, i + _AT_ONCE)
            for row in range(_SUMMANDS):
                # 1 - u lies in (0, 1]: the logarithm never meets zero.
                radius = np.sqrt(-2.0 * np.log(1.0 - (words[0, row, part] >> np.uint64(11)) * _TO_UNIT))
                angle = (words[1, row, part] >> np.uint64(11)) * (2 * math.pi * _TO_UNIT)
                total[:pairs][part] += radius * np.cos(angle)
                total[pairs:][part] += radius * np.sin(angle)
        return total[:n] * (1 / math.sqrt(_SUMMANDS))

    def integers(self, n: int, high: int) -> NDArray[np.int64]:
        """n integers uniform over 0 .. high - 1, exactly (by rejection), int64 (n,); 1 <= high <= 2^63."""
        if not 1 <= high <= 2**63:
            raise ValueError(f"high lies in 1 .. 2^63, got {high}")
        mask = np.uint64((1 << (high - 1).bit_length()) - 1)
        kept: list[NDArray[np.uint64]] = []
        missing = n
        while missing > 0:
            drawn = self.words(2 * missing) & mask  # at least half are accepted on average
            drawn = drawn[drawn <= np.uint64(high - 1)][:missing]
            kept.append(drawn)
            missing -= len(drawn)
        return np.concatenate(kept).astype(np.int64) if kept else np.empty(0, np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A uniformly random order of 0 .. n - 1, int64 (n,): the ranks of n distinct random words."""
        while True:
            words = self.words(n)
            order = np.argsort(words, kind="stable")
            drawn = words[order]
            if n < 2 or bool((drawn[1:] != drawn[:-1]).all()):  # a tie would favour the earlier index
                return order.astype(np.int64, copy=False)

    def __repr__(self) -> str:
        return "Stream(secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("a noise stream is a secret and is never stored or copied; open a new one")


class Entropy(ABC):
    """Where streams come from. Pass one down by argument; hold no stream longer than its purpose."""

    @abstractmethod
    def stream(self, *context: str | int) -> Stream:
        """A stream for one purpose, e.g. `stream("noise", run, round, client)`.

        Args:
            context: labels of the purpose. A seeded test Entropy derives the key from them; the
                system's ignores them and returns a different stream at every call.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(secret)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("Entropy is never stored or copied; make a new SystemEntropy where it is needed")


class SystemEntropy(Entropy):
    """Keys every stream with 32 fresh bytes of the operating system's generator.

    >>> SystemEntropy().stream("noise", 0).normal(3).shape
    (3,)
    """

    def stream(self, *context: str | int) -> Stream:
        """A new stream, independent of every other, whatever the context (a label for the reader)."""
        return Stream(os.urandom(KEY_BYTES))
