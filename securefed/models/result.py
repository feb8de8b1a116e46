"""The result on disk: safetensors and JSON, nothing that can run code.

LoRA: a standard PEFT folder (`adapter_config.json`, `adapter_model.safetensors`). Full fine-tuning: the whole
model as a standard folder. Small nets: `model.safetensors`. Beside each: `head.safetensors` where there is a
head, `securefed.json` (how to rebuild it) and a short README.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from securefed.config import ModelConfig
from securefed.errors import ModelError
from securefed.models.digest import read_json, write_json
from securefed.models.encoder import TextClassifier
from securefed.models.quiet import quiet
from securefed.models.task_model import TaskModel
from securefed.models.zoo import is_small

FORMAT = 1
SIDECAR = "securefed.json"


def save_result(model: TaskModel, folder: Path) -> None:
    """Writes the trained tensors of `model` into `folder`, which is made if need be.

    Raises:
        ModelError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save_tensors(model, folder)
        (folder / "README.md").write_text(_readme(model), encoding="utf-8")
        write_json(folder / SIDECAR, _sidecar(model))  # last: with it the folder is complete
    except OSError as error:
        raise ModelError(f"cannot write the model to {folder}: {error.strerror or error}") from None


def load_result(folder: Path, *, base: str | None, device: str) -> TaskModel:
    """See `securefed.models.load_result`."""
    from securefed.models.adapters import refuse_unsupported
    from securefed.models.loading import first_digest, load

    refuse_unsupported(folder)
    sidecar = read_json(folder / SIDECAR)
    if sidecar is None or sidecar.get("format") != FORMAT:
        raise ModelError(
            f"{folder} has no {SIDECAR} of format {FORMAT}; it was not written by save_adapter or not completely"
        )
    try:
        config = _config(sidecar["model"])
        shape = sidecar["image_shape"]
        classes, length, digest = (
            int(sidecar["classes"]),
            int(sidecar["max_length"]),
            str(sidecar["base_digest"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/{SIDECAR} is damaged: {type(error).__name__} at {error}") from None
    whole = config.adapter == "full" and not is_small(config.name)
    name = str(folder) if whole else base or config.name
    config = dataclasses.replace(config, name=name, device=device)
    model = load(
        config, classes=classes, image_shape=tuple(shape) if shape else None, unit="none", max_length=length
    )
    if not whole and digest != model.base_digest and (is_small(config.name) or digest != first_digest(model)):
        raise ModelError(
            f"base model {config.name} is not the one {folder} was trained from; give the right one as base="
        )
    if whole and sidecar.get("pooled", "") != _pooled(model):
        raise ModelError(
            f"{folder} was trained with another pooling of a decoder's states than is computed now; train its head again"
        )
    _load_tensors(model, folder)
    return model


def _config(tree: dict[str, Any]) -> ModelConfig:
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in tree.items() if k in known
    }
    return ModelConfig(**values)


def _sidecar(model: TaskModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": dataclasses.asdict(model.config),
        "classes": model.classes,
        "image_shape": model.image_shape,
        "max_length": model.max_length,
        "base": model.name,
        "base_digest": model.base_digest,
        "layout_digest": model.layout.digest,
        "pooled": _pooled(model),
    }


def _save_tensors(model: TaskModel, folder: Path) -> None:
    from securefed.models.adapters import state

    head = _head(model)
    if head:
        _write(head, folder / "head.safetensors")
    if merged := _merged(model):
        _write(merged, folder / "merged.safetensors")
    if model.peft is not None:
        state(model.peft, folder, model.name)
    elif is_small(model.config.name):
        _write(dict(model.parameters), folder / "model.safetensors")
    elif model.config.adapter == "full":
        backbone: Any = model.module.backbone
        with quiet():
            backbone.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)


def _load_tensors(model: TaskModel, folder: Path) -> None:
    from securefed.models.adapters import file_name

    head = _head(model)
    if head:
        _read(folder / "head.safetensors", {n: (n, p) for n, p in head.items()})
    if merged := _merged(model):
        _read(folder / "merged.safetensors", {n: (n, p) for n, p in merged.items()})
    if model.peft is not None:
        apart = head.keys() | merged.keys()
        tensors = {n: p for n, p in model.parameters.items() if n not in apart} | model.frozen_adapter
        _read(folder / "adapter_model.safetensors", {file_name(n): (n, p) for n, p in tensors.items()})
    elif is_small(model.config.name):
        _read(folder / "model.safetensors", {n: (n, p) for n, p in model.parameters.items()})


def _head(model: TaskModel) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.parameters.items() if model.part_of[n] in ("head", "centre", "anchor")}


def _merged(model: TaskModel) -> dict[str, torch.nn.Parameter]:
    """Base weights that the server added to."""
    return {n: p for n, p in model.parameters.items() if model.part_of[n] == "merged"}


def _write(tensors: dict[str, torch.nn.Parameter], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path, {"format": "pt"})


def _read(path: Path, into: dict[str, tuple[str, torch.nn.Parameter]]) -> None:
    """Copies a file's tensors into the model; names and shapes must agree one for one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        raise ModelError(f"{path} is missing or damaged") from None
    if found.keys() != into.keys():
        odd = sorted(found.keys() ^ into.keys())[0]
        raise ModelError(
            f"{path.name} and the model disagree about tensor {odd}; was it made from another config?"
        )
    with torch.no_grad():
        for key, (name, parameter) in into.items():
            if key.endswith(".ia3_l"):
                found[key] = found[key].reshape(1, -1)  # PEFT writes those behind a layer as a column
            if found[key].shape != parameter.shape:
                raise ModelError(
                    f"{path.name} holds {name} of shape {tuple(found[key].shape)}, the model needs {tuple(parameter.shape)}"
                )
            parameter.copy_(found[key])


def _pooled(model: TaskModel) -> str:
    return model.module.pooled if isinstance(model.module, TextClassifier) else ""


def _read_by_head(model: TaskModel) -> str:
    assert isinstance(model.module, TextClassifier)
    reads = model.module.reads
    if not model.module.cut and reads == (model.module.backbone.config.num_hidden_layers,):
        return "the last hidden states, scaled to length one"
    each = f"`hidden_states[i]` for i in {list(reads)}, each scaled to length one, side by side"
    return f"{each}, divided by the square root of {len(reads)}"


def _sink(model: TaskModel) -> str:
    assert isinstance(model.module, TextClassifier)
    first = (
        "" if model.config.adapter == "prompt" else "(but each record's first token), "
    )  # virtual ones come before it
    return f"{first}every token's scaled to length one, " if model.module.causal else ""


def _centred(model: TaskModel) -> str:
    assert isinstance(model.module, TextClassifier)
    if model.module.centre is None:
        return ""
    return "less `centre.weight` and scaled to length one again, "


def _layers_of_a_prefix(model: TaskModel) -> int:
    """Of a model that was cut off, where prefixes belong to its layers; 0 for all else."""
    if not isinstance(model.module, TextClassifier) or model.config.adapter != "prefix":
        return 0
    return int(model.module.backbone.config.num_hidden_layers) if model.module.cut else 0


def _readme(model: TaskModel) -> str:
    lines = [
        f"# {model.config.adapter} result on {model.name}",
        "",
        f"Task: {model.task}. Trained numbers: {model.trained}.",
    ]
    kept = _layers_of_a_prefix(model)
    if kept:
        lines += [
            "",
            f"The prefix holds keys and values of the first {kept} layers, after which the model was cut off; PEFT would look "
            "for those of the others too, so open it with `load_result`, which cuts the model off.",
        ]
    elif model.peft is not None:
        auto = {
            "classification": "AutoModel",
            "causal-lm": "AutoModelForCausalLM",
            "seq2seq": "AutoModelForSeq2SeqLM",
        }[model.task]
        lines += [
            "",
            "```python",
            f"from transformers import {auto}",
            "from peft import PeftModel",
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("path of {model.name}"), "this folder")',
            "```",
        ]
    if _merged(model):
        lines += [
            "",
            "The adapter is a part of the result: merged.safetensors holds base weights that belong to it "
            "(`load_result` takes both).",
        ]
    if isinstance(model.module, TextClassifier):
        lines += [
            "",
            f"Logits: mean over the attention mask {_sink(model)}of {_read_by_head(model)}, {_centred(model)}times `head.weight` plus `head.bias` (head.safetensors).",
        ]
        if model.module.anchor is not None:
            lines += [
                "",
                f"Beside these features, before the centre: for layers {list(model.module.anchor.layers)} the gradient of the anchor's "
                "answer (`anchor.weight` times the features less `anchor.centre`, of length one) by the bias of the "
                "feed-forward's first half, each of length one, all together scaled to length one.",
            ]
    lines += [
        "",
        "```python",
        "from securefed.models import load_result",
        'model = load_result("this folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"
