"""Forms of a record's gradient: norms that are never too small, sums of the same numbers, after rounding too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from securefed.training.dp import ghost_gradients
from securefed.training.dp_work import MARGIN, Seen, factors_of
from securefed.training.record_gradients import Lookups, Products, Rows, linear


@pytest.mark.parametrize("positions", [1, 2, 40])
def test_products_are_never_below_the_true_norm_even_where_pairs_cancel(positions: int) -> None:
    """Rows of a thousand that cancel to almost nothing: a float64 sum of pairs alone would fall below zero at times."""
    generator = torch.Generator().manual_seed(positions)
    a = torch.randn(50, positions, 30, generator=generator)
    b = 1e3 * torch.randn(50, positions, 20, generator=generator)
    if positions > 1:
        a[:, 1:] = a[:, :1]
        b[:, -1] = -b[:, :-1].sum(1) * (1 + 1e-7)
    exact = torch.einsum("nto,nti->noi", b.double(), a.double())
    found = Products(b, a).squares()
    assert bool((found >= exact.flatten(1).square().sum(1) * (1 - 1e-12)).all())
    total = torch.zeros(20, 30, dtype=torch.float64)
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    Products(b, a).add(weights, total)
    torch.testing.assert_close(total, torch.tensordot(weights, exact, 1), rtol=1e-9, atol=1e-9)


def test_a_clipped_record_stays_inside_the_bound_whatever_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1.0, 1e6, 1e15):
        a, b = scale * torch.randn(8, 5, 12, generator=generator), torch.randn(8, 5, 7, generator=generator)
        products = Products(b, a)
        factor, _ = factors_of(products.squares(), 0.5, Seen())
        for i in range(8):
            alone = torch.zeros(8, dtype=torch.float64)
            alone[i] = factor[i]
            total = torch.zeros(7, 12, dtype=torch.float64)
            products.add(alone, total)
            assert float(total.norm()) <= 0.5 * (1 + MARGIN) / 2


def test_small_matrices_beside_long_texts_are_written_and_large_ones_are_not() -> None:
    made: dict[str, Any] = {}
    for name, inner, outer, positions in (
        ("B of rank 8", 8, 384, 25),
        ("A of rank 8", 384, 8, 25),
        ("whole", 384, 384, 25),
        ("a head", 1536, 2, 1),
    ):
        layer = nn.Linear(inner, outer, bias=False)
        found = ghost_gradients(layer)
        found.backward(layer(torch.randn(4, positions, inner)).square().sum((1, 2)))
        made[name] = type(found._kept[id(layer.weight)])
    assert made == {"B of rank 8": Rows, "A of rank 8": Rows, "whole": Products, "a head": Products}


def test_a_word_twice_in_a_record_is_added_up_before_it_is_squared_and_padding_is_nothing() -> None:
    table = nn.Embedding(6, 3, padding_idx=0)
    words = torch.tensor([[1, 1, 2], [3, 0, 0]])
    found = ghost_gradients(table)
    found.backward((table(words) * torch.tensor([1.0, 2.0, 5.0])).sum((1, 2)))
    assert isinstance(found._kept[id(table.weight)], Lookups)
    direction = 1 + 4 + 25
    torch.testing.assert_close(
        found.squares([table.weight]), torch.tensor([5.0 * direction, 1.0 * direction], dtype=torch.float64)
    )
    total = torch.zeros(6, 3, dtype=torch.float64)
    found.add(torch.tensor([1.0, 10.0], dtype=torch.float64), table.weight, total)
    assert total[:, 0].tolist() == [0.0, 2.0, 1.0, 10.0, 0.0, 0.0]


def test_positions_that_cancel_in_one_record_do_not_round_the_others_away() -> None:
    """One record with gradients of 2^60 on one word whose sum is small, beside fifty calm ones."""
    big, clip = 2.0**60, 0.1
    first = torch.tensor([big * 1.2345678, big * 0.7654321])
    rest = -first.double().sum()
    evil = torch.stack([*first, rest.float(), (rest - rest.float().double()).float(), torch.tensor(1.0)])[
        None, :, None
    ]
    calm = torch.ones(50, 5, 1)

    def total(factors: torch.Tensor) -> torch.Tensor:
        table = nn.Embedding(4, 1)
        found = ghost_gradients(table)
        words = torch.ones(len(factors), 5, dtype=torch.long)
        found.backward((table(words) * factors).sum((1, 2)))
        weights, _ = factors_of(found.squares([table.weight]), clip, Seen())
        summed = torch.zeros(4, 1, dtype=torch.float64)
        found.add(weights, table.weight, summed)
        return summed

    assert float((total(torch.cat([calm, evil])) - total(calm)).norm()) <= clip


def test_gpt2s_transposed_weights_are_products_too() -> None:
    from transformers.pytorch_utils import Conv1D

    layer: Any = Conv1D(40, 30)
    x = torch.randn(4, 5, 30)
    found = ghost_gradients(layer)
    found.backward(layer(x).square().sum((1, 2)))
    layer(x[2:3]).square().sum().backward()
    torch.testing.assert_close(
        found.rows(layer.weight, 4)[2], layer.weight.grad.double(), rtol=1e-4, atol=1e-4
    )
    assert isinstance(linear(torch.zeros(1, 5, 400), torch.zeros(1, 5, 300)), Products)
