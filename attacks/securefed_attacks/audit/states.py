"""Captured model states: dicts, modules, PEFT folders, safetensors and plain torch files, read alike.

A state is named float tensors. LoRA factors are `MODULE.lora_A` and `MODULE.lora_B` whatever the library
called them, with the scale alpha / rank (alpha / sqrt(rank) for rsLoRA) kept beside them. Nothing that can
run code is read: torch files are opened with `weights_only=True`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from securefed.errors import AuditError
from securefed.models.digest import read_json

Tensors = dict[str, torch.Tensor]
PREFIXES = ("base_model.model.", "_orig_mod.", "module.")
"""What PEFT, torch.compile and DataParallel put before a module's own names."""
QUANTIZED = (torch.uint8, torch.int8, torch.qint8, torch.quint8, torch.qint32)
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, eq=False)
class State:
    """One captured model state.

    Attributes:
        tensors: name -> float tensor on the CPU. scales: LoRA module -> factor of B A.
        task: PEFT's task type where it is known. base: the base model's name where the folder says it.
        source: how the user named it. sidecar: what SecureFed wrote beside its own adapters.
    """

    tensors: Tensors = field(repr=False)
    scales: Mapping[str, float] = field(default_factory=dict)
    task: str | None = None
    base: str | None = None
    source: str = ""
    sidecar: Mapping[str, Any] = field(default_factory=dict)


def read_state(given: Any, name: str, *, lora_alpha: float | None = None) -> State:
    """The state in a mapping, a module, a file or a folder.

    Args:
        name: "before" or "after", for messages. lora_alpha: for bare LoRA tensors, whose scale they do not say.

    Raises:
        AuditError: nothing there, unreadable, quantized weights, or LoRA without a known scale.
    """
    if isinstance(given, State):
        return given
    if isinstance(given, torch.nn.Module):
        given = given.state_dict()
    if isinstance(given, Mapping):
        return _state(dict(given), name, {}, lora_alpha, f"a state dict ({name})")
    path = Path(given).expanduser()
    if path.is_dir():
        return _from_folder(path, name, lora_alpha)
    if not path.is_file():
        raise AuditError(f"{name}: nothing at {path}; give a folder, or a .safetensors, torch or .npz file")
    return _state(_read_file(path, name), name, {}, lora_alpha, _shown(path))


def is_arrays(given: Any) -> bool:
    """Whether this is one state as Flower sends it: a list of arrays without names, in the model's own order."""
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(a, np.ndarray) for a in given)


def name_arrays(given: Any, base: Any, name: str) -> Any:
    """A list of arrays (or rounds of them) under the names of the base model's `state_dict`; all else as it is.

    Raises:
        AuditError: no module to take the names from, or it holds another number of tensors.
    """
    if isinstance(given, list | tuple) and any(is_arrays(g) for g in given):
        return [name_arrays(g, base, name) for g in given]
    if not is_arrays(given):
        return given
    if not isinstance(base, torch.nn.Module):
        raise AuditError(
            f"{name} is a list of {len(given)} arrays without names; give the module itself as base=, whose order they have"
        )
    names = list(base.state_dict())
    if len(names) != len(given):
        raise AuditError(
            f"{name} is a list of {len(given)} arrays and the base model holds {len(names)} tensors; "
            "give a mapping of names to arrays"
        )
    return dict(zip(names, given, strict=True))


def _shown(path: Path) -> str:
    """The last two parts: no home folder in a report."""
    return "/".join(path.parts[-2:]) if len(path.parts) > 1 else str(path)


def _from_folder(path: Path, name: str, lora_alpha: float | None) -> State:
    settings = read_json(path / "adapter_config.json")
    if settings is not None:
        file = next((path / f for f in ADAPTER if (path / f).is_file()), None)
        if file is None:
            raise AuditError(f"{name}: {path} has adapter_config.json and no {' or '.join(ADAPTER)}")
        tensors = _read_file(file, name)
    else:
        files = sorted(f for f in path.glob("*.safetensors") if f.name != "head.safetensors")
        if not files:
            raise AuditError(
                f"{name}: {path} holds neither adapter_config.json nor *.safetensors; give the folder that they are in"
            )
        tensors = {k: v for f in files for k, v in _read_file(f, name).items()}
        _refuse_quantized_config(read_json(path / "config.json") or {}, name)
    if (path / "head.safetensors").is_file():
        tensors |= _read_file(path / "head.safetensors", name)
    found = _state(tensors, name, settings or {}, lora_alpha, _shown(path))
    sidecar = read_json(path / "securefed.json") or {}
    return State(found.tensors, found.scales, found.task, found.base, found.source, sidecar)


def _read_file(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise their own kinds for a damaged file
        raise AuditError(
            f"{name}: cannot read {path.name} ({type(error).__name__}); give safetensors, or a torch file of tensors alone"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise AuditError(f"{name}: {path.name} holds a {type(found).__name__}, not named tensors")
    return dict(found)


def _state(
    given: dict[str, Any], name: str, settings: Mapping[str, Any], alpha: float | None, source: str
) -> State:
    tensors: Tensors = {}
    for key, value in given.items():
        if not isinstance(value, torch.Tensor):
            value = _as_tensor(value)
        if value is None:
            continue
        _refuse_quantized(str(key), value, name)
        if value.is_floating_point():
            tensors[clean(str(key))] = value.detach().cpu().float()
    if not tensors:
        raise AuditError(
            f"{name}: no float tensors in {source}; give a model's or an adapter's named weights"
        )
    _refuse_variants(tensors, settings, name)
    return State(
        tensors,
        _scales(tensors, settings, alpha),
        settings.get("task_type"),
        settings.get("base_model_name_or_path"),
        source,
    )


def _as_tensor(value: Any) -> torch.Tensor | None:
    """NumPy arrays are weights too (Flower sends them); other things beside weights are passed over."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        return None
    return torch.from_numpy(np.array(value))


def clean(name: str) -> str:
    """A module's own name, `X.lora_A` for PEFT's `X.lora_A.default.weight`, `X` for its kept copies."""
    while any(name.startswith(p) for p in PREFIXES):
        name = next(name[len(p) :] for p in PREFIXES if name.startswith(p))
    name = re.sub(r"\.lora_([AB])(\.[^.]+)??\.weight$", r".lora_\1", name)
    name = name.replace(".base_layer.", ".")
    return re.sub(r"\.(modules_to_save\.[^.]+|original_module)\.", ".", name)


def _refuse_quantized(key: str, value: torch.Tensor, name: str) -> None:
    if value.dtype in QUANTIZED and value.ndim >= 1 and value.numel() > 1:
        raise AuditError(
            f"{name}: {key} is quantized ({str(value.dtype).removeprefix('torch.')}); an update of rounded weights "
            "is not the update that was sent: give the float weights, or the adapter alone"
        )


def _refuse_quantized_config(config: Mapping[str, Any], name: str) -> None:
    if config.get("quantization_config"):
        raise AuditError(
            f"{name}: its config.json says that the weights are quantized; give the float weights, or the adapter alone"
        )


def _refuse_variants(tensors: Tensors, settings: Mapping[str, Any], name: str) -> None:
    if settings.get("use_dora") or any("lora_magnitude" in k for k in tensors):
        raise AuditError(
            f"{name} is a DoRA adapter, whose magnitudes mix whole rows; only LoRA and full weights are read"
        )
    if any("lora_embedding" in k for k in tensors):
        raise AuditError(f"{name} adapts an embedding by LoRA, which is not read; linear layers are")
    kind = str(settings.get("peft_type", "LORA"))
    if kind != "LORA":
        raise AuditError(f"{name} is a {kind} adapter; LoRA and full weights are read")


def _scales(tensors: Tensors, settings: Mapping[str, Any], alpha: float | None) -> dict[str, float]:
    found = {}
    for module in lora_modules(tensors):
        rank = int(tensors[f"{module}.lora_A"].shape[0])
        own = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", alpha))
        if own is not None:
            found[module] = float(own) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return found


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    for key, value in (patterns or {}).items():
        if re.search(rf"(^|.*\.){key}$", module):
            return value
    return default


def lora_modules(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Modules with both factors, sorted."""
    return sorted(k[:-7] for k in tensors if k.endswith(".lora_A") and f"{k[:-7]}.lora_B" in tensors)
