"""Language modelling: a decoder that continues a record, or an encoder-decoder that answers it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from securefed.data.batch import IGNORE, Batch
from securefed.errors import ModelError


class CausalLM(nn.Module):
    """Logits (b, t, V) of the next token at each position. Records are padded on the right."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, t, V); position i predicts token i + 1."""
        assert batch.input_ids is not None
        out = self.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        logits: torch.Tensor = out.logits[:, -batch.input_ids.shape[1] :]  # virtual tokens come before
        return logits

    @staticmethod
    def align(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and what they should have been, position by position."""
        return logits[:, :-1], labels[:, 1:]


class Seq2SeqLM(nn.Module):
    """Logits (b, u, V) of the target, given the source and the target so far (teacher forcing)."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        config = backbone.config
        start = getattr(config, "decoder_start_token_id", None)
        self.start = start if start is not None else config.pad_token_id
        self.pad = config.pad_token_id if config.pad_token_id is not None else self.start
        if self.start is None:
            raise ModelError(
                f"{config.model_type} names no decoder_start_token_id; add it to its config.json"
            )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, u, V); position i predicts label i."""
        assert batch.labels is not None
        out = self.backbone(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=self._shifted(batch.labels),
            use_cache=False,
        )
        logits: torch.Tensor = out.logits
        return logits

    def _shifted(self, labels: torch.Tensor) -> torch.Tensor:
        """The start token, then the target without its last; the filler is never attended by a real position."""
        tokens = labels.masked_fill(labels == IGNORE, self.pad)
        return torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], 1)

    @staticmethod
    def align(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and what they should have been: already in step."""
        return logits, labels


def token_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy (b,): each record's mean over its own tokens; 0 for a record that predicts none.

    The denominator depends on that record alone, so one record's gradient does not depend on another's.
    """
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return flat.view(labels.shape).sum(1) / (labels != IGNORE).sum(1).clamp(min=1)
