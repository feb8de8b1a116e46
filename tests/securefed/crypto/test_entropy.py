"""Keystream, distributions and secrecy of `Entropy`."""

from __future__ import annotations

import ast
import copy
import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import securefed
from securefed.crypto import Entropy, Stream, SystemEntropy
from securefed.errors import PrivacyError
from tests.entropy import SeededEntropy

SAMPLES = 200_000
# Seeds are fixed, so these tests never flicker; over all seeds one in 10^6 would fail each of them.
FALSE_ALARM = 1e-6


def stream(*context: str | int) -> Stream:
    return SeededEntropy(7).stream(*context)


def test_keystream_is_aes_256_in_counter_mode() -> None:
    # AES-256 of the zero block under the zero key: H of test case 13, McGrew and Viega, GCM specification.
    expected = "dc95c078a2408989ad48a21492842087"
    assert Stream(bytes(32)).bytes(16).hex() == expected
    # Our counter starts at zero, so blocks 0, 1, 2 ... encrypted one by one are the keystream.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    blocks = b"".join(k.to_bytes(16, "big") for k in range(5))
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert Stream(key).bytes(80) == ecb.update(blocks)


def test_the_cipher_behind_it_gives_the_answer_published_by_nist() -> None:
    """SP 800-38A F.5.5 (CTR-AES256.Encrypt), block 1."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    ctr = modes.CTR(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert (
        Cipher(algorithms.AES(key), ctr).encryptor().update(plain).hex() == "601ec313775789a5b7a7f504bbf3d228"
    )


def test_successive_draws_continue_the_keystream() -> None:
    one, many = stream("a"), stream("a")
    assert one.bytes(40) == many.bytes(7) + many.bytes(0) + many.bytes(33)


def test_uniform_lies_in_the_unit_interval_and_is_flat() -> None:
    u = stream("uniform").uniform(SAMPLES)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > FALSE_ALARM


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.135, 0.5, 0.999, 1.0])
def test_bernoulli_has_its_probability(p: float) -> None:
    hits = int(stream("coin", int(1000 * p)).bernoulli(SAMPLES, p).sum())
    assert stats.binomtest(hits, SAMPLES, p).pvalue > FALSE_ALARM


def test_bernoulli_test_would_notice_a_wrong_probability() -> None:
    hits = int(stream("coin").bernoulli(SAMPLES, 0.135).sum())
    assert stats.binomtest(hits, SAMPLES, 0.14).pvalue < FALSE_ALARM


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_bernoulli_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        stream("coin").bernoulli(3, p)


def sigma_is(values: np.ndarray, sigma: float) -> bool:
    """Whether a chi-squared test accepts this standard deviation for Gaussian values of mean zero."""
    low, high = stats.chi2.interval(1 - FALSE_ALARM, len(values))
    return bool(low < float((values**2).sum()) / sigma**2 < high)


def test_normal_is_standard_gaussian() -> None:
    x = stream("normal").normal(SAMPLES)
    assert abs(x.mean()) < 5 / math.sqrt(SAMPLES)
    assert stats.kstest(x, "norm").pvalue > FALSE_ALARM
    assert sigma_is(x, 1.0)
    assert not sigma_is(x, 2 / 3)
    assert not sigma_is(x, 3 / 2)


def test_normal_has_gaussian_tails_and_no_correlation_between_its_halves() -> None:
    x = stream("tails").normal(SAMPLES)
    beyond = int((np.abs(x) > 3.5).sum())
    assert stats.binomtest(beyond, SAMPLES, 2 * stats.norm.sf(3.5)).pvalue > FALSE_ALARM
    half = SAMPLES // 2  # cosine and sine of the same pairs
    assert abs(np.corrcoef(x[:half], x[half:])[0, 1]) < 5 / math.sqrt(half)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_normal_gives_as_many_as_asked(n: int) -> None:
    assert stream("few").normal(n).shape == (n,)


def test_normal_survives_uniforms_at_both_ends() -> None:
    class Extreme(Stream):
        def words(self, n: int) -> np.ndarray:
            return np.where(np.arange(n) % 2 == 0, np.uint64(0), np.uint64(2**64 - 1)).astype(np.uint64)

    assert np.isfinite(Extreme(bytes(32)).normal(100)).all()


@given(st.integers(0, 60), st.integers(0, 10**6))
def test_permutation_is_an_order(n: int, seed: int) -> None:
    assert sorted(SeededEntropy(seed).stream("order").permutation(n).tolist()) == list(range(n))


def test_permutations_are_equally_likely() -> None:
    source, counts = stream("orders"), np.zeros(27)
    for _ in range(6000):
        counts[source.permutation(3) @ np.array([9, 3, 1])] += 1
    assert stats.chisquare(counts[counts > 0]).pvalue > FALSE_ALARM
    assert (counts > 0).sum() == 6


@given(st.integers(1, 2**63), st.integers(0, 40))
def test_integers_stay_below_their_bound(high: int, n: int) -> None:
    drawn = stream("integers").integers(n, high)
    assert drawn.shape == (n,)
    assert all(0 <= int(v) < high for v in drawn)


def test_integers_are_flat() -> None:
    counts = np.bincount(stream("integers").integers(60_000, 6), minlength=6)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_system_streams_differ_whatever_the_context() -> None:
    entropy = SystemEntropy()
    assert len({entropy.stream("noise", 0).bytes(32) for _ in range(20)}) == 20


def test_seeded_streams_repeat_by_context_and_differ_between_contexts() -> None:
    entropy = SeededEntropy(1)
    contexts: list[tuple[str | int, ...]] = [
        (),
        ("a",),
        ("ab", 1),
        ("a", "b1"),
        ("a", "b", 1),
        ("1",),
        (1,),
        ("a", 11),
    ]
    first = [entropy.stream(*c).bytes(32) for c in contexts]
    assert first == [SeededEntropy(1).stream(*c).bytes(32) for c in contexts]
    assert len(set(first)) == len(contexts)
    assert SeededEntropy(2).stream("a").bytes(32) != first[1]


@pytest.mark.parametrize("secret", [SystemEntropy(), SeededEntropy(0), Stream(bytes(32))])
def test_secrets_show_nothing_and_are_never_stored(secret: object) -> None:
    assert repr(secret) == f"{type(secret).__name__}(secret)"
    for store in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="never stored"):
            store(secret)


def test_a_key_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(PrivacyError, match="32 bytes, got 16"):
        Stream(bytes(16))


def test_a_stream_is_refused_in_a_forked_process() -> None:
    """Otherwise parent and child would release the same noise."""
    secret, context = stream("fork"), multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            secret.normal(1)
        except PrivacyError as error:
            sender.send(str(error))

    process = context.Process(target=child)
    process.start()
    message = receiver.recv() if receiver.poll(30) else ""
    process.join()
    assert "forked process" in message


def test_only_the_system_entropy_is_defined_outside_the_tests() -> None:
    root = Path(securefed.__path__[0]).parent
    folders = [root / "securefed", root / "attacks", root / "defenses", root / "benchmarks"]
    found = {
        node.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Entropy" in ast.unparse(base) for base in node.bases)
    }
    assert found == {"SystemEntropy"}
    assert {c.__name__ for c in Entropy.__subclasses__() if c.__module__.startswith("securefed")} == {
        "SystemEntropy"
    }
