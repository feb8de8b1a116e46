"""The primes of a parameter set: the largest of their size that are 1 modulo 2N, as SEAL chooses them."""

from __future__ import annotations


def _is_prime(n: int) -> bool:
    """Miller and Rabin with the first 13 primes: exact below 3.3 x 10^24 (Sorenson and Webster 2015)."""
    small = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if n in small or any(n % p == 0 for p in small):
        return n in small
    r = ((n - 1) & (1 - n)).bit_length() - 1  # 2^r divides n - 1
    for a in small:
        x = pow(a, (n - 1) >> r, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def ntt_primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    """One prime = 1 (mod 2N) for each size; of several of one size the smallest comes first, as in SEAL."""
    found = {b: _largest(degree, b, bits.count(b)) for b in set(bits)}
    return tuple(found[b].pop() for b in bits)


def _largest(degree: int, bits: int, count: int) -> list[int]:
    """The `count` largest, counted down from 2^bits."""
    out: list[int] = []
    candidate = 2**bits + 1
    while len(out) < count:
        candidate -= 2 * degree
        if _is_prime(candidate):
            out.append(candidate)
    return out
