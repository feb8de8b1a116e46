"""Rows come from memory or disk, block by block, and are the same rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.rows import AppendedRows, FileRows, MappedRows, RowSource, as_rows, bad_rows, combine


def matrix(n: int = 5, d: int = 1000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n * d), dtype=dtype)


def on_disk(rows: torch.Tensor, folder: Path) -> list[Path]:
    paths = [folder / f"{i}.bin" for i in range(len(rows))]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(row.numpy().tobytes())
    return paths


SOURCES: dict[str, Callable[[torch.Tensor, Path], RowSource]] = {
    "matrix": lambda x, _: as_rows(x),
    "column-major matrix": lambda x, _: as_rows(x.T.contiguous().T),
    "list": lambda x, _: as_rows(list(x)),
    "iterator": lambda x, _: as_rows(row for row in x),
    "files": lambda x, folder: FileRows(on_disk(x, folder), x.dtype),
    "mapped by the identity": lambda x, _: MappedRows(torch.eye(len(x)), as_rows(x)),
    "all but the last, and the last": lambda x, _: AppendedRows(as_rows(x[:-1]), x[-1]),
    "taken": lambda x, _: as_rows(torch.cat([x[2:], x[:2]])).take([3, 4, 0, 1, 2]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    rows = matrix(dtype=dtype)
    source = SOURCES[kind](rows, tmp_path)
    assert (source.n, source.d, source.dtype) == (5, 1000, dtype)
    assert torch.equal(source.matrix(), rows)
    seen = torch.zeros_like(rows)
    for columns, block in source.blocks(width=77):
        seen[:, columns] = block
    assert torch.equal(seen, rows)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), d=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_a_combination_is_the_product_of_matrices(n: int, d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=g, dtype=torch.float64)
    weights = torch.randn(3, n, generator=g, dtype=torch.float64)
    torch.testing.assert_close(combine(weights, as_rows(rows)), weights @ rows)
    torch.testing.assert_close(combine(weights[0], as_rows(rows)), weights[0] @ rows)
    twice = MappedRows(weights, as_rows(rows))
    torch.testing.assert_close(combine(weights[:, 0], twice), weights[:, 0] @ weights @ rows)


def test_a_row_of_weight_zero_is_shut_out_even_where_it_is_not_finite() -> None:
    rows = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    assert combine(torch.tensor([2.0, 0.0]), as_rows(rows)).tolist() == [2.0, 4.0]
    assert combine(torch.tensor([0.0, 0.0]), as_rows(rows)).tolist() == [0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(bad=st.dictionaries(st.integers(0, 4), st.sampled_from([torch.nan, torch.inf, -torch.inf])))
def test_exactly_the_rows_that_are_not_finite_are_found(bad: dict[int, float]) -> None:
    rows = matrix()
    for row, value in bad.items():
        rows[row, 37 * row + 5] = value
    assert bad_rows(as_rows(rows)) == sorted(bad)


def test_large_finite_rows_are_not_taken_for_bad_ones() -> None:
    assert bad_rows(as_rows(torch.full((5, 100), 3e38))) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3), "matrix"),
        (torch.zeros(3, 2, 2), "matrix"),
        (torch.zeros(3, 4, dtype=torch.int64), "float32 or float64, found torch.int64"),
        (torch.zeros(3, 4, dtype=torch.bfloat16), "float32 or float64, found torch.bfloat16"),
        (torch.zeros(0, 4), "at least one row"),
        (torch.zeros(4, 0), "at least one row"),
        ([], "at least one row"),
        (iter([]), "at least one row"),
        ([torch.zeros(3), torch.zeros(4)], r"row 1 has shape \(4,\)"),
        ([torch.zeros(3), torch.zeros(3, dtype=torch.float64)], "row 1 is torch.float64"),
        (iter([torch.zeros(3), torch.zeros(4)]), "row 1 is"),
        (iter([torch.zeros(3, dtype=torch.int32)]), "found torch.int32"),
    ],
)
def test_what_is_no_set_of_rows_is_refused_in_one_line(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        as_rows(rows)  # type: ignore[arg-type]  # that is the test
    assert "\n" not in str(caught.value)


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    paths = on_disk(matrix(3), tmp_path)
    paths[1].write_bytes(b"1234")
    with pytest.raises(ValueError, match="row 1 has 4 bytes"):
        FileRows(paths)


def test_a_file_that_is_cut_short_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    paths = on_disk(matrix(3), tmp_path)
    source = FileRows(paths)
    paths[2].write_bytes(b"")
    with pytest.raises(ValueError, match="ends before column"):
        source.matrix()


def test_rows_on_disk_need_no_memory_of_their_size(tmp_path: Path) -> None:
    """20 rows of 40 MB, median and Krum: far less than the 800 MB that they are."""
    path = tmp_path / "row.bin"
    np.random.default_rng(0).standard_normal(10_000_000, np.float32).tofile(path)
    code = f"""
import resource, torch
from securefed.rows import FileRows
from securefed_defenses import Krum, TrimmedMean
torch.set_num_threads(1)
torch.ones(20, 20) @ torch.ones(20, 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = FileRows(["{path}"] * 20)
assert Krum(f=4)(rows).shape == TrimmedMean(f=4)(rows).shape == (10_000_000,)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    used = int(ran.stdout) * (1024 if sys.platform == "linux" else 1)  # KiB there, bytes elsewhere
    assert used < 200e6  # two rows of 40 MB in and out, and blocks


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "found NoneType"),
        ("abc", "found str"),
        ({0: torch.ones(3)}, "found dict"),
        ({1.0, 2.0}, "found set"),
        ([[1.0, 2.0]], "row 0 must be a tensor, found list"),
        ([torch.ones(2), None], "row 1 must be a tensor, found NoneType"),
        (np.ones((3, 2), np.float32), "row 0 must be a tensor, found ndarray"),
        (torch.eye(3).to_sparse(), "dense tensor, found torch.sparse_coo"),
        (torch.ones(3, 2, device="meta"), "dense tensor, found a meta tensor"),
        (torch.ones(3, 0), "n=3, d=0"),
        (torch.ones(0, 3), "n=0, d=3"),
    ],
)
def test_what_a_stranger_may_give_is_refused_in_one_line(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        as_rows(given)
    assert "\n" not in str(refused.value)


def test_rows_may_come_from_anything_that_yields_them_in_order() -> None:
    by_client = {7: torch.ones(3), 2: torch.zeros(3)}
    assert torch.equal(as_rows(by_client.values()).matrix(), torch.stack(list(by_client.values())))  # type: ignore[arg-type]  # dict views are no Sequence


def test_weights_beyond_float32_still_combine_rows_that_are_small_enough() -> None:
    rows = torch.full((2, 3), 1e-42)
    found = combine(torch.tensor([1e42, 1e42], dtype=torch.float64), as_rows(rows))
    torch.testing.assert_close(found, torch.full((3,), 2.0), rtol=1e-3, atol=0)  # 1e-42 has three digits
