"""A pre-trained base from its folder: weights, dropout, attention, checkpointing. Transformers' auto classes live here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from securefed.errors import ModelError
from securefed.models.quiet import quiet

logger = logging.getLogger(__name__)

EAGER_UP_TO = 128
"""Tokens up to which plain attention is faster than the fused kernels on a CPU (their backward is slow there)."""

AUTO_CLASS = {
    "classification": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def load_backbone(
    folder: Path, task: str, *, dtype: str, dropout: float, max_length: int, device: torch.device
) -> Any:
    """The base model, complete, on the CPU, every dropout at `dropout`, without a KV cache or pooler.

    Raises:
        ModelError: config or weights that do not fit the task or are incomplete, or `max_length` beyond
            the model's positions.
    """
    import transformers

    if dtype == "bfloat16" and device.type == "cpu" and not _fast_bfloat16():
        logger.warning(
            'this CPU has no bfloat16 arithmetic and emulates it, far slower than model.dtype = "float32"'
        )
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            _check_config(config, task, max_length)
            _set_dropout_fields(config, dropout)
            config.use_cache = False
            model, info = getattr(transformers, AUTO_CLASS[task]).from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation="eager" if device.type == "cpu" and max_length <= EAGER_UP_TO else None,
                local_files_only=True,
                use_safetensors=True,  # pickled weights can run code
                output_loading_info=True,
            )
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # the libraries raise anything from KeyError to their own types on a bad folder
        line = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"cannot load {folder.name} for task {task}: {type(error).__name__}: {line[:200]}"
        ) from None
    _check_complete(folder, task, info)
    _drop_pooler(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def _fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; without, torch emulates it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def enable_checkpointing(model: Any) -> None:
    """Recomputes activations in the backward pass.

    Reentrant on purpose: without it forward hooks fire twice and Opacus' per-sample gradients break.
    Reentrant checkpointing needs an input that requires grad, hence the second call.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; set model.gradient_checkpointing = false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()


def positions(config: Any) -> int | None:
    """The longest input in tokens; None where positions are relative."""
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found <= 0:
        return None
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return found - offset


def _check_config(config: Any, task: str, max_length: int) -> None:
    if task == "classification" and config.is_encoder_decoder:
        raise ModelError(
            f'{config.model_type} is an encoder-decoder: set model.task = "seq2seq", or classify with an encoder or a decoder'
        )
    if task == "causal-lm" and config.is_encoder_decoder:
        raise ModelError(f'{config.model_type} is an encoder-decoder; set model.task = "seq2seq"')
    if task == "seq2seq" and not config.is_encoder_decoder:
        raise ModelError(
            f'{config.model_type} has no decoder beside its encoder; choose task "classification" or "causal-lm"'
        )
    longest = positions(config)
    if longest is not None and max_length > longest:
        raise ModelError(
            f"max_length={max_length} is more than the {longest} positions of {config.model_type}; lower data.max_length"
        )


def _set_dropout_fields(config: Any, dropout: float) -> None:
    """Attention modules read some probabilities from the config as plain numbers, not from an nn.Dropout."""
    for name, value in list(vars(config).items()):
        if (
            ("dropout" in name or name.endswith("_pdrop"))
            and isinstance(value, float | int)
            and not isinstance(value, bool)
        ):
            setattr(config, name, dropout)


def _check_complete(folder: Path, task: str, info: dict[str, Any]) -> None:
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler.") and ".pooler." not in k)
    mismatched = info.get("mismatched_keys") or ()
    if missing or mismatched:
        first = missing[0] if missing else str(sorted(mismatched)[0])
        count = len(missing) + len(mismatched)
        raise ModelError(
            f"{folder.name} lacks {count} tensors that task {task} needs (first: {first}); "
            "they would be random, choose another task or a complete model"
        )


def _drop_pooler(model: Any) -> None:
    """BERT's pooler is not used (we pool ourselves); kept, it would train on nothing under "full"."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
