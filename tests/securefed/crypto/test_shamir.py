"""Any threshold of shares gives the secret; one fewer gives nothing; a wrong one is noticed by its commitment."""

from __future__ import annotations

import contextlib
import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import Stream, SystemEntropy
from securefed.crypto.shamir import PRIME, combine, combine_many, commit, split
from securefed.errors import ProtocolError

secrets = st.binary(min_size=32, max_size=32)


def stream() -> Stream:
    return SystemEntropy().stream("test")


def test_the_field_is_the_smallest_prime_above_two_to_the_256() -> None:
    def is_prime(n: int) -> bool:  # Miller-Rabin, more bases than are needed
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
            x = pow(base, odd, n)
            if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME, 2))


def slow_combine(shares: dict[int, bytes]) -> int:
    """Lagrange at zero with exact fractions, reduced only at the end."""
    total = Fraction(0)
    for x, share in shares.items():
        term = Fraction(int.from_bytes(share, "big"))
        for other in shares:
            if other != x:
                term *= Fraction(other, other - x)
        total += term
    return total.numerator * pow(total.denominator, -1, PRIME) % PRIME


@settings(max_examples=30)
@given(secret=secrets, n=st.integers(1, 9), data=st.data())
def test_any_threshold_of_shares_is_enough(secret: bytes, n: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, n))
    points = data.draw(st.lists(st.integers(1, 2**32), min_size=n, max_size=n, unique=True))
    shares = split(secret, threshold, points, stream())
    chosen = data.draw(st.permutations(points))[:threshold]
    kept = {x: shares[x] for x in chosen}
    assert combine(kept, threshold) == secret
    assert slow_combine(kept) == int.from_bytes(secret, "big")
    assert combine(shares, threshold) == secret


@pytest.mark.parametrize("guess", [0, 1, 2**255, 2**256 - 1])
def test_one_share_fewer_fits_every_secret_equally(guess: int) -> None:
    """To t - 1 shares and any secret there is a last share that makes them fit: nothing has been learned."""
    shares = split(bytes(range(32)), 3, [1, 2, 3], stream())
    with pytest.raises(ProtocolError, match="3 shares are needed, got 2"):
        combine({x: shares[x] for x in (1, 2)}, 3)
    first, second = (int.from_bytes(shares[x], "big") for x in (1, 2))
    last = (guess - 3 * first + 3 * second) % PRIME  # third differences of a parabola vanish
    completed = {1: shares[1], 2: shares[2], 3: last.to_bytes(33, "big")}
    assert combine(completed, 3) == guess.to_bytes(32, "big")


def test_every_sharing_is_fresh() -> None:
    assert len({split(bytes(32), 3, [1, 2, 3], stream())[1] for _ in range(20)}) == 20


def test_vectors_of_a_sharing_with_known_coefficients() -> None:
    """f(x) = 5 + 7 x + 11 x^2: shares by hand."""

    class Fixed(Stream):
        def bytes(self, n: int) -> bytes:
            return b"".join(c.to_bytes(64, "big") for c in (11, 7))

    shares = split((5).to_bytes(32, "big"), 3, [1, 2, 10], Fixed(bytes(32)))
    assert {x: int.from_bytes(s, "big") for x, s in shares.items()} == {1: 23, 2: 63, 10: 1175}


def test_a_wrong_share_changes_the_secret_and_its_commitment_names_it() -> None:
    secret = bytes(range(32))
    shares = split(secret, 3, [1, 2, 3], stream())
    commitments = {x: commit(s, b"round 1") for x, s in shares.items()}
    wrong = shares | {2: (int.from_bytes(shares[2], "big") ^ 1).to_bytes(33, "big")}
    with contextlib.suppress(ProtocolError):  # it may be of no secret at all
        assert combine(wrong, 3) != secret
    assert [x for x in wrong if commit(wrong[x], b"round 1") != commitments[x]] == [2]
    assert commit(shares[1], b"round 2") != commitments[1], "a share is committed to in its context"


def test_sums_of_context_and_share_do_not_collide() -> None:
    assert commit(b"bc" + bytes(31), b"a") != commit(b"c" + bytes(31), b"ab")


def test_several_secrets_at_once() -> None:
    several = [bytes([k]) * 32 for k in range(3)]
    shared = [split(s, 2, [1, 2, 3], stream()) for s in several]
    assert combine_many(shared, 2) == several


@pytest.mark.parametrize(
    ("shares", "threshold", "said"),
    [
        ({1: bytes(33)}, 2, "2 shares are needed"),
        ({1: bytes(33)}, 0, "0 shares are needed"),
        ({0: bytes(33), 1: bytes(33)}, 2, "point 0 is the secret"),
        ({1: bytes(32), 2: bytes(33)}, 2, "point 1 is malformed"),
        ({1: PRIME.to_bytes(33, "big"), 2: bytes(33)}, 2, "point 1 is malformed"),
        ({1: b"\xff" * 33, 2: bytes(33)}, 2, "malformed"),
        ({1: (PRIME - 1).to_bytes(33, "big")}, 1, "of no secret"),
    ],
)
def test_malformed_shares_are_refused(shares: dict[int, bytes], threshold: int, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        combine(shares, threshold)


@pytest.mark.parametrize(
    ("secret", "threshold", "points", "said"),
    [
        (bytes(31), 1, [1], "32 bytes"),
        (bytes(32), 0, [1], "threshold lies in"),
        (bytes(32), 3, [1, 2], "threshold lies in"),
        (bytes(32), 1, [1, 1], "same point"),
        (bytes(32), 1, [0], "point 0"),
        (bytes(32), 1, [2**32 + 1], "1 .. 2"),
    ],
)
def test_a_sharing_that_makes_no_sense_is_refused(
    secret: bytes, threshold: int, points: list[int], said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        split(secret, threshold, points, stream())


def test_the_shares_of_a_threshold_of_one_are_the_secret() -> None:
    assert {s[1:] for s in split(b"\x07" * 32, 1, [1, 5, 9], stream()).values()} == {b"\x07" * 32}


def test_every_pair_of_points_gives_the_same_secret() -> None:
    shares = split(b"\x09" * 32, 2, list(range(1, 8)), stream())
    assert {combine({a: shares[a], b: shares[b]}, 2) for a, b in itertools.combinations(shares, 2)} == {
        b"\x09" * 32
    }
