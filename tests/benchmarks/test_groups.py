"""Group means by arithmetic are those that the protocol decodes, to one step of its quantizer."""

from __future__ import annotations

import torch

from securefed_benchmarks.groups import Arithmetic, Protocol, drawn, poisoned, step


def test_the_arithmetic_is_the_protocols_to_one_step_of_its_quantizer() -> None:
    groups = drawn(11, 5, seed=3)
    updates = torch.randn(11, 300, generator=torch.Generator().manual_seed(0))
    updates[4, :3] = 20.0  # beyond value_range: both clip it
    protocol = Protocol.of(groups, 5)
    for _ in range(2):
        error = (protocol(updates).double() - Arithmetic(groups)(updates).double()).abs().max()
        assert float(error) < step(groups) + 1e-6  # and float32 holds numbers near 5 to 2.4e-7
    swapped = (groups[1], groups[0])
    assert float((protocol(updates) - Arithmetic(swapped)(updates)).abs().max()) > 0.1


def test_groups_of_a_seed_are_the_same_for_every_rule_and_differ_between_seeds() -> None:
    assert drawn(50, 5, 1) == drawn(50, 5, 1) != drawn(50, 5, 2)
    assert sorted(k for g in drawn(50, 5, 1) for k in g) == list(range(50))


def test_poisoned_groups_are_those_with_a_liar() -> None:
    assert poisoned(((0, 1, 9), (2, 3, 8), (4, 5, 6)), range(8, 10)) == 2
    assert poisoned(((0, 1, 9, 8), (2, 3), (4, 5, 6)), range(8, 10)) == 1
