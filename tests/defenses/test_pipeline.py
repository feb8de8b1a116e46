"""A pipeline is its parts one after another, reads rows once for them all, and is built from a job's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import securefed_defenses.given as given_module
from securefed.config import Component, load_config
from securefed.config.toml import to_toml
from securefed.errors import ConfigError
from securefed.factors import AdapterSpace
from securefed.gram import gram
from securefed.layout import Layout
from securefed.registry import make_aggregator
from securefed.rows import as_rows
from securefed.types import RoundContext
from securefed_defenses import (
    AGGREGATORS,
    ARC,
    NNM,
    Bucketing,
    CenteredClipping,
    Clip,
    FoolsGold,
    GeometricMedian,
    GramRule,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Pipeline,
    Rule,
    TrimmedMean,
)

PRES: list[tuple[Any, ...]] = [
    (),
    (NNM(f=2),),
    (Clip(2.0), NNM(f=2)),
    (ARC(f=2), NNM(f=2)),
    (NNM(f=2), Clip(1.0), NNM(f=1)),
]
RULES: list[Any] = [
    TrimmedMean(f=2),
    GeometricMedian(tol=1e-12, max_iter=9999),
    Krum(f=2),
    Mean(),
    CenteredClipping(1.0),
    FoolsGold(),
]


def rows(seed: int = 0, n: int = 9, d: int = 7) -> torch.Tensor:
    return 1 + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(n: int = 9, **more: Any) -> RoundContext:
    return RoundContext(0, tuple(range(n)), **{"weights": (1.0,) * n, "layout_digest": "layout", **more})


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("pre", PRES, ids=lambda p: "+".join(type(s).__name__ for s in p) or "none")
def test_it_is_its_parts_one_after_another(pre: tuple[Any, ...], rule: Any) -> None:
    by_hand = rows()
    for part in pre:
        by_hand = part(by_hand)
    torch.testing.assert_close(Pipeline(pre, rule)(rows()), rule(by_hand), rtol=1e-6, atol=1e-6)


def test_random_groups_are_the_same_in_both_ways() -> None:
    line = Pipeline((Bucketing(s=2), NNM(f=1)), Krum(f=1))
    by_hand = Krum(f=1)(NNM(f=1)(Bucketing(s=2)(rows(), generator=torch.Generator().manual_seed(3))))
    torch.testing.assert_close(line(rows(), generator=torch.Generator().manual_seed(3)), by_hand)


def test_inner_products_are_measured_once_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(given_rows: Any) -> torch.Tensor:
        calls.append(1)
        return gram(given_rows)

    monkeypatch.setattr(given_module, "gram", counted)
    Pipeline((ARC(f=2), NNM(f=2)), MultiKrum(f=2))(rows())
    assert len(calls) == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize(
    "rule",
    [r for r in (AGGREGATORS[n] for n in sorted(AGGREGATORS)) if issubclass(r, GramRule)],
    ids=lambda r: r.__name__,
)
def test_weights_from_the_inner_products_are_what_the_rule_does(rule: Any, seed: int) -> None:
    """Not for those whose second step looks at coordinates or at a trusted row."""
    options: dict[str, dict[str, Any]] = {"CenteredClipping": {"radius": 1.0}, "NormBound": {"max_norm": 1.0}}
    if rule.__name__ in ("Bulyan", "SignGuard", "FLTrust"):
        return
    takes_f = "f" in getattr(rule, "__dataclass_fields__", {})
    made = rule(**({"f": 2} if takes_f else {}), **options.get(rule.__name__, {}))
    x = rows(seed)
    torch.testing.assert_close(made.weights_from_gram(gram(x)) @ x, made(x), rtol=1e-6, atol=1e-6)
    for pre in ((Clip(2.0),), (ARC(f=2), Clip(2.0))):  # mixed neighbours would tie in rules that pick
        line = Pipeline(pre, made)
        torch.testing.assert_close(line.weights_from_gram(gram(x)) @ x, line(x), rtol=1e-5, atol=1e-5)


def test_public_weights_pass_where_clients_keep_their_rows_and_stop_at_groups() -> None:
    weights = (5.0,) + (1.0,) * 8
    x = rows()
    kept, _ = Pipeline((NNM(f=2),), Mean()).step(x, context(weights=weights), None)
    torch.testing.assert_close(kept, torch.tensor(weights, dtype=torch.float64) @ NNM(f=2)(x) / 13)
    one = context(weights=weights, generator=torch.Generator().manual_seed(0))
    grouped, _ = Pipeline((Bucketing(s=3),), Mean()).step(x, one, None)
    torch.testing.assert_close(grouped, x.mean(0))


def test_a_part_too_small_for_what_reaches_it_is_refused_with_its_own_n() -> None:
    line = Pipeline((Bucketing(s=3),), Krum(f=2))
    with pytest.raises(ValueError, match="krum needs n >= 2f \\+ 3, got n=3, f=2"):
        line(rows(), generator=torch.Generator())


# --------------------------------------------------------------------------------------------- memory


def test_centered_clipping_starts_where_the_last_round_of_the_same_layout_ended() -> None:
    rule, state = CenteredClipping(radius=0.1, iterations=1), None
    first, state = rule.step(rows(), context(), state)
    other, state = rule.step(rows(1, d=4), context(layout_digest="other"), state)
    second, _ = rule.step(rows(), context(), state)
    torch.testing.assert_close(second, CenteredClipping(radius=0.1, iterations=1, center=first)(rows()))
    torch.testing.assert_close(other, rule(rows(1, d=4)))
    assert not torch.allclose(second, first)


def test_fools_gold_sees_sybils_over_rounds_that_differ_in_each() -> None:
    """Two clients push one way in the long run and hide it behind noise that is opposite in every round and cancels."""
    g = torch.Generator().manual_seed(0)
    rule, state = FoolsGold(), None
    goal = torch.zeros(200, dtype=torch.float64)
    goal[0] = 3.0
    noise = 3 * torch.randn(200, generator=g, dtype=torch.float64)
    for _ in range(10):
        noise = -noise
        honest = torch.randn(3, 200, generator=g, dtype=torch.float64)
        honest[:, 100:] += torch.eye(3, 100, dtype=torch.float64) * 6
        x = torch.cat([honest, torch.stack([goal + noise, goal - noise])])
        result, state = rule.step(x, context(5), state)
    forgetful, _ = FoolsGold(history=False).step(x, context(5), None)
    torch.testing.assert_close(result, honest.mean(0))
    assert forgetful[0] - honest.mean(0)[0] > 0.5


# ------------------------------------------------------------------------------------------ product space


def rotated_adapters() -> tuple[torch.Tensor, AdapterSpace]:
    """Six honest clients with one product in turned factors; three liars with another, in equal factors."""
    g = torch.Generator().manual_seed(0)
    layout = Layout.of_shapes({"q.lora_A": (2, 6), "q.lora_B": (5, 2)})

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    a, b, lie_a, lie_b = draw(2, 6), draw(5, 2), 0.1 * draw(2, 6), 0.1 * draw(5, 2)
    made = []
    for k in range(6):
        angle = torch.tensor(k * torch.pi / 3, dtype=torch.float64)
        turn = torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
        made.append(torch.cat([(turn.T @ a).flatten(), (b @ turn).flatten()]))
    made += [torch.cat([lie_a.flatten(), lie_b.flatten()])] * 3
    base = {
        "q.lora_A": torch.zeros(2, 6, dtype=torch.float64),
        "q.lora_B": torch.zeros(5, 2, dtype=torch.float64),
    }
    return torch.stack(made), AdapterSpace.of(layout, base)


@pytest.mark.parametrize(
    ("product", "factor"),
    [
        (Krum(f=3, space="product"), Krum(f=3)),
        (
            Pipeline((NNM(f=3, space="product"),), Krum(f=3, space="product")),
            Pipeline((NNM(f=3),), Krum(f=3)),
        ),
    ],
)
def test_liars_are_found_in_product_space_where_turned_factors_hide_the_crowd(
    product: Rule, factor: Rule
) -> None:
    x, space = rotated_adapters()
    there = context(space=space)
    found, _ = product.step(x, there, None)
    fooled, _ = factor.step(x, there, None)

    def change(row: torch.Tensor) -> torch.Tensor:
        return row[12:].view(5, 2) @ row[:12].view(2, 6)

    if isinstance(product, Krum):
        torch.testing.assert_close(change(found), change(x[0]))
        torch.testing.assert_close(change(fooled), change(x[-1]))
    else:
        assert not torch.allclose(found, fooled)


# --------------------------------------------------------------------------------------------- the job

JOB: dict[str, Any] = {
    "name": "pipeline",
    "pre": [{"name": "arc", "f": 2}, {"name": "nnm", "f": 2}],
    "rule": {"name": "trimmed_mean", "f": 2},
}


def test_a_job_names_its_parts(tmp_path: Path) -> None:
    config = load_config({"aggregator": JOB, "train": {"steps": 1}})
    expected = Pipeline((ARC(f=2), NNM(f=2)), TrimmedMean(f=2))
    assert make_aggregator(config.aggregator) == expected
    (tmp_path / "job.toml").write_text(to_toml(config))
    assert make_aggregator(load_config(tmp_path / "job.toml").aggregator) == expected
    assert make_aggregator(Component("pipeline", {"pre": [], "rule": "median"})) == Pipeline((), Median())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pre": [{"name": "nmn", "f": 2}], "rule": "median"}, "did you mean nnm"),
        ({"pre": [{"f": 2}], "rule": "median"}, "table with a name"),
        ({"pre": [{"name": "nnm", "g": 2}], "rule": "median"}, "no option 'g'"),
        ({"pre": [{"name": "nnm", "f": -1}], "rule": "median"}, "whole number"),
        ({"pre": [], "rule": "krumm"}, "did you mean krum"),
    ],
)
def test_a_mistake_inside_a_part_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_aggregator(Component("pipeline", options))


def test_a_cohort_too_small_for_the_rule_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="a round has 4 clients: arc needs n >= 2f \\+ 1, got n=4, f=2"):
        load_config({"aggregator": JOB, "clients_per_round": 4, "train": {"steps": 1}})


def test_rows_from_disk_go_through_a_pipeline_too() -> None:
    line = Pipeline((NNM(f=2),), TrimmedMean(f=2))
    torch.testing.assert_close(line(as_rows(iter(rows()))), line(rows()))
