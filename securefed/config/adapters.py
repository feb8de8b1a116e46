"""What adapters beyond LoRA do not have, and what language models ask of a job."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import ModelConfig, TrainConfig


def check_soft(m: ModelConfig) -> None:
    """Prompt, prefix and IA3: which of a LoRA adapter's options they do not have."""
    require(m.virtual_tokens >= 1, f"model.virtual_tokens must be at least 1, found {m.virtual_tokens}")
    if m.adapter not in ("prompt", "prefix", "ia3"):
        return
    require(
        m.layers == "all",
        f'adapter {m.adapter} has no choice of layers; set model.layers = "all", or use a LoRA adapter',
    )
    require(m.dropout == 0, f"adapter {m.adapter} has no dropout of its own; set model.dropout = 0")
    if m.adapter == "ia3":
        return
    require(
        m.task != "seq2seq",
        f"adapter {m.adapter} is for classification and causal-lm; with task = seq2seq use ia3 or a LoRA adapter",
    )
    require(
        m.targets == "auto",
        f"adapter {m.adapter} changes no module, so it has no targets; leave model.targets out, or use ia3",
    )
    require(
        not m.gradient_checkpointing,
        f"adapter {m.adapter} runs every layer behind virtual tokens, which checkpointing would lose; set "
        "model.gradient_checkpointing = false",
    )


def check_tangent(m: ModelConfig, t: TrainConfig) -> None:
    """Tangents: which options their frozen model does not have."""
    if m.adapter != "tangent":
        return
    require(
        m.task == "classification",
        f'adapter tangent takes gradients of a classifier\'s logits; with task = "{m.task}" use a LoRA adapter',
    )
    require(
        m.targets == "auto",
        "adapter tangent reads the feed-forward biases of model.layers; leave model.targets out, or use a LoRA adapter",
    )
    require(
        m.dropout == 0, "adapter tangent reads a frozen model, which has no dropout; set model.dropout = 0"
    )
    require(
        not m.gradient_checkpointing,
        "adapter tangent takes its gradients once, before training; set model.gradient_checkpointing = false",
    )
    require(
        not t.inspect_model,
        "train.inspect_model refuses heads with zeroed parts, and one on tangents begins with them; leave inspect_model out",
    )


def check_language(m: ModelConfig, t: TrainConfig) -> None:
    """What a sampled vocabulary goes with; how many tokens there are is known when the model is loaded."""
    if m.vocabulary_sample == 0:
        return
    require(
        m.vocabulary_sample >= 2,
        f"model.vocabulary_sample must be 0 (all tokens) or at least 2, found {m.vocabulary_sample}",
    )
    require(
        m.task == "causal-lm",
        f'model.vocabulary_sample is for causal language models; with task = "{m.task}" set it to 0',
    )
    require(
        m.adapter not in ("full", "prompt", "prefix"),
        f"model.vocabulary_sample needs a frozen output layer and no virtual tokens; with adapter {m.adapter} set it to 0",
    )
    require(
        t.label_smoothing == 0,
        "train.label_smoothing spreads weight over all tokens, which model.vocabulary_sample leaves out; set one of them to 0",
    )
