"""The base model behind an update: a module in hand, a zoo name, a folder, or what the adapter names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.config import ModelConfig
from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.errors import AuditError, ModelError
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.captured import Captured
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.target import Target


@dataclasses.dataclass(frozen=True)
class NoTarget:
    """Why no model can be asked; `lacks` says what to hand over."""

    lacks: str


def open_target(
    base: Any, captured: Captured, candidates: Candidates | None, recipe: Recipe, tokenizer: Any = None
) -> Target | NoTarget:
    """The model that losses and gradients are asked of, or what is missing for one.

    Raises:
        AuditError: a base was named that the states do not belong to.
        ModelError: a base was named that does not exist, or cannot be read.
    """
    named = base if base is not None else _named_by(captured)
    if named is None:
        return NoTarget("the base model (base=, or --base)")
    if isinstance(named, nn.Module):
        target = _from_module(named, captured, candidates, recipe, tokenizer)
    else:
        target = _from_name(str(named), captured, candidates, recipe)
    if isinstance(target, Target):
        target.check(captured.before.tensors)
        if (len(target) and target.encoded.labels is not None) or target.kind == "causal-lm":
            target.check_eval(captured.before.tensors)
    return target


def _named_by(captured: Captured) -> str | None:
    """What the adapter's folder says; None where that is nothing on this machine."""
    from securefed.models.zoo import ZOO, find_model

    name = captured.after.base or captured.before.base or captured.after.sidecar.get("base")
    if not name:
        return None
    name = next((zoo for zoo, packaged in ZOO.items() if packaged.package == name), str(name))
    try:
        find_model(name)
    except ModelError:
        return None
    return name


def _from_module(
    module: nn.Module, captured: Captured, candidates: Candidates | None, recipe: Recipe, tokenizer: Any
) -> Target | NoTarget:
    if candidates is None or candidates.texts is None:
        inputs = torch.empty(0) if candidates is None else candidates.inputs
        labels = None if candidates is None else candidates.labels
        return Target(module, "plain", Encoded(labels=labels), scales=captured.scales, inputs=inputs)
    if tokenizer is None:
        return NoTarget("the tokenizer of the base model (tokenizer=), since the candidates are texts")
    head = getattr(getattr(module, "config", None), "architectures", None) or [type(module).__name__]
    causal = "CausalLM" in str(head) or "LMHead" in str(head) or "CausalLM" in type(module).__name__
    encoded = _tokens(tokenizer, candidates, recipe, causal)
    kind: Any = "causal-lm" if causal else "hf-classifier"
    return Target(module, kind, encoded, scales=captured.scales, tokenizer=tokenizer, body=module)


def _from_name(
    name: str, captured: Captured, candidates: Candidates | None, recipe: Recipe
) -> Target | NoTarget:
    from securefed.models.zoo import SMALL_NETS

    sidecar = captured.after.sidecar or captured.before.sidecar
    if name in SMALL_NETS:
        return _small_net(name, sidecar, captured, candidates)
    if candidates is not None and candidates.texts is None:
        raise AuditError(f"base {name} reads texts and the candidates are tensors; give their texts")
    if sidecar.get("model", {}).get("task") == "classification":
        return _from_sidecar(name, sidecar, captured, candidates, recipe)
    return _from_transformers(name, captured, candidates, recipe)


def _small_net(name: str, sidecar: Any, captured: Captured, candidates: Candidates | None) -> Target:
    from securefed.models import load_model

    if not sidecar.get("image_shape"):
        raise AuditError(
            f"base {name} is a small net without stored weights; give the module itself as base="
        )
    if candidates is not None and candidates.inputs is None:
        raise AuditError(f"base {name} reads images and the candidates are texts")
    shape = tuple(int(v) for v in sidecar["image_shape"])
    config = dataclasses.replace(_config(sidecar), name=name, device="cpu")
    model = load_model(config, classes=int(sidecar["classes"]), image_shape=(shape[0], shape[1], shape[2]))
    inputs = torch.empty(0) if candidates is None else candidates.inputs
    labels = None if candidates is None else candidates.labels
    return Target(model.module, "classifier", Encoded(labels=labels), scales={}, inputs=inputs)


def _config(sidecar: Any) -> ModelConfig:
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    stored: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in sidecar["model"].items() if k in known
    }
    return ModelConfig(**stored)


def _from_sidecar(
    name: str, sidecar: Any, captured: Captured, candidates: Candidates | None, recipe: Recipe
) -> Target:
    """Our own classifier: frozen backbone and head as a task model builds them, factors put in by the target."""
    from securefed.models import load_model

    stored = _config(sidecar)
    if stored.adapter == "tangent":
        raise AuditError(
            "a head on tangents reads gradients that change with each state's anchor, which no attack here follows; audit "
            'the same job with model.adapter = "head" or a LoRA adapter'
        )
    config = dataclasses.replace(stored, name=name, adapter="head", dropout=0.0, device="cpu")
    length = min(recipe.max_length, int(sidecar["max_length"]))
    model = load_model(config, classes=int(sidecar["classes"]), max_length=length)
    pooled = getattr(model.module, "pooled", "")
    if (
        "format" in sidecar and sidecar.get("pooled", "") != pooled
    ):  # a run's own state is read by the code that made it
        raise AuditError(
            f"the adapter's head was trained with another pooling of {name}'s states than is computed now; "
            "audit it with the release that made it"
        )
    texts = ("",) if candidates is None else candidates.texts
    labels = None if candidates is None else candidates.labels
    encoded = model.encode(
        Examples(texts=texts, labels=np.zeros(len(texts or ()), np.int64) if labels is None else labels),
        length,
    )
    if candidates is None or labels is None:
        encoded = dataclasses.replace(encoded, labels=None)
    body = getattr(model.module, "backbone", None)
    return Target(
        model.module,
        "classifier",
        encoded,
        scales=captured.scales,
        tokenizer=model.tokenizer,
        body=body,
    )


def _from_transformers(
    name: str, captured: Captured, candidates: Candidates | None, recipe: Recipe
) -> Target | NoTarget:
    from securefed.models.backbone import load_backbone, positions
    from securefed.models.text import load_encoder
    from securefed.models.zoo import find_model

    source = find_model(name)
    kind = _kind_of(captured)
    task = "causal-lm" if kind == "causal-lm" else "classification"
    if kind == "hf-classifier":
        module = _sequence_classifier(source.folder, captured)
    else:
        module = load_backbone(
            source.folder,
            task,
            dtype="float32",
            dropout=0.0,
            max_length=1,  # plain attention, and records are cut to the model's positions below
            device=torch.device("cpu"),
        )
    vocabulary, longest = module.get_input_embeddings().weight.shape[0], positions(module.config)
    if longest is not None and recipe.max_length > longest:
        recipe = dataclasses.replace(recipe, max_length=longest)
    tokenizer = load_encoder(source.folder, task, vocabulary=vocabulary, longest=None).tokenizer
    encoded = (
        Encoded(tokens=())
        if candidates is None
        else _tokens(tokenizer, candidates, recipe, kind == "causal-lm")
    )
    if kind is None:  # an encoder alone: tokens can be looked for, a loss it has not
        encoded = dataclasses.replace(encoded, labels=None)
    return Target(
        module, kind or "hf-classifier", encoded, scales=captured.scales, tokenizer=tokenizer, body=module
    )


def _kind_of(captured: Captured) -> Any:
    names = captured.after.tensors
    task = (captured.after.task or captured.before.task or "").upper()
    if task == "CAUSAL_LM" or captured.after.sidecar.get("model", {}).get("task") == "causal-lm":
        return "causal-lm"
    if task == "SEQ_CLS" or any(n.startswith(("classifier.", "score.")) for n in names):
        return "hf-classifier"
    if any(n.startswith("lm_head.") for n in names):
        return "causal-lm"
    return None


def _sequence_classifier(folder: Path, captured: Captured) -> Any:
    from transformers import AutoModelForSequenceClassification

    from securefed.models.quiet import quiet

    head = next(
        (
            t
            for n, t in captured.after.tensors.items()
            if n in ("classifier.weight", "score.weight", "classifier.out_proj.weight")
        ),
        None,
    )
    if head is None:
        raise AuditError(
            "the adapter is of a classifier and its head is not in the folder; train with modules_to_save, or give base="
        )
    with quiet(), torch.random.fork_rng(devices=[]):
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(head),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
        )


def _tokens(tokenizer: Any, candidates: Candidates, recipe: Recipe, causal: bool) -> Encoded:
    assert candidates.texts is not None
    found = tokenizer(
        list(candidates.texts), truncation=True, max_length=recipe.max_length, return_attention_mask=False
    )["input_ids"]
    pad = next(int(p) for p in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if p is not None)
    ids = tuple(np.asarray(i or [pad], np.int64) for i in found)
    return Encoded(tokens=ids, labels=None if causal else candidates.labels, pad_id=pad)
