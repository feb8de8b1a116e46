"""A language model's training loss over a public part of its vocabulary, at a fraction of the output layer's cost.

The output layer of a small decoder is as large as eight of its layers, and every predicted token pays all of
it. Jean et al. 2015 (arXiv 1412.2007, section 3) estimate the normalizer from a sample of the vocabulary. Here one
half of the sample is the first tokens of the vocabulary, which tokenizers number by how often they were merged, so
by how common they are in public text; the other half is drawn from the rest, anew in each round by the public seed,
and stands for all of it: one that stayed would be learned by heart, and the estimate would fall while the loss over
all tokens rose. A record's own next token is always counted exactly. Nothing depends on anybody's records, so a
record's loss, and its gradient, depend on that record alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from securefed.errors import ModelError


class SampledVocabulary(nn.Module):
    """Cross-entropy over `size` public tokens and the record's own next one.

    exp(loss) has the estimate of the normalizer in place of the normalizer; with `size` = V it is the exact loss.

    Args:
        vocabulary: V, rows of the output layer. size: tokens to normalize over, 2 to V. seed: public.

    Raises:
        ModelError: a size out of range.
    """

    log_weights: torch.Tensor

    def __init__(self, vocabulary: int, size: int, seed: int) -> None:
        super().__init__()
        if not 2 <= size <= vocabulary:
            raise ModelError(
                f"model.vocabulary_sample={size} must be between 2 and the model's {vocabulary} tokens, or 0 for all of them"
            )
        self.vocabulary, self.size, self.seed = vocabulary, size, seed
        self.common = vocabulary if size == vocabulary else size - size // 2
        weights = torch.zeros(size)
        if size > self.common:
            weights[self.common :] = math.log((vocabulary - self.common) / (size - self.common))
        self.register_buffer("log_weights", weights, persistent=False)
        self.draw(0)

    def draw(self, round: int) -> None:
        """Takes the tokens of this round, the same for everybody who draws it."""
        rest = np.random.default_rng([self.seed, self.vocabulary, round]).permutation(
            self.vocabulary - self.common
        )
        chosen = np.sort(rest[: self.size - self.common]) + self.common
        self.rows = torch.from_numpy(np.concatenate([np.arange(self.common), chosen]))
        self.place = torch.full((self.vocabulary,), -1)
        self.place[self.rows] = torch.arange(self.size)

    def losses(self, hidden: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each prediction, float32 (n,).

        Args:
            hidden: what the output layer reads (n, h). labels: int64 (n,). weight: of the output layer (V, h), frozen.
        """
        own = (hidden * weight[labels]).sum(-1).float()
        others = (hidden @ weight[self.rows.to(weight.device)].T).float() + self.log_weights
        place = self.place.to(labels.device)[labels]
        among = torch.zeros_like(others, dtype=torch.bool)
        among.scatter_(1, place.clamp(min=0).unsqueeze(1), (place >= 0).unsqueeze(1))
        others = others.masked_fill(among, -math.inf)  # it is counted once, by itself
        return torch.logaddexp(torch.logsumexp(others, 1), own) - own
