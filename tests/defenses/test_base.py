"""What every rule refuses, drops and honours: bad counts, bad rows, bad contexts, in one readable line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from securefed.types import RoundContext
from securefed_defenses import (
    AGGREGATORS,
    ARC,
    NNM,
    PRE_AGGREGATORS,
    RLR,
    Bucketing,
    CenteredClipping,
    Clip,
    DnC,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    MultiKrum,
    NormBound,
    Pipeline,
    Rule,
    TrimmedMean,
)

D = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "centered_clipping": {"radius": 1.0},
    "norm_bound": {"max_norm": 1.0},
    "rlr": {"threshold": 2},
    "fl_trust": {"root_update": torch.ones(D)},
    "pipeline": {"pre": (NNM(f=1),), "rule": TrimmedMean(f=1)},
    "bucketing": {"s": 1},
    "clip": {"max_norm": 1.0},
}
LEAST = {  # smallest n for f = 2
    "trimmed_mean": 5,
    "mea_med": 5,
    "krum": 7,
    "multi_krum": 7,
    "bulyan": 11,
    "mda": 5,
    "monna": 5,
    "caf": 5,
    "dnc": 5,
    "nnm": 5,
    "arc": 5,
}
ALL = {**AGGREGATORS, **PRE_AGGREGATORS}
CHECKED = sorted(set(ALL) - {"mean"})


def build(name: str, **more: Any) -> Any:
    fields = {f.name for f in dataclasses.fields(ALL[name])}
    options = {"f": 1} if "f" in fields else {}
    return ALL[name](**{**options, **OPTIONS.get(name, {}), **more})


def rows(n: int = 12) -> torch.Tensor:
    return 1 + torch.randn(n, D, generator=torch.Generator().manual_seed(0))


def context(n: int = 12, **more: Any) -> RoundContext:
    return RoundContext(0, tuple(range(n)), **{"weights": (1.0,) * n, "layout_digest": "layout", **more})


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", LEAST)
def test_one_row_fewer_than_the_rule_needs_is_refused_and_the_exact_number_is_not(name: str) -> None:
    rule = build(name, f=2)
    message = refusal(rule, rows(LEAST[name] - 1))
    assert f"got n={LEAST[name] - 1}, f=2; lower f or add clients" in message
    assert name in message
    assert torch.isfinite(rule(rows(LEAST[name]))).all()


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("f", [-1, 1.5, True, "2"])
def test_an_f_that_counts_nothing_is_refused(name: str, f: Any) -> None:
    assert "whole number" in refusal(build, name, f=f)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_refused_with_its_place(name: str, value: float) -> None:
    bad = rows()
    bad[7, 3] = value
    message = refusal(build(name), bad)
    assert "row 7 of n=12" in message
    assert 'on_nonfinite = "drop"' in message


@pytest.mark.parametrize("name", sorted(set(CHECKED) - {"rlr", "fl_trust", "bucketing", "pipeline"}))
def test_a_dropped_row_counts_as_one_of_the_f(name: str) -> None:
    bad = rows()
    bad[7, 3] = torch.nan
    without = torch.cat([bad[:7], bad[8:]])
    smaller = build(name, f=0) if name in LEAST else build(name)
    found, expected = build(name, on_nonfinite="drop")(bad), smaller(without)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEAST)
def test_more_bad_rows_than_f_are_refused_even_where_rows_may_be_dropped(name: str) -> None:
    bad = rows()
    bad[3:5] = torch.inf
    assert "2 of n=12 rows" in refusal(build(name, on_nonfinite="drop"), bad)
    assert torch.isfinite(build(name, on_nonfinite="drop", f=2)(bad)).all()


def test_where_every_row_is_bad_nothing_is_left_to_drop() -> None:
    assert "all n=3 rows" in refusal(Median(on_nonfinite="drop"), torch.full((3, 2), torch.nan))


def test_a_pipeline_drops_for_all_its_parts() -> None:
    bad = rows()
    bad[0, 0] = torch.nan
    line = Pipeline((ARC(f=2), NNM(f=2)), TrimmedMean(f=2), on_nonfinite="drop")
    expected = Pipeline((ARC(f=1), NNM(f=1)), TrimmedMean(f=1))(bad[1:])
    torch.testing.assert_close(line(bad), expected)
    assert "row 0" in refusal(dataclasses.replace(line, on_nonfinite="refuse"), bad)


def test_dropping_moves_the_place_of_the_trusted_row_and_never_drops_it() -> None:
    bad = rows()
    bad[2] = torch.nan
    torch.testing.assert_close(
        MoNNA(f=1, trusted=5, on_nonfinite="drop")(bad), MoNNA(f=0, trusted=4)(torch.cat([bad[:2], bad[3:]]))
    )
    assert "trust another" in refusal(MoNNA(f=1, trusted=2, on_nonfinite="drop"), bad)


def test_a_finite_row_too_long_for_float64_is_treated_as_not_finite_where_lengths_are_needed() -> None:
    long = rows().double()
    long[4] = 1e200
    assert "row 4" in refusal(Krum(f=1), long)
    assert torch.equal(Krum(f=1, on_nonfinite="drop")(long), Krum(f=0)(torch.cat([long[:4], long[5:]])))
    assert torch.isfinite(TrimmedMean(f=1)(long)).all()


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_no_matrix_of_floats_is_refused(name: str) -> None:
    rule = build(name)
    assert "float32 or float64" in refusal(rule, torch.ones(12, D, dtype=torch.int64))
    assert "(n, d)" in refusal(rule, torch.ones(12))
    assert "row 1" in refusal(rule, [torch.ones(D), torch.ones(D + 1)])
    assert "at least one row" in refusal(rule, torch.ones(0, D))


@pytest.mark.parametrize("name", sorted(set(AGGREGATORS) - {"mean"}))
def test_a_context_that_does_not_fit_is_refused(name: str) -> None:
    rule = build(name)
    assert "client 3 is there 2 times" in refusal(
        rule.step, rows(), dataclasses.replace(context(), clients=(3, *range(11))), None
    )
    assert "11 clients" in refusal(rule.step, rows(), context(11), None)
    for weights in ((0.0,) * 12, (-1.0,) + (1.0,) * 11, (torch.nan,) + (1.0,) * 11):
        assert "weights" in refusal(rule.step, rows(), context(weights=weights), None)


@pytest.mark.parametrize("name", CHECKED)
def test_lists_iterators_and_matrices_give_the_same(name: str) -> None:
    rule = build(name)
    expected = rule(rows())
    torch.testing.assert_close(rule(list(rows())), expected)
    torch.testing.assert_close(rule(iter(rows())), expected)


@pytest.mark.parametrize("name", CHECKED)
def test_zero_rows_are_rows(name: str) -> None:
    """A client that did not move sends zeros; nothing divides by its length."""
    still = rows()
    still[2:4] = 0
    assert torch.isfinite(build(name)(still)).all()
    assert torch.equal(build(name)(torch.zeros(12, D)), torch.zeros_like(build(name)(torch.zeros(12, D))))


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_rules_without_a_length_of_their_own_scale_with_their_input(name: str, scale: float) -> None:
    if name in ("centered_clipping", "norm_bound", "clip", "fl_trust"):
        scaled = {"centered_clipping": "radius", "norm_bound": "max_norm", "clip": "max_norm"}.get(
            name, "root_update"
        )
        rule = build(name, **{scaled: scale * OPTIONS[name][scaled]})
    else:
        rule = build(name)
    torch.testing.assert_close(rule(scale * rows()) / scale, build(name)(rows()), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "rule",
    [Median(), GeometricMedian(tol=1e-12, max_iter=10_000), NormBound(2.0), CenteredClipping(1.5), RLR(0)],
)
def test_a_weight_of_two_is_a_client_that_is_there_twice(rule: Rule) -> None:
    x = rows(7).double()
    weights = (1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 0.0)
    twice = torch.cat([row.repeat(int(w), 1) for row, w in zip(x, weights, strict=True)])
    found, _ = rule.step(x, context(7, weights=weights), None)
    torch.testing.assert_close(found, rule(twice), rtol=1e-5, atol=1e-5)
    equal, _ = rule.step(x, context(7), None)
    assert (equal - found).abs().max() > 1e-3


@pytest.mark.parametrize("rule", [TrimmedMean(1), Krum(1), MultiKrum(1), DnC(1)])
def test_rules_without_a_weighted_form_leave_weights_unread(rule: Rule) -> None:
    x = rows(7)
    found, _ = rule.step(x, context(7, weights=(1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 100.0)), None)
    assert torch.equal(found, rule(x))


# ----------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    "rule",
    [Pipeline((Bucketing(s=2),), Median()), DnC(1, subsample=3), AGGREGATORS["flame"](noise_multiplier=0.1)],
)
def test_a_rule_that_draws_needs_a_generator_and_repeats_itself_with_one(rule: Rule) -> None:
    assert "seeded generator" in refusal(rule, rows())
    assert "seeded generator" in refusal(rule.step, rows(), context(), None)

    def play(seed: int) -> torch.Tensor:
        return rule(rows(), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(play(1), play(1))
    assert any(not torch.equal(play(1), play(seed)) for seed in range(2, 30))
    stepped, _ = rule.step(rows(), context(generator=torch.Generator().manual_seed(1)), None)
    torch.testing.assert_close(stepped, play(1))


@pytest.mark.parametrize("name", sorted(set(AGGREGATORS)))
def test_no_rule_touches_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    build(name)(rows())
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_of_the_wrong_device_is_refused() -> None:
    class Elsewhere:
        device = torch.device("cuda")

    assert "the generator is on cuda, the rows on cpu" in refusal(
        Bucketing(s=2),
        rows(),
        generator=Elsewhere(),
    )


# -------------------------------------------------------------------------------------- single options


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiKrum(f=1, m=0), "m must be at least 1"),
        (lambda: MultiKrum(f=1, m=12)(rows()), "m <= n - f, got m=12, n=12, f=1"),
        (lambda: MoNNA(f=1, trusted=12)(rows()), "trusted names a row"),
        (lambda: GeometricMedian(max_iter=0), "max_iter"),
        (lambda: GeometricMedian(tol=0.0), "tol"),
        (lambda: CenteredClipping(radius=0.0), "radius"),
        (lambda: CenteredClipping(radius=1.0, iterations=0), "iterations"),
        (lambda: CenteredClipping(radius=1.0, center=torch.ones(2))(rows()), "center has shape"),
        (lambda: NormBound(max_norm=float("inf")), "max_norm"),
        (lambda: Clip(max_norm=-1.0), "max_norm"),
        (lambda: Bucketing(s=0), "s is the rows in a group"),
        (lambda: RLR(threshold=-1), "threshold"),
        (lambda: RLR(threshold=13)(rows()), "more than the n=12 votes"),
        (lambda: DnC(f=1, iterations=2), "set subsample"),
        (lambda: DnC(f=1, subsample=0), "subsample"),
        (lambda: DnC(f=1, filter=0.0), "filter > 0"),
        (lambda: DnC(f=4, filter=1.5, iterations=2, subsample=3)(rows()), "iterations x int"),
        (lambda: FLTrust()(rows()), "trusted update"),
        (lambda: FLTrust(root_update=torch.ones(2))(rows()), "shape"),
        (lambda: AGGREGATORS["sign_majority"](size="huge"), "size"),
        (lambda: AGGREGATORS["sign_guard"](low=2.0), "low"),
        (lambda: AGGREGATORS["flame"](noise_multiplier=-1.0), "noise_multiplier"),
        (lambda: Median(on_nonfinite="ignore"), "on_nonfinite"),  # type: ignore[arg-type]  # that is the test
        (lambda: Krum(f=1, space="flat"), "space"),  # type: ignore[arg-type]  # that is the test
        (lambda: CenteredClipping(radius=1.0, space="product"), "product"),
        (lambda: Krum(f=1, space="product")(rows()), "RoundContext.space"),
        (lambda: Pipeline((Krum(f=1),), Median()), "no pre-aggregator"),  # type: ignore[arg-type]  # that is the test
        (lambda: Pipeline((), NNM(f=1)), "no rule"),  # type: ignore[arg-type]  # that is the test
        (lambda: Krum(f=1).weights_from_gram(torch.ones(5, 4)), "finite"),
        (lambda: Krum(f=1).weights_from_gram(torch.full((5, 5), torch.nan)), "finite"),
        (lambda: Krum(f=2).weights_from_gram(torch.eye(6)), "krum needs n >= 2f"),
        (lambda: Pipeline((NNM(f=1),), Median()).weights_from_gram(torch.eye(6)), "looks at coordinates"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_name(call: Any, message: str) -> None:
    assert message in refusal(call)


def test_the_mean_is_the_core_s_own() -> None:
    assert AGGREGATORS["mean"] is Mean
