"""What every aggregation rule promises. A rule's own tests inherit the suite and add its theorems.

from tests.contracts.test_aggregator import AggregatorContract

class TestKrum(AggregatorContract):
    def rule(self): return Krum(f=2)
"""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.aggregation import Mean
from securefed.config import Component
from securefed.registry import make_aggregator
from securefed.types import Aggregator, Reveals, RoundContext

seeds = st.integers(0, 2**31)


class AggregatorContract:
    """Inherit, and say which rule; `n` is a cohort that the rule accepts."""

    n = 9

    def rule(self) -> Aggregator:
        raise AssertionError("a suite that inherits the contract says which rule it is about")

    def rows(self, seed: int = 0, dtype: torch.dtype = torch.float64, d: int = 7) -> torch.Tensor:
        """Honest-looking updates: a common direction and noise around it."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(1, d, generator=generator) + 0.3 * torch.randn(self.n, d, generator=generator)
        return rows.to(dtype)

    def context(self, seed: int = 0) -> RoundContext:
        generator = torch.Generator().manual_seed(seed)
        return RoundContext(0, tuple(range(self.n)), (1.0,) * self.n, "layout", generator=generator)

    def test_it_is_a_frozen_dataclass_that_says_what_it_needs(self) -> None:
        rule = self.rule()
        assert isinstance(rule, Aggregator)
        assert rule.needs in typing.get_args(Reveals)
        assert dataclasses.is_dataclass(rule)
        assert type(rule).__dataclass_params__.frozen

    def test_its_fields_are_its_configuration(self) -> None:
        rule = self.rule()
        options = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}  # type: ignore[arg-type]  # a dataclass, see above
        path = f"{type(rule).__module__}:{type(rule).__qualname__}"
        assert make_aggregator(Component(path, options)) == rule

    @settings(max_examples=20, deadline=None)
    @given(seed=seeds)
    def test_the_order_of_the_clients_does_not_matter(self, seed: int) -> None:
        rows = self.rows(seed)
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(self.rule()(rows[order]), self.rule()(rows), rtol=1e-9, atol=1e-9)

    @settings(max_examples=20, deadline=None)
    @given(seed=seeds)
    def test_clients_that_agree_get_what_they_agree_on(self, seed: int) -> None:
        row = self.rows(seed)[0]
        torch.testing.assert_close(self.rule()(row.repeat(self.n, 1)), row, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_dtype_and_device_are_kept(self, dtype: torch.dtype) -> None:
        rows = self.rows(dtype=dtype)
        result = self.rule()(rows)
        assert (result.shape, result.dtype, result.device) == (rows.shape[1:], dtype, rows.device)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
    def test_a_gpu_gives_what_the_cpu_gives(self) -> None:
        rows = self.rows()
        there = self.rule()(rows.cuda())
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), self.rule()(rows), rtol=1e-6, atol=1e-9)

    def test_the_input_is_left_as_it_was(self) -> None:
        rows = self.rows()
        before = rows.clone()
        result = self.rule()(rows)
        result.add_(1)
        assert torch.equal(rows, before)

    def test_called_twice_it_says_the_same(self) -> None:
        assert torch.equal(self.rule()(self.rows()), self.rule()(self.rows()))

    def test_a_first_step_with_equal_weights_is_the_call(self) -> None:
        rows = self.rows()
        vector, _ = self.rule().step(rows, self.context(), None)
        torch.testing.assert_close(vector, self.rule()(rows), rtol=1e-9, atol=1e-9)


class TestMean(AggregatorContract):
    def rule(self) -> Mean:
        return Mean()

    @settings(max_examples=20, deadline=None)
    @given(seed=seeds, scale=st.floats(-10, 10), shift=st.floats(-10, 10))
    def test_it_moves_and_scales_with_its_input(self, seed: int, scale: float, shift: float) -> None:
        rows = self.rows(seed)
        torch.testing.assert_close(
            self.rule()(scale * rows + shift), scale * self.rule()(rows) + shift, rtol=1e-9, atol=1e-9
        )

    def test_one_liar_moves_it_anywhere(self) -> None:
        rows, goal = self.rows(), torch.full((7,), 1e6, dtype=torch.float64)
        rows[0] = self.n * goal - rows[1:].sum(0)
        torch.testing.assert_close(self.rule()(rows), goal)
