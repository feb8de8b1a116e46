"""Text classification on a pre-trained encoder or decoder, with a frozen prefix that can be cached.

Hidden states are averaged over the attention mask and scaled to length one; one linear layer with bias
reads them, starting at zero. Features of unit norm bound the head's per-sample gradients, which is what a
clipped, noisy head needs first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from securefed.data.batch import Batch
from securefed.errors import ModelError

STAGED = ("bert", "roberta", "xlm-roberta", "camembert")
"""Model types whose layers can be run one by one: `embeddings`, then each of `encoder.layer`."""


class TextClassifier(nn.Module):
    """Backbone, mean pooling, unit norm, linear head (k logits).

    Stages: after layer 1, ..., L (hidden states (b, t, h)), and L + 1, the pooled features (b, h). A
    backbone whose layers we cannot run one by one has L = 0 and the pooled stage alone.

    Per-sample gradients: every trainable tensor is used once and sees its batch in dimension 0, also
    when the forward pass starts from cached hidden states, so Opacus' hooks apply unwrapped.
    """

    def __init__(self, backbone: Any, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.checkpointing = False
        config = backbone.config
        self.staged = config.model_type in STAGED and not getattr(config, "is_decoder", False)

    @property
    def layers(self) -> int:
        """L, the number of layers that can be run one by one."""
        return len(self.backbone.encoder.layer) if self.staged else 0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k), from the tokens or from `batch.hidden` taken after `batch.depth` stages."""
        logits: torch.Tensor = self.head(self.features(batch))
        return logits

    def features(self, batch: Batch) -> torch.Tensor:
        """Pooled hidden states of unit norm, float32 (b, h)."""
        if batch.hidden is not None and batch.depth == self.layers + 1:
            return batch.hidden
        return _pool(self._hidden(batch, self.layers), batch.attention_mask)

    @torch.no_grad()
    def prefix(self, batch: Batch, cut: int) -> torch.Tensor:
        """What stage `cut` puts out, float32, with the adapters below it as they are now.

        Raises:
            ModelError: `cut` is no stage of this model.
        """
        if not 1 <= cut <= self.layers + 1:
            raise ModelError(
                f"cut={cut} is no cacheable stage of this model; stages are 1 to {self.layers + 1}"
            )
        training = self.backbone.training
        if self.checkpointing:
            self.backbone.eval()  # nothing is recomputed here, and torch would warn about it
        try:
            return self.features(batch) if cut == self.layers + 1 else self._hidden(batch, cut).float()
        finally:
            if self.checkpointing:
                self.backbone.train(training)

    def stage_below(self, names: Iterable[str]) -> int:
        """The deepest stage with none of these tensors (clean names) below it; 0 if there is none."""
        return min((self._stage_of(name) for name in names), default=self.layers + 1)

    def _stage_of(self, name: str) -> int:
        if name.startswith("head."):
            return self.layers + 1
        if self.staged and name.startswith("encoder.layer."):
            return int(name.split(".")[2])
        return 0

    def _hidden(self, batch: Batch, stop: int) -> torch.Tensor:
        """Hidden states after `stop` layers (staged), or the last ones (not staged)."""
        if not self.staged:
            out = self.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            last: torch.Tensor = out.last_hidden_state
            return last
        from transformers.masking_utils import create_bidirectional_mask

        if batch.hidden is None:
            hidden, start = self.backbone.embeddings(input_ids=batch.input_ids), 0
        else:
            hidden, start = batch.hidden.to(self.backbone.dtype), batch.depth
            if self.checkpointing and torch.is_grad_enabled():
                hidden = hidden.detach().requires_grad_()  # reentrant checkpoints ask for one such input
        if start > stop:
            raise ModelError(f"hidden states after layer {start} cannot give those after layer {stop}")
        mask = create_bidirectional_mask(
            config=self.backbone.config, inputs_embeds=hidden, attention_mask=batch.attention_mask
        )
        for layer in self.backbone.encoder.layer[start:stop]:
            hidden = layer(hidden, mask)
        return hidden


def _pool(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens the mask keeps, scaled to length one, float32 (b, h)."""
    hidden = hidden.float()
    if mask is None:
        return F.normalize(hidden.mean(1), dim=-1)
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * keep).sum(1) / keep.sum(1).clamp(min=1), dim=-1)
