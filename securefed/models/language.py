"""Language modelling: a decoder that continues a record, or an encoder-decoder that answers it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from securefed.data.batch import IGNORE, Batch
from securefed.errors import ModelError
from securefed.models.decoder import layer_of, run_layers, staged_layers
from securefed.models.vocabulary import SampledVocabulary


class CausalLM(nn.Module):
    """Logits (b, t, V) of the next token at each position. Records are padded on the right.

    Stages: after layer 1, ..., L, hidden states (b, t, h) before the last normalization; none where the
    layers cannot be run one by one, or where virtual tokens come before a record's own.

    Attributes:
        layers: L, the number of layers that can be run one by one.
        checkpointing: activations are recomputed in the backward pass.
        sampled: the part of the vocabulary that training normalizes over; None for all of it.
    """

    def __init__(self, backbone: Any, *, virtual: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = 0 if virtual else staged_layers(backbone)
        self.checkpointing = False
        self.sampled: SampledVocabulary | None = None

    def sample_vocabulary(self, size: int, seed: int) -> None:
        """Lets training normalize over `size` public tokens; evaluation stays exact.

        Raises:
            ModelError: a model whose output layer cannot be read row by row, or a size out of range.
        """
        output = getattr(self.backbone, "lm_head", None)
        if not self.layers or type(output) is not nn.Linear or output.bias is not None:
            raise ModelError(
                f"model.vocabulary_sample needs a plain frozen output layer; {self.backbone.config.model_type} with these "
                "adapters has none that we know, set model.vocabulary_sample = 0"
            )
        self.sampled = SampledVocabulary(len(output.weight), size, seed)

    def losses(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy (b,) over the sampled vocabulary: each record's mean over its own tokens."""
        assert self.sampled is not None
        assert batch.labels is not None
        hidden, labels = self.last(batch)[:, :-1], batch.labels[:, 1:]
        kept = labels != IGNORE
        found = self.sampled.losses(hidden[kept], labels[kept], self.backbone.lm_head.weight)
        whole = found.new_zeros(labels.shape).masked_scatter(kept, found)
        return whole.sum(1) / kept.sum(1).clamp(min=1)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, t, V); position i predicts token i + 1. From `batch.hidden` if that is given."""
        if batch.hidden is not None:
            continued: torch.Tensor = self.backbone.lm_head(self.last(batch))
            return continued
        assert batch.input_ids is not None
        out = self.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        logits: torch.Tensor = out.logits[:, -batch.input_ids.shape[1] :]  # virtual tokens come before
        return logits

    def last(self, batch: Batch) -> torch.Tensor:
        """What the output layer reads (b, t, h), of a model whose layers can be run one by one."""
        hidden = run_layers(self.backbone, batch, self.layers, checkpointing=self.checkpointing)
        normalized: torch.Tensor = self.backbone.model.norm(hidden)
        return normalized

    @torch.no_grad()
    def stage(self, batch: Batch, cut: int) -> tuple[torch.Tensor, None]:
        """Hidden states after `cut` layers, float32; nothing is read beside them.

        Raises:
            ModelError: `cut` is no stage of this model.
        """
        if not 1 <= cut <= self.layers:
            raise ModelError(f"cut={cut} is no cacheable stage of this model; stages are 1 to {self.layers}")
        training = self.backbone.training
        if self.checkpointing:
            self.backbone.eval()  # nothing is recomputed here, and torch would warn about it
        try:
            return run_layers(self.backbone, batch, cut).float(), None
        finally:
            if self.checkpointing:
                self.backbone.train(training)

    def stage_below(self, names: Iterable[str]) -> int:
        """The deepest stage with none of these tensors (clean names) below it; 0 if there is none."""
        return min((layer_of(name) for name in names), default=self.layers)

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
