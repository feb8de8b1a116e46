"""Inner products in product space are those of the products, and tell apart what factor space cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.factors import AdapterSpace, FactorPair, adapter_gram
from securefed.gram import gram, squared_distances
from securefed.layout import Layout

R, IN, OUT, HEAD = 2, 5, 4, 3
FULL = Layout.of_shapes(
    {"q.lora_A": (R, IN), "q.lora_B": (OUT, R), "v.lora_A": (R, IN), "v.lora_B": (OUT, R), "head": (HEAD,)}
)


def base(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(*s, generator=g, dtype=torch.float64)
        for n, s in zip(FULL.names, FULL.shapes, strict=True)
    }


def slow_changes(
    rows: torch.Tensor, layout: Layout, start: dict[str, torch.Tensor], scale: float
) -> torch.Tensor:
    """Every client's change of every matrix, multiplied out, and its head: (n, anything)."""
    out = []
    for row in rows:
        delta = {n: row[layout.slice_of(n)].view(s) for n, s in zip(layout.names, layout.shapes, strict=True)}
        parts = []
        for stem in ("q", "v"):
            a0, b0 = start[f"{stem}.lora_A"], start[f"{stem}.lora_B"]
            a, b = a0 + delta.get(f"{stem}.lora_A", 0), b0 + delta.get(f"{stem}.lora_B", 0)
            parts.append(scale * (b @ a - b0 @ a0).flatten())
        out.append(torch.cat([*parts, delta.get("head", torch.zeros(0, dtype=row.dtype))]))
    return torch.stack(out)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 5),
    kept=st.sampled_from(["all", "A", "B"]),
    scale=st.floats(0.1, 10),
)
def test_it_is_the_gram_of_the_products(seed: int, n: int, kept: str, scale: float) -> None:
    layout = FULL if kept == "all" else FULL.select(lambda name: name.endswith((kept, "head")))
    start = base(seed)
    rows = torch.randn(n, layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    slow = gram(slow_changes(rows, layout, start, scale))
    torch.testing.assert_close(
        adapter_gram(rows, AdapterSpace.of(layout, start, scale)), slow, rtol=1e-9, atol=1e-9
    )


def test_small_steps_from_large_factors_keep_their_digits() -> None:
    start = {n: 1e3 * t for n, t in base(0).items()}
    rows = 1e-6 * torch.randn(4, FULL.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = []
    for row in rows:  # to first order, dB A + B dA; the second order is 1e-9 of it
        delta = {n: row[FULL.slice_of(n)].view(s) for n, s in zip(FULL.names, FULL.shapes, strict=True)}
        linear.append(
            torch.cat(
                [
                    (
                        delta[f"{s}.lora_B"] @ start[f"{s}.lora_A"]
                        + start[f"{s}.lora_B"] @ delta[f"{s}.lora_A"]
                    ).flatten()
                    for s in ("q", "v")
                ]
                + [delta["head"]]
            )
        )
    torch.testing.assert_close(
        adapter_gram(rows, AdapterSpace.of(FULL, start)), gram(torch.stack(linear)), rtol=1e-7, atol=0
    )


def test_rotated_factors_are_the_same_model_and_far_apart_factor_by_factor() -> None:
    start = {n: torch.zeros_like(t) for n, t in base(0).items()}
    g = torch.Generator().manual_seed(2)
    a, b = (
        torch.randn(R, IN, generator=g, dtype=torch.float64),
        torch.randn(OUT, R, generator=g, dtype=torch.float64),
    )
    turn = torch.linalg.qr(torch.randn(R, R, generator=g, dtype=torch.float64)).Q
    layout = FULL.select(lambda n: n.startswith("q"))
    rows = torch.stack(
        [torch.cat([a.flatten(), b.flatten()]), torch.cat([(turn.T @ a).flatten(), (b @ turn).flatten()])]
    )
    assert squared_distances(adapter_gram(rows, AdapterSpace.of(layout, start)))[0, 1] < 1e-12
    assert squared_distances(gram(rows))[0, 1] > 1


def test_a_factor_without_its_partner_is_refused_with_its_name() -> None:
    start = base(0)
    del start["v.lora_A"]
    with pytest.raises(ValueError, match=r"v\.lora_A"):
        AdapterSpace.of(FULL.select(lambda n: n.endswith("B")), start)


def test_factors_that_do_not_fit_are_refused() -> None:
    a, b = torch.zeros(R, IN), torch.zeros(OUT, R)
    with pytest.raises(ValueError, match="both are the rank"):
        FactorPair(None, None, a, torch.zeros(OUT, R + 1))
    with pytest.raises(ValueError, match="A has 10 numbers, 9 columns are named"):
        FactorPair(slice(0, 9), None, a, b)
