"""Named tensors <-> one flat float32 vector (d,). The one place where torch meets NumPy.

Both sides of a round compare the digest, so a coordinate can never be read as another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from securefed.errors import ModelError
from securefed.types import Vector

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """The order, names and shapes of the coordinates of an update.

    Names are sorted when it is made, so that two processes with the same tensors agree.

    >>> layout = Layout.of_shapes({"b": (2,), "a": (2, 2)})
    >>> layout.names, layout.size
    (('a', 'b'), 6)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of tensors with these names and shapes."""
        names = tuple(sorted(shapes))
        return cls(names, tuple(tuple(int(s) for s in shapes[name]) for name in names))

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """The layout of these tensors."""
        return cls.of_shapes({name: tuple(t.shape) for name, t in tensors.items()})

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor in the flat vector, and d as the last entry."""
        ends = np.cumsum([0, *(math.prod(s) for s in self.shapes)])
        return tuple(int(e) for e in ends)

    @property
    def size(self) -> int:
        """d, the number of coordinates."""
        return self.offsets[-1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and shapes, hex; equal if and only if the layouts are equal."""
        text = "".join(f"{len(n)}:{n}{list(s)};" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def select(self, keep: Callable[[str], bool]) -> Layout:
        """The layout of those names for which `keep` holds."""
        return Layout.of_shapes({n: s for n, s in zip(self.names, self.shapes, strict=True) if keep(n)})

    @cached_property
    def _parts(self) -> dict[tuple[str, ...], Layout]:
        return {}

    def part(self, names: tuple[str, ...]) -> Layout:
        """The layout of these names; made once, since every round of a run asks for the same few."""
        if names not in self._parts:
            self._parts[names] = self.select(set(names).__contains__)
        return self._parts[names]

    def slice_of(self, name: str) -> slice:
        """Where one tensor lies in the flat vector."""
        i = self.names.index(name)
        return slice(self.offsets[i], self.offsets[i + 1])

    @cached_property
    def _index(self) -> dict[str, slice]:
        return {n: slice(self.offsets[i], self.offsets[i + 1]) for i, n in enumerate(self.names)}

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> Vector:
        """One float32 vector (d,) with the tensors' values; a copy, never a view.

        Raises:
            ModelError: a name is missing or a shape differs.
        """
        out = np.empty(self.size, np.float32)
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = tensors.get(name)
            if tensor is None or tuple(tensor.shape) != shape:
                found = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise ModelError(
                    f"layout expects {name} of shape {shape}, found {found}; both sides must build the same model"
                )
            out[self._index[name]] = tensor.detach().reshape(-1).cpu().float().numpy()
        return out

    def unflatten(self, vector: Vector) -> dict[str, torch.Tensor]:
        """Name -> float32 CPU tensor; each a copy, so that writing to it leaves `vector` as it was."""
        import torch

        self.check(vector)
        return {
            name: torch.from_numpy(np.array(vector[self._index[name]], np.float32)).reshape(shape)
            for name, shape in zip(self.names, self.shapes, strict=True)
        }

    def write(self, vector: Vector, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies the vector's values into these tensors, in place, keeping their dtype and device."""
        import torch

        self.check(vector)
        with torch.no_grad():
            for name, shape in zip(self.names, self.shapes, strict=True):
                source = np.ascontiguousarray(vector[self._index[name]], np.float32)
                if not source.flags.writeable:
                    source = source.copy()
                tensors[name].copy_(torch.from_numpy(source).reshape(shape))

    def gather(self, vector: Vector, part: Layout) -> Vector:
        """The coordinates of `part`, which must be a sub-layout of this one, as a new vector."""
        self.check(vector)
        if not part.names:
            return np.empty(0, np.float32)
        return np.concatenate([vector[self._index[n]] for n in part.names])

    def scatter(self, part_vector: Vector, part: Layout, into: Vector) -> Vector:
        """A copy of `into` (d,) in which the coordinates of `part` have these values."""
        self.check(into)
        part.check(part_vector)
        out = np.array(into, np.float32)
        for name in part.names:
            out[self._index[name]] = part_vector[part._index[name]]
        return out

    def check(self, vector: Vector) -> None:
        """Raises ModelError unless the vector is float32 of shape (d,)."""
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise ModelError(
                f"expected a float32 vector of shape ({self.size},), found {vector.dtype} {vector.shape}"
            )


def vector_digest(vector: Vector) -> str:
    """SHA-256 of a vector's little-endian bytes, hex: the identity of a global model."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()
