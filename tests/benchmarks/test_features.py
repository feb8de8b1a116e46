"""States that many runs share are those that a run would compute, and are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from securefed.data.batch import Encoded
from securefed.training import frozen_cache
from securefed.training.frozen_cache import FrozenCache
from securefed_benchmarks.features import SharedStates
from tests.securefed.training.setups import bert, texts

BOUNDS = {"physical_tokens": 64, "physical_batch": 4}


def same(a: Any, b: Any) -> bool:
    pairs = [*zip(a.hidden, b.hidden, strict=True), (a.pooled, b.pooled), (a.below, b.below)]
    return all(x is y is None or torch.allclose(x, y, atol=1e-6) for x, y in pairs)


@pytest.mark.parametrize("wanted", [("head",), ("A", "B", "head")])
@pytest.mark.parametrize("head_layers", [1, (0, 1, 2)])
def test_shared_states_are_those_of_a_cache_of_ones_own(
    tmp_path: Path, wanted: tuple[str, ...], head_layers: Any
) -> None:
    model = bert(tmp_path, layers=1, head_layers=head_layers)
    data = texts(model)
    names = [n for n, part in model.part_of.items() if part in wanted]
    own, shared = FrozenCache().states(model, data, names, **BOUNDS), SharedStates()
    assert same(own, shared.states(model, data, names, **BOUNDS))
    assert same(own, shared.states(model, data, names, **BOUNDS))  # from memory


def test_a_record_is_computed_once_whatever_shard_it_lies_in_and_kept_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path, layers=1)
    data, seen = texts(model), list[int]()
    assert data.tokens is not None
    compute = frozen_cache._compute

    def counted(model: Any, feed: Any, *rest: Any) -> Any:
        seen.append(len(feed))
        return compute(model, feed, *rest)

    monkeypatch.setattr(frozen_cache, "_compute", counted)
    names = [n for n, part in model.part_of.items() if part == "head"]
    distinct = len({t.tobytes() for t in data.tokens})
    shared = SharedStates(tmp_path / "kept")
    shared.states(model, data, names, **BOUNDS)
    once = sum(seen)
    part = Encoded(tokens=data.tokens[3:6], pad_id=data.pad_id)
    shared.states(model, part, names, **BOUNDS)
    SharedStates(tmp_path / "kept").states(model, part, names, **BOUNDS)
    assert distinct <= once
    assert sum(seen) == once
