"""Text classification on a pre-trained encoder or decoder, with a frozen prefix that can be cached.

The head reads the outputs of one or several layers: each is averaged over the attention mask and scaled to
length one, together they have length one, and one linear layer with bias, starting at zero, maps them to
logits. Optionally the features' mean is taken off first (`centre`). Features of unit norm bound the head's per-sample gradients, which is what a clipped, noisy head
needs first; the middle layers of a sentence encoder tell more about tone than its last, which was trained
to forget it (docs/recipes.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from securefed.data.batch import Batch
from securefed.errors import ModelError
from securefed.models.depth import is_causal
from securefed.models.tangents import Tangents, probed

STAGED = ("bert", "roberta", "xlm-roberta", "camembert")
"""Model types whose layers can be run one by one: `embeddings`, then each of `encoder.layer`."""


class TextClassifier(nn.Module):
    """Backbone, mean pooling of some layers' outputs, unit norm, linear head (k logits).

    Stages: after layer 1, ..., L (hidden states (b, t, h)), and L + 1, the pooled features
    (b, len(reads) x h). A backbone whose layers we cannot run one by one has L = 0 and the pooled stage alone.

    Per-sample gradients: every trainable tensor is used once and sees its batch in dimension 0, also
    when the forward pass starts from cached hidden states, so Opacus' hooks apply unwrapped.

    Args:
        reads: the layers whose output the head reads, 0 (embeddings) to the number of layers, ascending;
            empty for the last alone.
        centred: whether the head reads features less `centre`, scaled to length one again. Sentence
            features share a large common part: it is most of their length, tells nothing, and makes the
            head's problem ill-conditioned.
        tangents: the layers whose tangents the head reads too, ascending, each below the last that it reads; needs layers that
            can be run one by one.

    Attributes:
        staged: whether the layers can be run one by one.
        causal: a decoder: its first position is not pooled, and the others are scaled to length one before
            they are, because their sizes differ by more than what they say.
        cut: layers above those that the head reads were left out at loading.
    """

    def __init__(
        self,
        backbone: Any,
        classes: int,
        reads: Sequence[int] = (),
        centred: bool = False,
        tangents: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reads = tuple(reads) or (backbone.config.num_hidden_layers,)
        width = len(self.reads) * backbone.config.hidden_size
        self.anchor = (
            Tangents(tangents, classes, width, backbone.config.intermediate_size) if tangents else None
        )
        self.head = nn.Linear(width + (self.anchor.numbers if self.anchor is not None else 0), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.centre = nn.Linear(1, self.head.in_features, bias=False) if centred else None
        if self.centre is not None:
            nn.init.zeros_(self.centre.weight).requires_grad_(False)  # trains in its own round alone
        self.checkpointing = False
        config = backbone.config
        self.staged = config.model_type in STAGED and not getattr(config, "is_decoder", False)
        self.causal = is_causal(backbone)
        self.cut = False

    @property
    def pooled(self) -> str:
        """How states are pooled, in words that digests and results keep; empty for a plain mean."""
        return "states of length one after the first" if self.causal else ""

    @property
    def layers(self) -> int:
        """L, the number of layers that can be run one by one."""
        return len(self.backbone.encoder.layer) if self.staged else 0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k), from the tokens or from `batch.hidden` taken after `batch.depth` stages."""
        logits: torch.Tensor = self.head(self.shifted(self.features(batch)))
        return logits

    def shifted(self, features: torch.Tensor) -> torch.Tensor:
        """Features less the centre, scaled to length one; the head's loss never moves the centre."""
        if self.centre is None:
            return features
        centre = self.centre.weight.detach().squeeze(1)
        if self.anchor is not None and not self.anchor.is_set:  # of zeros it holds noise and nothing else
            centre = F.pad(centre[: self.anchor.weight.shape[1]], (0, self.anchor.numbers))
        return F.normalize(features - centre, dim=-1)

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Half the squared distance of each record's features to the centre (b,).

        Its gradient is centre - features, so one step of rate one from zero puts the centre on the mean:
        the mean is a gradient like any other, clipped, noised and charged by the same mechanism.
        """
        assert self.centre is not None
        centre = self.centre(features.new_ones(len(features), 1))
        return 0.5 * (centre - features.detach()).square().sum(1)

    def features(self, batch: Batch) -> torch.Tensor:
        """What the head reads, float32 of norm one: (b, len(reads) x h), and tangents behind them."""
        if batch.hidden is not None and batch.depth == self.layers + 1:
            return batch.hidden
        if self.anchor is None:
            return self._pooled(batch)
        if not self.anchor.is_set:
            return self.anchor.beside(self._pooled(batch), ())
        inner = [self.backbone.encoder.layer[i].intermediate.dense for i in self.anchor.layers]
        with torch.enable_grad(), probed(inner) as probes:  # also where nothing else is differentiated
            return self.anchor.beside(self._pooled(batch), probes)

    def _pooled(self, batch: Batch) -> torch.Tensor:
        """The pooled outputs of the layers that the head reads, (b, len(reads) x h) of norm one."""
        if not self.staged:
            return _joined(self._unstaged(batch))
        top = max(self.reads[-1], batch.depth)
        hidden, below = self._staged(batch, top)
        return _joined([*below, pool(hidden, batch.attention_mask)] if top in self.reads else below)

    def prefix(self, batch: Batch, cut: int) -> torch.Tensor:
        """What stage `cut` puts out, float32, with the adapters below it as they are now.

        Raises:
            ModelError: `cut` is no stage of this model.
        """
        return self.stage(batch, cut)[0]

    @torch.no_grad()
    def stage(self, batch: Batch, cut: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`prefix`, and beside hidden states `Batch.below`: what the head reads of the layers before `cut`.

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
            if cut == self.layers + 1:
                return self.features(batch), None
            hidden, below = self._staged(batch, cut)
            return hidden.float(), torch.stack(below, 1) if below else None
        finally:
            if self.checkpointing:
                self.backbone.train(training)

    def stage_below(self, names: Iterable[str]) -> int:
        """The deepest stage with none of these tensors (clean names) below it; 0 if there is none."""
        return min((self._stage_of(name) for name in names), default=self.layers + 1)

    def _stage_of(self, name: str) -> int:
        if name.startswith(("head.", "centre.")):
            return self.layers + 1
        if self.anchor is not None and name.startswith("anchor."):
            return self.anchor.layers[0]
        if self.staged and name.startswith("encoder.layer."):
            return int(name.split(".")[2])
        return 0

    def _unstaged(self, batch: Batch) -> list[torch.Tensor]:
        """The pooled outputs that the head reads, from one whole pass."""
        ids, mask = batch.input_ids, batch.attention_mask
        assert ids is not None
        own = slice(-ids.shape[1], None)  # virtual tokens come before a record's own, and are not pooled
        last = self.backbone.config.num_hidden_layers
        if self.reads == (last,):  # the others are not kept
            found = [self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state]
        else:
            out = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            found = [out.last_hidden_state if i == last else out.hidden_states[i] for i in self.reads]
        if not self.causal:
            return [pool(hidden[:, own], mask) for hidden in found]
        if found[0].shape[1] == ids.shape[1]:
            mask = _without_sink(ids, mask)
        return [pool(F.normalize(hidden[:, own].float(), dim=-1), mask) for hidden in found]

    def _staged(self, batch: Batch, stop: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states after `stop` layers, and the pooled outputs that the head reads of those before."""
        from transformers.masking_utils import create_bidirectional_mask

        if batch.hidden is None:
            hidden, start = self.backbone.embeddings(input_ids=batch.input_ids), 0
        else:
            hidden, start = batch.hidden.to(self.backbone.dtype), batch.depth
            if self.checkpointing and torch.is_grad_enabled():
                hidden = hidden.detach().requires_grad_()  # reentrant checkpoints ask for one such input
        if start > stop:
            raise ModelError(f"hidden states after layer {start} cannot give those after layer {stop}")
        below = [] if batch.below is None else list(batch.below.unbind(1))
        if len(below) != sum(i < start for i in self.reads):
            raise ModelError(
                f"the head reads layers {list(self.reads)}: cached states after layer {start} need those before "
                "it beside them; take both from TaskModel.stage"
            )
        mask = create_bidirectional_mask(
            config=self.backbone.config, inputs_embeds=hidden, attention_mask=batch.attention_mask
        )
        for i in range(start, stop):
            if i in self.reads:
                below.append(pool(hidden, batch.attention_mask))
            hidden = self.backbone.encoder.layer[i](hidden, mask)
        return hidden, below


def pool(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens the mask keeps, scaled to length one, float32 (b, h)."""
    hidden = hidden.float()
    if mask is None:
        return F.normalize(hidden.mean(1), dim=-1)
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * keep).sum(1) / keep.sum(1).clamp(min=1), dim=-1)


def _without_sink(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mask (b, t) without each record's first position, where there is another.

    A decoder's heads look at the first position when they look for nothing (Xiao et al. 2024, "Efficient
    streaming language models with attention sinks", section 3.1), and its hidden state, a hundred times
    the others in size and the same for every text, would drown them in the mean.
    """
    mask = (torch.ones_like(ids) if mask is None else mask).clone()
    rows = torch.arange(len(mask), device=mask.device)[mask.sum(1) > 1]
    mask[rows, mask[rows].argmax(1)] = 0
    return mask


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Side by side, k vectors of length one have length sqrt(k); scaled back to one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1) / math.sqrt(len(parts))
