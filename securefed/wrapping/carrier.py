"""A model of any framework that gives tensors or arrays, as one flat vector and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.errors import ModelError
from securefed.layout import Layout
from securefed.types import Vector


class Carrier:
    """Lends the global model to code that trains it in place, and reads what became of it.

    Args:
        model: a torch module (its tensors with `requires_grad` are federated; buffers go back to what they
            were after every client, so that nothing trained passes by the clip and the noise), or a dict
            or list of float NumPy arrays.

    Raises:
        ModelError: of another kind, with nothing to train, or with arrays that are not floating point.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._tensors = dict(_tensors(model))
        if not self._tensors:
            raise ModelError("the model has nothing to train: no tensor with requires_grad, or no array")
        self.layout = Layout.of(self._tensors)
        self._buffers: dict[str, torch.Tensor] = {}
        if isinstance(model, nn.Module):
            rest = {n: t for n, t in model.state_dict().items() if n not in self._tensors}
            self._buffers = {n: t.detach().clone() for n, t in rest.items()}

    def read(self) -> Vector:
        """The model as it stands, float32 (d,)."""
        return self.layout.flatten(self._tensors)

    def lend(self, vector: Vector) -> Any:
        """A model with these weights: the module itself, or fresh arrays of the same names and types."""
        if isinstance(self.model, nn.Module):
            self.write(vector)
            self.model.train()
            return self.model
        arrays = self._arrays(vector)
        return arrays if isinstance(self.model, Mapping) else [arrays[k] for k in sorted(arrays)]

    def take(self, lent: Any) -> Vector:
        """What became of the lent model, float32 (d,).

        Raises:
            ModelError: an array vanished or changed its shape.
        """
        return self.layout.flatten(dict(_tensors(lent)))

    def write(self, vector: Vector) -> None:
        """Puts the weights into the model itself, and its buffers back."""
        if isinstance(self.model, nn.Module):
            self.layout.write(vector, self._tensors)
            state = self.model.state_dict()
            with torch.no_grad():
                for name, value in self._buffers.items():
                    state[name].copy_(value)
            return
        for name, array in self._arrays(vector).items():
            self.model[name if isinstance(self.model, Mapping) else int(name)][...] = array

    def _arrays(self, vector: Vector) -> dict[str, np.ndarray[Any, Any]]:
        types = {n: t.numpy().dtype for n, t in self._tensors.items()}
        return {n: t.numpy().astype(types[n]) for n, t in self.layout.unflatten(vector).items()}


def _tensors(model: Any) -> Mapping[str, torch.Tensor]:
    if isinstance(model, nn.Module):
        return {n: p for n, p in model.named_parameters() if p.requires_grad}
    if isinstance(model, Mapping):
        arrays = {str(k): v for k, v in model.items()}
    elif isinstance(model, list):
        arrays = {f"{i:06d}": v for i, v in enumerate(model)}
    else:
        raise ModelError(
            f"model must be a torch module, or a dict or list of NumPy arrays, found {type(model).__name__}"
        )
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            raise ModelError(f"model[{name}] must be a NumPy array of floats, found {type(array).__name__}")
    return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}
