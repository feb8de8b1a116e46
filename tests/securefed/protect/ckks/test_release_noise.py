"""What decrypted sums tell about the key (Li and Micciancio 2021), and what the holder's noise does about it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.protect.ckks.parameters import COMPACT, GUARD, PRECISE, WIDE, Plan
from securefed.protect.ckks.residues import Words, add_into
from securefed.protect.ckks.scheme import Scheme, _Exchange

pytest.importorskip("tenseal", reason="the extra ckks is not installed")

N = COMPACT.degree
PLAN = Plan(COMPACT, n=3, d=N, value_range=1.0, max_weight=1.0)


def a_sum(holder: Scheme) -> Words:
    rng = np.random.default_rng(0)
    total = holder.encrypt(rng.uniform(-1, 1, N), PLAN.log2_scale)
    for _ in range(2):
        add_into(total, holder.encrypt(rng.uniform(-1, 1, N), PLAN.log2_scale), COMPACT.primes)
    return total


def recover_key(total: Words, released: np.ndarray) -> list[int]:
    """The passive key recovery of Li and Micciancio 2021 (ePrint 2020/1533, section 1.1), for N values of
    one ciphertext (c0, c1): encode what was released again and solve c0 + c1 s = m for s."""
    from tenseal import sealapi

    attacker = Scheme(COMPACT)
    half = N // 2
    plain = sealapi.Plaintext()
    slots = (released[:half] + 1j * released[half:]).tolist()
    attacker._encoder.encode(slots, 2.0**PLAN.log2_scale, plain)
    with _Exchange() as exchange:
        m = np.frombuffer(exchange.save(plain)[-8 * N :], "<u8").tolist()
    q = COMPACT.primes[0]
    c0, c1 = total[0, 0, 0].tolist(), total[0, 1, 0].tolist()
    return [(mi - a) * pow(b, -1, q) % q for mi, a, b in zip(m, c0, c1, strict=True)]


def test_one_sum_released_without_noise_gives_the_secret_key_away() -> None:
    """Why the guard exists: nothing but what an honest-but-curious server sees goes in."""
    holder = Scheme(COMPACT)
    holder.generate()
    total = a_sum(holder)
    released = holder.decrypt(total, PLAN.log2_scale)
    assert recover_key(total, released) == holder.secret_words().reshape(-1).tolist()


def test_the_guard_noise_defeats_that_recovery() -> None:
    holder = Scheme(COMPACT)
    holder.generate()
    total = a_sum(holder)
    released = holder.decrypt(total, PLAN.log2_scale)
    released = released + SystemEntropy().stream().normal(N) * PLAN.release_std
    found, secret = recover_key(total, released), holder.secret_words().reshape(-1).tolist()
    assert sum(a == b for a, b in zip(found, secret, strict=True)) < 3


def test_the_guard_is_larger_than_any_sums_own_error() -> None:
    assert PLAN.release_std == pytest.approx(GUARD * 3 * PLAN.fresh)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chosen", [COMPACT, PRECISE])
def test_the_formula_of_the_fresh_error_is_what_the_library_does(chosen: object, symmetric: bool) -> None:
    """2 x 8192 values or more: the standard deviation is known to 1.2 % (two sigma), 6 % is far off."""
    assert isinstance(chosen, type(COMPACT))
    plan = Plan(chosen, 4, 4 * N, 1.0, 1.0, symmetric)
    holder = Scheme(chosen)
    public = holder.generate()
    sender = holder
    if not symmetric:
        sender = Scheme(chosen)
        sender.take_public(public)
    else:
        holder.take_secret(holder.secret_words())
    values = np.random.default_rng(1).uniform(-1, 1, 4 * N)
    error = holder.decrypt(sender.encrypt(values, plan.log2_scale), plan.log2_scale) - values
    assert float(np.std(error)) == pytest.approx(plan.fresh, rel=0.06)


def test_flooding_noise_follows_the_published_formula() -> None:
    """8 sqrt(tau) 2^(kappa/2) t, by hand: t is the norm of n fresh errors over all coordinates."""
    plan = Plan(WIDE, n=10, d=100_000, value_range=1.0, max_weight=1.0, flooding=128, rounds=500)
    coordinates = 13 * 8192
    t = 1.25 * 10 * math.sqrt(coordinates) * plan.fresh
    assert plan.release_std == pytest.approx(8 * math.sqrt(500) * 2**64 * t)
    divergence = t**2 / (2 * plan.release_std**2)  # Kullback-Leibler, of Gaussians that far apart
    assert 500 * divergence == pytest.approx(2.0 ** (-128 - 7))


def test_flooding_that_does_not_fit_the_set_shows_in_the_expected_error() -> None:
    small = Plan(COMPACT, 10, 100_000, 1.0, 1.0, flooding=64)
    assert small.error > 1
    assert Plan(PRECISE, 10, 100_000, 1.0, 1.0, flooding=64).error < 1e-8
    assert Plan(WIDE, 10, 100_000, 1.0, 1.0, flooding=128).error < 1e-8
