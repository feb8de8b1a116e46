"""What adapters beyond LoRA do not have."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import ModelConfig


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
