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
            rest = {n: t for n, t in _held(model).items() if n not in self._tensors}
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
            ModelError: an array vanished or changed its shape, or another tensor is in the place of the model's own.
        """
        found = dict(_tensors(lent))
        if isinstance(self.model, nn.Module):
            self._require_own(found)
        return self.layout.flatten(found)

    def write(self, vector: Vector) -> None:
        """Puts the weights into the model itself, and its buffers back."""
        if isinstance(self.model, nn.Module):
            self._require_own(_tensors(self.model))
            self.layout.write(vector, self._tensors)
            state = _held(self.model)
            with torch.no_grad():
                for name, value in self._buffers.items():
                    state[name].copy_(value)
            return
        for name, array in self._arrays(vector).items():
            self.model[name if isinstance(self.model, Mapping) else int(name)][...] = array

    def _require_own(self, found: Mapping[str, torch.Tensor]) -> None:
        """Raises ModelError unless these are the tensors that the global weights are written to.

        Others would keep what one client trained, past its clip and the noise.
        """
        for name, tensor in self._tensors.items():
            if found.get(name) is not tensor:
                raise ModelError(
                    f"train_fn put another tensor in the place of {name}; change the model's tensors in place (an optimizer "
                    "does; load_state_dict without assign=True)"
                )
        if len(found) > len(self._tensors):
            extra = next(n for n in found if n not in self._tensors)
            raise ModelError(
                f"train_fn added {extra} to what is trained; give the model as it shall be trained"
            )

    def _arrays(self, vector: Vector) -> dict[str, np.ndarray[Any, Any]]:
        types = {n: t.numpy().dtype for n, t in self._tensors.items()}
        return {n: t.numpy().astype(types[n]) for n, t in self.layout.unflatten(vector).items()}


def _held(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that a module keeps, by name, buffers that its state leaves out included."""
    return {**dict(model.named_buffers()), **model.state_dict(keep_vars=True)}


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
