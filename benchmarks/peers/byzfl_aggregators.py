"""The same rules by ByzFL 0.0.11, as plain functions: the peer of `securefed_benchmarks.byzantine_rules`.

ByzFL pins its own torch and pulls torchvision and seaborn for parts that are not used here. Install it without
them into an environment that has SecureFed: `pip install --no-deps byzfl==0.0.11`; where torchvision or
seaborn is missing, empty modules stand in for it while ByzFL is imported.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

Rule = Callable[[torch.Tensor], torch.Tensor]


class _Empty(types.ModuleType):
    """A module whose every name is there and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def _installed(name: str) -> bool:
    """Whether a package is really there; a stand-in is not."""
    return not isinstance(sys.modules.get(name), _Empty) and importlib.util.find_spec(name) is not None


def load() -> Any:
    """The `byzfl` package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.models",
        "seaborn",
    ):
        if name not in sys.modules and not _installed(name.split(".")[0]):
            sys.modules[name] = _Empty(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(
                name, None
            )  # torch asks whether it is there
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    return importlib.import_module("byzfl")


def rules(f: int) -> dict[str, Rule]:
    """Name (ours) -> ByzFL's rule for f liars, with its own defaults."""
    byzfl = load()

    def trimmed(x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = byzfl.TrMean(f=f)(byzfl.NNM(f=f)(x))
        return mixed

    return {
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(f=f),
        "mea_med": byzfl.Meamed(f=f),
        "geometric_median": byzfl.GeometricMedian(),
        "krum": byzfl.Krum(f=f),
        "multi_krum": byzfl.MultiKrum(f=f),
        "mda": byzfl.MDA(f=f),
        "monna": byzfl.MoNNA(f=f),
        "centered_clipping": byzfl.CenteredClipping(),
        "caf": byzfl.CAF(f=f),
        "nnm": byzfl.NNM(f=f),
        "nnm + trimmed_mean": trimmed,
    }
