"""Parameter sets: secure or refused, chosen by a rule, their cost and error known before anything runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ConfigError, ProtocolError
from securefed.protect.ckks import CKKS
from securefed.protect.ckks.parameters import (
    COMPACT,
    MAX_MODULUS_BITS,
    PRECISE,
    SETS,
    WIDE,
    ParameterSet,
    Plan,
    choose,
)
from securefed.protect.ckks.primes import ntt_primes
from tests.securefed.protect.ckks.playing import Played, opened, parameters, true_sum, updates


@pytest.mark.parametrize(
    ("degree", "bits", "words"),
    [
        (4096, (60, 50), "110 modulus bits at degree 4096 are below 128-bit security, which allows 109"),
        (2048, (55,), "allows 54"),
        (8192, (60, 60, 60, 60), "allows 218"),
        (4000, (40,), "degree must be one of"),
        (0, (40,), "degree must be one of"),
        (4096, (), "found []"),
        (4096, (61,), "30 to 60 bits"),
        (4096, (20,), "30 to 60 bits"),
        (4096, (-49,), "30 to 60 bits"),
    ],
)
def test_an_insecure_or_impossible_set_is_refused_before_the_library_sees_it(
    degree: int, bits: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ParameterSet("mine", degree, bits)
    assert words in str(caught.value)


def test_the_table_of_secure_sizes_and_the_primes_are_the_librarys() -> None:
    sealapi = pytest.importorskip("tenseal.sealapi", reason="the extra ckks is not installed")
    for degree, bits in MAX_MODULUS_BITS.items():
        assert sealapi.CoeffModulus.MaxBitCount(degree, sealapi.SEC_LEVEL_TYPE.TC128) == bits
    for chosen in SETS.values():
        theirs = sealapi.CoeffModulus.Create(chosen.degree, list(chosen.bits))
        assert tuple(m.value() for m in theirs) == chosen.key_primes


def test_primes_have_their_size_and_their_form() -> None:
    """An independent check: trial division for a small size."""
    (prime,) = ntt_primes(1024, (30,))
    assert prime.bit_length() == 30
    assert prime % 2048 == 1
    assert all(prime % k for k in range(2, math.isqrt(prime) + 1))
    for larger in range(prime + 2048, 2**30, 2048):
        assert any(larger % k == 0 for k in range(2, math.isqrt(larger) + 1))
    assert len(set(ntt_primes(8192, (60, 60, 60, 38)))) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([COMPACT, PRECISE, WIDE]),
    st.integers(2, 5000),
    st.integers(1, 10**7),
    st.booleans(),
    st.sampled_from([0, 40, 128]),
)
def test_no_sum_that_a_plan_allows_can_wrap(
    chosen: ParameterSet, n: int, d: int, symmetric: bool, flooding: int
) -> None:
    plan = Plan(chosen, n, d, 1.0, 1.0, symmetric, flooding)
    largest = n * (math.sqrt(2) * 2**plan.log2_scale + chosen.error_bound(symmetric=symmetric))
    assert largest < chosen.modulus / 2
    assert plan.release_std >= 2**-36


def test_a_cohort_at_the_edge_of_the_modulus_sums_rightly_and_one_bit_more_would_wrap() -> None:
    """Every coordinate of every client at the bound: the worst case of the formula, on the real library."""
    pytest.importorskip("tenseal", reason="the extra ckks is not installed")
    from securefed.protect.ckks.residues import add_into
    from securefed.protect.ckks.scheme import Scheme

    n = 11
    plan = Plan(COMPACT, n, 4096, 1.0, 1.0)
    holder = Scheme(COMPACT)
    holder.generate()
    for scale, right in ((plan.log2_scale, True), (plan.log2_scale + 2, False)):
        total = holder.encrypt(np.ones(4096), scale)
        for _ in range(n - 1):
            add_into(total, holder.encrypt(np.ones(4096), scale), COMPACT.primes)
        opened_sum = holder.decrypt(total, scale)
        assert np.allclose(opened_sum, n, atol=1e-3) == right


def test_the_rule_takes_the_smallest_set_that_is_exact_enough() -> None:
    small = choose("auto", 100, 10**6, 1.0, 1.0, 1e-6)
    assert (small.set, small.log2_scale) == (COMPACT, 40)
    assert choose("auto", 100, 10**6, 1.0, 1.0, 1e-8).set is PRECISE
    assert choose("auto", 100, 10**6, 1.0, 1.0, 1e-6, flooding=40).set is PRECISE
    assert choose("auto", 100, 10**6, 1.0, 1.0, 1e-6, flooding=128).set is WIDE
    assert choose("auto", 5000, 10**6, 1.0, 1.0, 1e-6).set is PRECISE


def test_a_set_that_cannot_reach_the_error_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"compact parameters err by .* take parameters = auto"):
        choose("compact", 100, 10**6, 1.0, 1.0, 1e-9)
    with pytest.raises(ConfigError, match="lower flooding"):
        choose("precise", 100, 10**6, 1.0, 1.0, 1e-6, flooding=128)
    with pytest.raises(ConfigError, match="known: auto, compact, precise, wide"):
        choose("tiny", 10, 10, 1.0, 1.0, 1e-6)


def test_bytes_and_ciphertexts_are_those_of_the_table() -> None:
    plan = Plan(COMPACT, 10, 1_000_000, 1.0, 1.0)
    assert plan.ciphertexts == 245
    assert plan.bytes_up == 245 * 2 * 4096 * 49 // 8
    assert Plan(PRECISE, 10, 8192, 1.0, 1.0).bytes_up == 25 * 8192
    assert Plan(WIDE, 10, 8192, 1.0, 1.0).bytes_up == 45 * 8192
    assert "245 ciphertexts, 11.72 MiB a client" in plan.describe()


@pytest.mark.parametrize("flooding", [0, 40])
def test_a_round_costs_and_errs_what_was_said_before_it(flooding: int) -> None:
    """The largest of 20 000 errors is above its expectation's bound by at most a few percent, and not far below."""
    pytest.importorskip("tenseal", reason="the extra ckks is not installed")
    d, n = 20_000, 4
    protection = opened(n, flooding=flooding, error=1e-3)
    plan = protection.config.round(parameters(n, d=d)).plan
    given_updates = updates(n, d=d)
    played = Played(protection, parameters(n, d=d)).play(given_updates)
    error = np.abs(played.result.total - true_sum(given_updates, range(n))).max() / n
    assert 0.6 * plan.error < error < 1.4 * plan.error
    sent = {m.sender: len(m.payload) for m in played.sent if m.sender >= 0 and m.receiver == -1}
    assert all(plan.bytes_up <= b < plan.bytes_up + 300 for b in sent.values())


def test_what_is_said_before_a_run_names_cost_error_trust_and_what_stays_in_clear() -> None:
    lines = CKKS(encrypted_share=0.1, trust="verified").cost(12, 74_498, None)
    text = "\n".join(lines)
    assert "19 ciphertexts, 0.91 MiB a client" in text
    assert "expected error of the mean" in text
    assert "is trusted not to open single ones" in text
    assert "67,048 of 74,498 coordinates (90.0%)" in text
    heavy, light = (CKKS(max_weight=w).cost(12, 1000, 10.0)[0] for w in (10.0, 1000.0))
    error = [float(line.split(", ")[-1].split(" ")[0]) for line in (heavy, light)]
    assert "where all weigh 10" in light
    assert error[1] == pytest.approx(100 * error[0], rel=0.2)
    assert "IN CLEAR" not in "\n".join(CKKS().cost(12, 74_498, None))


def test_a_weight_or_a_cohort_that_cannot_be_is_refused_before_the_run() -> None:
    with pytest.raises(ProtocolError, match=r"raise protection\.max_weight"):
        CKKS(max_weight=100.0).check_cohort(5, 101.0)
    with pytest.raises(ProtocolError, match="min_survivors=2"):
        CKKS().check_cohort(1, None)
    CKKS(max_weight=100.0).check_cohort(5, 100.0)


@pytest.mark.parametrize(
    "options",
    [
        {"trust": "nobody"},
        {"parameters": "tiny"},
        {"error": 0.0},
        {"value_range": math.inf},
        {"value_range": -1.0},
        {"max_weight": 0.0},
        {"flooding": -1},
        {"flooding": 1000},
        {"flooding_rounds": 0},
        {"min_survivors": 1},
        {"encrypted_share": 0.0},
        {"encrypted_share": 1.5},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        CKKS(**options)  # type: ignore[arg-type]  # wrong on purpose
