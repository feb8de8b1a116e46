"""n vectors of d numbers, read in blocks of columns: from a matrix, a list of vectors, or files.

Robust rules and attacks walk over their input this way, so that none of them holds a second copy of it,
and rows that do not fit into memory can stay on disk.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch

BLOCK_BYTES = 1 << 21
"""On a CPU: small enough for a cache, large enough that an operation outweighs its call (measured)."""

GPU_BLOCK_BYTES = 1 << 28
"""On a GPU the launch of an operation costs more than the cache saves."""

DTYPES = (torch.float32, torch.float64)


class RowSource(ABC):
    """n rows of d numbers that are read a block of columns at a time.

    Attributes:
        n, d: shape. dtype: float32 or float64. device: where blocks lie.
    """

    n: int
    d: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def block(self, start: int, stop: int) -> torch.Tensor:
        """Columns start ... stop - 1, (n, stop - start). It may be a view of the input: never write to it."""

    def blocks(self, width: int = 0) -> Iterator[tuple[slice, torch.Tensor]]:
        """All columns from left to right, `width` at a time (0: what suits the device)."""
        step = width or self.width()
        for start in range(0, self.d, step):
            stop = min(self.d, start + step)
            yield slice(start, stop), self.block(start, stop)

    def width(self) -> int:
        """Columns in a block that stays in cache (CPU) or is worth a launch (GPU)."""
        size = BLOCK_BYTES if self.device.type == "cpu" else GPU_BLOCK_BYTES
        return max(256, size // (self.n * self.dtype.itemsize))

    def take(self, index: Sequence[int]) -> RowSource:
        """The rows with these indices, in this order, without a copy of them."""
        return TakenRows(self, index)

    def matrix(self) -> torch.Tensor:
        """All rows in memory, (n, d); may be the caller's own tensor."""
        return self.block(0, self.d)

    def _describe(self, n: int, d: int, dtype: torch.dtype, device: torch.device) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"updates must be float32 or float64, found {dtype}; convert with .float()")
        if n == 0 or d == 0:
            raise ValueError(f"there must be at least one row and one column, found n={n}, d={d}")
        self.n, self.d, self.dtype, self.device = n, d, dtype, device


class MatrixRows(RowSource):
    """The rows of a tensor (n, d)."""

    def __init__(self, matrix: torch.Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(
                f"updates are a matrix (n, d), found shape {tuple(matrix.shape)}; flatten each one first"
            )
        _check_tensor("updates", matrix)
        self._matrix = matrix.detach()
        n, d = matrix.shape
        self._describe(n, d, matrix.dtype, matrix.device)

    def block(self, start: int, stop: int) -> torch.Tensor:
        return self._matrix[:, start:stop]


class VectorRows(RowSource):
    """The rows in a list of vectors (d,)."""

    def __init__(self, vectors: Sequence[torch.Tensor]) -> None:
        for i, vector in enumerate(vectors):
            _check_tensor(f"row {i}", vector)
        self._vectors = [v.detach() for v in vectors]
        if not self._vectors:
            raise ValueError("there must be at least one row and one column, found n=0")
        first = self._vectors[0]
        for i, vector in enumerate(self._vectors):
            if vector.ndim != 1 or vector.shape != first.shape:
                raise ValueError(
                    f"row {i} has shape {tuple(vector.shape)}, row 0 has {tuple(first.shape)}; "
                    "every update is a vector of the same d numbers"
                )
            if (vector.dtype, vector.device) != (first.dtype, first.device):
                raise ValueError(
                    f"row {i} is {vector.dtype} on {vector.device}, row 0 {first.dtype} on {first.device}"
                )
        self._describe(len(self._vectors), len(first), first.dtype, first.device)

    def block(self, start: int, stop: int) -> torch.Tensor:
        return torch.stack([v[start:stop] for v in self._vectors])


class FileRows(RowSource):
    """Rows on disk: a file of d raw little-endian numbers for each.

    A block is read into one buffer, so that memory stays at one block whatever n and d are.
    """

    def __init__(self, files: Sequence[str | Path | BinaryIO], dtype: torch.dtype = torch.float32) -> None:
        self._files: list[BinaryIO] = [
            open(f, "rb", buffering=0) if isinstance(f, str | Path) else f  # noqa: SIM115  # closed with the object
            for f in files
        ]
        sizes = [os.fstat(f.fileno()).st_size for f in self._files]
        for i, size in enumerate(sizes):
            if size != sizes[0] or size % dtype.itemsize:
                raise ValueError(
                    f"row {i} has {size} bytes, row 0 has {sizes[0]}; every file holds the same number of {dtype}"
                )
        d = sizes[0] // dtype.itemsize if sizes else 0
        self._describe(len(sizes), d, dtype, torch.device("cpu"))

    @classmethod
    def spool(cls, rows: Iterable[torch.Tensor], folder: str | Path | None = None) -> FileRows:
        """Writes rows that come one at a time to unnamed files, which vanish with the object.

        Memory: one row. Disk: all of them, in `folder` (default: the system's place for such files).
        """
        files: list[BinaryIO] = []
        first: torch.Tensor | None = None
        for i, row in enumerate(rows):
            _check_tensor(f"row {i}", row)
            first = row if first is None else first
            if row.ndim != 1 or row.shape != first.shape or row.dtype != first.dtype:
                raise ValueError(
                    f"row {i} is {row.dtype} {tuple(row.shape)}, row 0 {first.dtype} {tuple(first.shape)}; "
                    "every update is a vector of the same d numbers"
                )
            if row.dtype not in DTYPES:
                raise ValueError(f"updates must be float32 or float64, found {row.dtype}; use .float()")
            file: BinaryIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed with the object
            _write_all(file, row.detach().cpu().contiguous())
            files.append(file)
        if first is None:
            raise ValueError("there must be at least one row and one column, found n=0")
        return cls(files, first.dtype)

    def block(self, start: int, stop: int) -> torch.Tensor:
        out = torch.empty(self.n, stop - start, dtype=self.dtype)
        for file, row in zip(self._files, out, strict=True):
            view = _bytes(row)
            file.seek(start * self.dtype.itemsize)
            while len(view):
                got = file.readinto(view)  # type: ignore[attr-defined]  # raw files read into buffers
                if not got:
                    raise ValueError(f"a file of rows ends before column {stop}; write it anew")
                view = view[got:]
        return out

    def width(self) -> int:
        return max(1 << 16, super().width())  # a read from disk wants to be long

    def __del__(self) -> None:
        for file in getattr(self, "_files", []):
            file.close()


class TakenRows(RowSource):
    """Some rows of another source."""

    def __init__(self, source: RowSource, index: Sequence[int]) -> None:
        self._source = source
        self._index = torch.tensor(list(index), dtype=torch.long, device=source.device)
        self._describe(len(index), source.d, source.dtype, source.device)

    def block(self, start: int, stop: int) -> torch.Tensor:
        return self._source.block(start, stop).index_select(0, self._index)


class MappedRows(RowSource):
    """`matrix @ rows`, (m, d), worked out block by block when it is read."""

    def __init__(self, matrix: torch.Tensor, source: RowSource) -> None:
        self.coefficients = matrix.double()
        self.source = source
        self._matrix = matrix.to(dtype=source.dtype, device=source.device)
        self._describe(len(matrix), source.d, source.dtype, source.device)

    def block(self, start: int, stop: int) -> torch.Tensor:
        return self._matrix @ self.source.block(start, stop)


class AppendedRows(RowSource):
    """The rows of another source, and one vector as the last row."""

    def __init__(self, source: RowSource, last: torch.Tensor) -> None:
        self._source, self._last = source, last.detach()
        self._describe(source.n + 1, source.d, source.dtype, source.device)

    def block(self, start: int, stop: int) -> torch.Tensor:
        return torch.cat([self._source.block(start, stop), self._last[None, start:stop]])


Rows: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Iterator[torch.Tensor] | RowSource
"""What a rule takes: a matrix (n, d), a list of vectors (d,), an iterator over them, or a source."""


def as_rows(rows: Rows) -> RowSource:
    """The rows as a source. An iterator is read once, to unnamed files, with one row in memory.

    Raises:
        ValueError: not a matrix, ragged rows, no rows, or numbers that are not float32 or float64 in a dense tensor.
    """
    if isinstance(rows, RowSource):
        return rows
    if isinstance(rows, torch.Tensor):
        return MatrixRows(rows)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        return VectorRows(rows)
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping | Set):
        return FileRows.spool(rows)
    raise ValueError(
        "updates are a matrix (n, d), a list of vectors, an iterator over them or a RowSource, "
        f"found {type(rows).__name__}; convert with torch.from_numpy or list(...)"
    )


def _check_tensor(what: str, found: object) -> None:
    """Raises ValueError unless it is a dense tensor that holds numbers."""
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{what} must be a tensor, found {type(found).__name__}; use torch.as_tensor")
    if found.layout != torch.strided or found.is_meta:
        kind = "a meta tensor, which holds no numbers" if found.is_meta else f"{found.layout}"
        raise ValueError(f"{what} must be a dense tensor, found {kind}; use .to_dense()")


def bad_rows(source: RowSource) -> list[int]:
    """Indices of the rows that hold a NaN or an infinity; costs one reading where there is none."""
    bad = torch.zeros(source.n, dtype=torch.bool, device=source.device)
    for _, block in source.blocks():
        if not bool(torch.isfinite(block.sum())):  # a sum of large numbers may overflow: then look closely
            bad |= ~torch.isfinite(block).all(1)
    return [int(i) for i in bad.nonzero()]


def _bytes(row: torch.Tensor) -> memoryview:
    """The memory of a contiguous vector on the CPU; writing to it writes to the vector."""
    return memoryview(row.numpy()).cast("B")  # type: ignore[arg-type]  # arrays are buffers from Python 3.12's types on


def _write_all(file: BinaryIO, row: torch.Tensor) -> None:
    view = _bytes(row)
    while len(view):
        view = view[file.write(view) :]


def combine(weights: torch.Tensor, source: RowSource) -> torch.Tensor:
    """`weights @ rows`: (n,) gives (d,), (m, n) gives (m, d), in the rows' dtype.

    A weight of exactly zero shuts its row out, whatever its numbers are.
    """
    if isinstance(source, MappedRows):
        return combine(weights.to(source.coefficients) @ source.coefficients, source.source)
    used = (weights != 0).reshape(-1, source.n).any(0).nonzero().flatten().tolist()
    shape = (*weights.shape[:-1], source.d)
    out = torch.zeros(shape, dtype=source.dtype, device=source.device)
    if not used:
        return out
    part = source if len(used) == source.n else source.take(used)
    factor = weights[..., used].to(dtype=source.dtype, device=source.device)
    if not bool(torch.isfinite(factor).all()):  # float32 rows of 1e-42 may need weights beyond float32
        factor = weights[..., used].to(dtype=torch.float64, device=source.device)
    for columns, block in part.blocks():
        out[..., columns] = factor @ block.to(factor.dtype)
    return out
