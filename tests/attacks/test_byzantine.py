"""Every Byzantine attack: what it promises, where it must break a rule, and where a rule must hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from securefed.aggregation import Mean
from securefed_attacks import BYZANTINE, Byzantine, Optimal
from securefed_attacks.base import Line
from securefed_attacks.byzantine import ALIE, IPM, quantile
from securefed_attacks.min_max import MinMax, MinSum
from securefed_defenses import (
    AGGREGATORS,
    NNM,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Pipeline,
    TrimmedMean,
)

H, F, D = 16, 4, 300


def honest(seed: int = 0, dtype: torch.dtype = torch.float32, signal: float = 0.5) -> torch.Tensor:
    """Updates that agree on a direction, with a spread: the signal, and noise 0.3 in every coordinate."""
    generator = torch.Generator().manual_seed(seed)
    return (signal + 0.3 * torch.randn(H, D, generator=generator)).to(dtype)


def coins(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str) -> Byzantine:
    built: Byzantine = Optimal(IPM(), Mean()) if name == "optimal" else BYZANTINE[name]()
    return built


def off(rule: Any, rows: torch.Tensor, liars: torch.Tensor) -> float:
    """How far the rule's result is from the honest mean, in honest root-mean-square distances to it."""
    mean = rows.mean(0)
    spread = (rows - mean).square().sum(1).mean().sqrt()
    return float((rule(torch.cat([rows, liars])) - mean).norm() / spread)


# ------------------------------------------------------------------------------------- what all promise


@pytest.mark.parametrize("name", BYZANTINE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_rows_of_the_same_dtype_come_back_and_the_honest_ones_stay(name: str, dtype: torch.dtype) -> None:
    rows = honest(dtype=dtype)
    before = rows.clone()
    liars = make(name)(rows, F, coins())
    assert (liars.shape, liars.dtype, liars.device) == ((F, D), dtype, rows.device)
    assert torch.equal(rows, before)
    liars.fill_(0)  # memory of its own: f rows that are not views of one, nor of an honest row
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", [n for n in BYZANTINE if n != "optimal"])
def test_half_precision_is_kept(name: str) -> None:
    assert make(name)(honest(dtype=torch.bfloat16), F, coins()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", BYZANTINE)
def test_the_same_coins_give_the_same_lie_and_torch_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, second = (make(name)(honest(), F, coins()) for _ in range(2))
    assert torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
    make(name)(honest(), F)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BYZANTINE)
def test_no_liar_sends_nothing(name: str) -> None:
    assert make(name)(honest(), 0).shape == (0, D)


@pytest.mark.parametrize("name", BYZANTINE)
def test_each_states_what_it_knows(name: str) -> None:
    attack = make(name)
    assert attack.name == name
    assert attack.knowledge in ("omniscient", "own data", "none")
    assert isinstance(attack.colluding, bool)


@pytest.mark.parametrize("name", [n for n in BYZANTINE if make(n).knowledge != "omniscient"])
def test_who_claims_not_to_look_at_others_does_not(name: str) -> None:
    own = honest(9)[:F]
    one, other = (make(name)(honest(seed), F, coins(), own=own) for seed in (0, 5))
    assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("name", BYZANTINE)
@pytest.mark.parametrize(
    ("rows", "f", "said"),
    [
        (torch.ones(4, 3), -1, "f counts liars"),
        (torch.ones(4, 3), True, "f counts liars"),
        (torch.ones(4, 3), 1.5, "f counts liars"),
        (torch.ones(4), 1, "matrix"),
        (torch.ones(4, 3, dtype=torch.int64), 1, "int64"),
        (torch.ones(0, 3), 1, "h=0"),
        (torch.tensor([[1.0], [math.nan]]), 1, "NaN"),
        (torch.tensor([[1.0], [math.inf]]), 1, "infinity"),
    ],
)
def test_bad_input_is_refused_by_name(name: str, rows: torch.Tensor, f: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        make(name)(rows, f)
    assert str(error.value).startswith(f"{name}: ")


def test_what_is_given_beside_must_fit() -> None:
    with pytest.raises(ValueError, match=r"own has shape \(3, 300\), expected \(4, 300\)"):
        make("sign_flip")(honest(), F, own=honest()[:3])
    with pytest.raises(ValueError, match=r"previous is torch\.float64"):
        make("rop")(honest(), F, previous=torch.zeros(D, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sign_flip", {"scale": 0.0}, "scale"),
        ("boost", {"scale": -1.0}, "scale"),
        ("ipm", {"tau": math.nan}, "tau"),
        ("alie", {"tau": math.inf}, "tau"),
        ("mimic", {"target": -1}, "target"),
        ("gaussian", {"std": 0}, "std"),
        ("min_max", {"perturbation": "random"}, "perturbation"),
        ("rop", {"angle": 200}, "angle"),
        ("rop", {"relocation": 1.5}, "relocation"),
        ("rop", {"length": 0.0}, "length"),
        ("fang_krum", {"smallest": 0}, "smallest"),
        ("fang_trimmed_mean", {"factor": 1.0}, "factor"),
    ],
)
def test_a_strength_out_of_range_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BYZANTINE[name](**options)


def test_limits_of_h_and_f_are_named() -> None:
    with pytest.raises(ValueError, match="got n=9, f=5"):
        ALIE()(honest()[:4], 5)
    assert ALIE()(honest()[:4], 4).shape == (4, D)  # f = n / 2 is the exact limit
    with pytest.raises(ValueError, match="target=16, h=16"):
        BYZANTINE["mimic"](target=16)(honest(), F)
    for name, h in (("alie", 1), ("min_max", 1), ("min_sum", 1), ("fang_krum", 2)):
        with pytest.raises(ValueError, match=f"h={h}"):
            make(name)(honest()[:h], 1)


# ---------------------------------------------------------------------------------------- known answers


def test_alie_hides_with_the_papers_quantile() -> None:
    assert quantile(h=26, f=24) == pytest.approx(1.43, abs=5e-3)  # Baruch et al., section 3.1: n = 50, m = 24
    rows = honest()
    assert torch.allclose(ALIE(tau=1.5)(rows, 1)[0], rows.mean(0) + 1.5 * rows.std(0), atol=1e-6)


@pytest.mark.parametrize("perturbation", ["std", "unit", "sign"])
def test_min_max_reaches_its_bound_and_not_beyond(perturbation: Any) -> None:
    rows = honest(dtype=torch.float64)
    liar = MinMax(perturbation)(rows, 1)[0]
    assert (liar - rows).norm(dim=1).max() == pytest.approx(float(torch.cdist(rows, rows).max()), rel=1e-9)


@pytest.mark.parametrize("perturbation", ["std", "unit", "sign"])
def test_min_sum_reaches_its_bound_and_not_beyond(perturbation: Any) -> None:
    rows = honest(dtype=torch.float64)
    liar = MinSum(perturbation)(rows, 1)[0]
    bound = torch.cdist(rows, rows).square().sum(1).max()
    assert (liar - rows).square().sum() == pytest.approx(float(bound), rel=1e-9)


def test_the_largest_lambda_that_krum_still_picks_is_found_within_a_factor_of_two() -> None:
    rows = honest(signal=0.1)  # late in training: what clients agree on is small beside their spread
    attack = BYZANTINE["fang_krum"]()
    liar = attack(rows, F)
    assert torch.equal(Krum(f=F)(torch.cat([rows, liar])), liar[0])
    assert isinstance(attack, Line)
    assert not torch.equal(Krum(f=F)(torch.cat([rows, 2 * liar])), 2 * liar[0])


def test_fangs_values_lie_just_beyond_the_honest_ones_on_the_wrong_side() -> None:
    rows = honest() - 0.4
    liars = BYZANTINE["fang_trimmed_mean"]()(rows, F, coins())
    down = rows.mean(0) > 0
    assert (liars[:, down] <= rows.min(0).values[down]).all()
    assert (liars[:, ~down] >= rows.max(0).values[~down]).all()


def test_rop_pushes_across_what_it_refers_to() -> None:
    rows, last = honest(dtype=torch.float64), honest(3, torch.float64)[0]
    liar = BYZANTINE["rop"](length=2.0)(rows, 1, previous=last)[0]
    push = liar - last  # relocation = 1
    assert push.norm() == pytest.approx(2.0)
    assert push @ (0.9 * last + 0.1 * rows.mean(0)) == pytest.approx(0.0, abs=1e-9)


@given(scale=st.floats(0.1, 100), shift=st.integers(0, H - 1))
def test_attacks_on_the_mean_do_not_depend_on_the_order_of_clients(scale: float, shift: int) -> None:
    rows = honest(dtype=torch.float64)
    for attack in (IPM(tau=scale), ALIE(tau=scale), MinMax(), MinSum()):
        assert torch.allclose(attack(rows, 2), attack(rows.roll(shift, 0), 2), rtol=1e-6, atol=1e-9)


# --------------------------------------------------- where each must succeed, and where each must fail

NNM_GM = Pipeline(pre=(NNM(f=F),), rule=GeometricMedian())


def naive_mean(rows: torch.Tensor) -> torch.Tensor:
    """A mean that looks at nothing; ours refuses rows that are not finite."""
    return rows.mean(0)


DROPPING = TrimmedMean(f=F, on_nonfinite="drop")
CASES: dict[str, tuple[dict[str, Any], Any, float, Any]] = {
    "sign_flip": ({"scale": 8.0}, Mean(), 20, NNM_GM),
    "boost": ({"scale": 20.0}, Mean(), 20, NNM_GM),
    "ipm": ({"tau": 10.0}, Mean(), 20, NNM_GM),
    "alie": ({"tau": 10.0}, Mean(), 10, NNM_GM),
    "mimic": ({"target": 3}, GeometricMedian(), 2, Mean()),
    "gaussian": ({"std": 200.0}, Mean(), 100, TrimmedMean(f=F)),
    "inf": ({}, naive_mean, 100, DROPPING),
    "nan": ({}, naive_mean, 100, DROPPING),
    "min_max": ({}, TrimmedMean(f=F), 2, GeometricMedian()),
    "min_sum": ({}, TrimmedMean(f=F), 2, GeometricMedian()),
    "rop": ({"length": 5.0}, TrimmedMean(f=F), 2, NNM_GM),
    "fang_krum": ({}, TrimmedMean(f=F), 2, NNM_GM),
    "fang_trimmed_mean": ({}, TrimmedMean(f=F), 2, NNM_GM),
}
"""Attack -> options; a rule it breaks, and how many times the harm of as many honest rows; a rule that holds."""


def harmless() -> torch.Tensor:
    """What four more honest clients would have sent."""
    return honest(77)[:F]


@pytest.mark.parametrize("name", CASES)
def test_it_breaks_a_rule_that_is_weak_against_it(name: str) -> None:
    options, rule, times, _ = CASES[name]
    rows = honest()
    found = off(rule, rows, BYZANTINE[name](**options)(rows, F, coins()))
    assert not found < times * off(rule, rows, harmless())  # a NaN is no success of the rule


@pytest.mark.parametrize("name", CASES)
def test_a_robust_rule_holds_against_it(name: str) -> None:
    options, _, _, rule = CASES[name]
    rows = honest()
    assert off(rule, rows, BYZANTINE[name](**options)(rows, F, coins())) < 0.3


def test_every_attack_on_the_aggregate_has_such_a_pair() -> None:
    assert set(CASES) | {"optimal"} == set(BYZANTINE)  # `optimal` has its own file


def drift(attack: Byzantine, rule: Any = None, rounds: int = 20) -> float:
    """How far a rule that starts from its last result is led off the honest mean, in honest spreads."""
    signs = torch.randn(
        D, generator=coins(5)
    ).sign()  # the push starts as ones, so the signal must not be ones
    last = 0.5 * signs
    for seed in range(rounds):
        rows = (0.5 + (honest(seed) - 0.5) / 10) * signs  # momenta: a tenth of the noise
        rule_now = rule or CenteredClipping(radius=3.0, iterations=1, center=last)
        last = rule_now(torch.cat([rows, attack(rows, F, previous=last)]))
    return float((last - rows.mean(0)).norm() / (rows - rows.mean(0)).square().sum(1).mean().sqrt())


def test_rop_leads_centered_clipping_astray_and_not_neighbour_mixing() -> None:
    rop = BYZANTINE["rop"](length=3.0)
    assert drift(rop) > 3 * drift(BYZANTINE["mimic"](target=0))
    assert drift(rop, NNM_GM) < 0.3


def test_krum_follows_fang_against_what_the_honest_agree_on() -> None:
    rows = honest(signal=0.1)
    result = Krum(f=F)(torch.cat([rows, BYZANTINE["fang_krum"]()(rows, F)]))
    assert result @ rows.mean(0) < 0
    held = GeometricMedian()(torch.cat([rows, BYZANTINE["fang_krum"]()(rows, F)]))
    assert held @ rows.mean(0) > 0


def test_the_mean_is_turned_round_by_ipm_exactly_beyond_h_over_f() -> None:
    rows = honest()
    for tau, sign in ((3.9, 1), (4.1, -1)):
        result = Mean()(torch.cat([rows, IPM(tau)(rows, F)]))
        assert torch.sign(result @ rows.mean(0)) == sign


def test_every_registered_rule_meets_every_attack_or_refuses_in_words() -> None:
    rows = honest()
    built = {
        "krum": {"f": F},
        "multi_krum": {"f": F},
        "trimmed_mean": {"f": F},
        "median": {},
        "geometric_median": {},
    }
    for name in BYZANTINE:
        liars = make(name)(rows, F, coins())
        for rule, options in built.items():
            part = AGGREGATORS[rule](**options, on_nonfinite="drop")
            if bool(torch.isfinite(liars).all()) or "f" in options or rule == "median":
                assert torch.isfinite(part(torch.cat([rows, liars]))).all()


def test_lies_that_leave_the_range_of_the_dtype_are_refused_with_the_way_out() -> None:
    rows = torch.full((4, 3), 3e38)
    with pytest.raises(ValueError, match="sign_flip: what f=1 liars would send leaves the range of torch"):
        BYZANTINE["sign_flip"](scale=5.0)(rows, 1)
    assert torch.isfinite(BYZANTINE["sign_flip"](scale=5.0)(rows.double(), 1)).all()


@pytest.mark.parametrize("rows", [torch.eye(3).to_sparse(), torch.ones(3, 3, device="meta")])
def test_rows_that_are_not_dense_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="dense matrix"):
        BYZANTINE["ipm"]()(rows, 1)
