"""Named tensors <-> one flat vector: nothing lost, nothing confused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ModelError
from securefed.layout import Layout, vector_digest

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tables = st.dictionaries(names, shapes, max_size=5)


def tensors_of(layout: Layout, seed: int = 0, **kind: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator).to(**kind) for shape in layout.shapes)
    return dict(zip(layout.names, made, strict=True))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 2**31))
def test_flatten_then_unflatten_gives_the_same_tensors(table: dict[str, tuple[int, ...]], seed: int) -> None:
    layout = Layout.of_shapes(table)
    tensors = tensors_of(layout, seed)
    vector = layout.flatten(tensors)
    assert vector.shape == (sum(math.prod(s) for s in table.values()),)
    assert vector.dtype == np.float32
    back = layout.unflatten(vector)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], tensors[n]) and back[n].shape == tensors[n].shape for n in back)
    np.testing.assert_array_equal(layout.flatten(back), vector)


@settings(max_examples=60, deadline=None)
@given(tables, tables)
def test_digests_are_equal_exactly_when_layouts_are(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, two = Layout.of_shapes(a), Layout.of_shapes(b)
    assert (one.digest == two.digest) == (a == b)
    assert Layout.of_shapes(dict(reversed(a.items()))).digest == one.digest  # made in any order


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"ab": (1,)}, {"a": (1,), "b": (1,)}),
        ({"a": (2, 3)}, {"a": (3, 2)}),
        ({"a": (6,)}, {"a": (2, 3)}),
        ({"a": ()}, {"a": (1,)}),
        ({"a[1];1:b": (2,)}, {"a": (1,), "b": (2,)}),  # a name that imitates the separator
        ({}, {"": ()}),
    ],
)
def test_layouts_of_equal_size_or_similar_text_have_different_digests(
    a: dict[str, Any], b: dict[str, Any]
) -> None:
    assert Layout.of_shapes(a).digest != Layout.of_shapes(b).digest


def test_the_flat_order_is_by_name_so_that_two_processes_agree() -> None:
    one = Layout.of({"b": torch.tensor([3.0]), "a": torch.tensor([1.0, 2.0])})
    assert one == Layout.of({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
    assert one.flatten({"b": torch.tensor([3.0]), "a": torch.tensor([1.0, 2.0])}).tolist() == [1.0, 2.0, 3.0]
    assert (one.slice_of("a"), one.slice_of("b")) == (slice(0, 2), slice(2, 3))


@settings(max_examples=40, deadline=None)
@given(tables, st.data())
def test_scatter_undoes_gather_and_leaves_the_rest(table: dict[str, Any], data: st.DataObject) -> None:
    whole = Layout.of_shapes(table)
    chosen = data.draw(st.sets(st.sampled_from(whole.names))) if whole.names else set()
    part = whole.select(lambda name: name in chosen)
    vector = np.arange(whole.size, dtype=np.float32)
    taken = whole.gather(vector, part)
    np.testing.assert_array_equal(whole.scatter(taken, part, vector), vector)
    zeros = np.zeros(whole.size, np.float32)
    moved = whole.scatter(taken, part, zeros)
    inside = np.zeros(whole.size, bool)
    for name in chosen:
        inside[whole.slice_of(name)] = True
    np.testing.assert_array_equal(moved, np.where(inside, vector, 0))
    assert not zeros.any()  # a new vector came back


def test_vectors_and_tensors_never_share_memory() -> None:
    layout = Layout.of_shapes({"a": (2,)})
    source = {"a": torch.zeros(2)}
    vector = layout.flatten(source)
    source["a"][0] = 7
    assert vector.tolist() == [0, 0]
    tensor = layout.unflatten(vector)["a"]
    tensor[0] = 7
    assert vector.tolist() == [0, 0]
    layout.write(vector, source)
    vector[1] = 9
    assert source["a"].tolist() == [0, 0]


def test_write_keeps_dtype_and_identity_and_takes_a_read_only_vector() -> None:
    layout = Layout.of_shapes({"a": (2, 2), "s": ()})
    target = {"a": torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True), "s": torch.zeros(())}
    kept = target["a"]
    vector = np.frombuffer(np.arange(5, dtype=np.float32).tobytes(), np.float32)
    layout.write(vector, target)
    assert kept.dtype is torch.bfloat16
    assert kept.tolist() == [[0, 1], [2, 3]]
    assert target["s"].item() == 4
    assert kept.grad_fn is None  # no history


def test_any_float_dtype_is_read_as_float32() -> None:
    layout = Layout.of_shapes({"a": (2,)})
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert layout.flatten({"a": torch.tensor([0.5, -2.0], dtype=dtype)}).tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    "tensors", [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(2, 1)}, {"b": torch.zeros(2)}]
)
def test_a_missing_or_misshapen_tensor_is_refused_by_name(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match=r"layout expects a of shape \(2,\)"):
        Layout.of_shapes({"a": (2,)}).flatten(tensors)


@pytest.mark.parametrize("vector", [np.zeros(3, np.float32), np.zeros(2), np.zeros((2, 1), np.float32)])
def test_a_vector_of_another_size_or_dtype_is_refused_everywhere(vector: Any) -> None:
    layout = Layout.of_shapes({"a": (2,)})
    for use in (
        lambda: layout.unflatten(vector),
        lambda: layout.write(vector, {"a": torch.zeros(2)}),
        lambda: layout.gather(vector, layout),
        lambda: layout.scatter(np.zeros(2, np.float32), layout, vector),
        lambda: layout.scatter(vector, layout, np.zeros(2, np.float32)),
    ):
        with pytest.raises(ModelError, match="expected a float32 vector"):
            use()


def test_vector_digests_tell_vectors_apart_and_ignore_their_memory_order() -> None:
    vector = np.arange(6, dtype=np.float32)
    other = vector.copy()
    other[3] = np.nextafter(other[3], np.float32(9))
    assert vector_digest(vector) != vector_digest(other)
    assert vector_digest(np.repeat(vector, 2)[::2]) == vector_digest(vector)
    assert vector_digest(vector.astype(">f4")) == vector_digest(vector)
