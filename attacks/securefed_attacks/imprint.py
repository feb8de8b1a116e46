"""Records printed into a layer that a malicious server put into the model: Robbing the Fed.

Every neuron of the layer measures the same quantity of an input and opens at a threshold of its own. The gradients of
two neighbours differ by the records whose measure lies between their thresholds; where that is one record, the
difference over that of the biases is the record itself (Fowl, Geiping, Czaja, Goldblum and Goldstein, "Robbing the Fed",
ICLR 2022, section 3). A secure sum adds gradients, and so only puts more records into the same bins.

Adversary: a malicious server that changes the model and sees one client's gradient, or a sum of many. Clients can look
for such layers (`securefed.models.inspection`); noise on the update ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Imprint:
    """The layer: `bins` neurons that measure the mean brightness of an input (d,).

    Attributes:
        weight: (bins, d), all rows alike. bias: (bins,), minus the quantiles of the measure, falling.
    """

    weight: torch.Tensor = field(repr=False)
    bias: torch.Tensor = field(repr=False)

    @classmethod
    def fitted(cls, auxiliary: torch.Tensor, bins: int) -> Imprint:
        """Thresholds at the quantiles of data like the victims', (a, d).

        Raises:
            ValueError: fewer than two bins, or less data than bins.
        """
        if bins < 2 or len(auxiliary) < bins:
            raise ValueError(
                f"imprint needs bins >= 2 and as many records to fit them on, got {bins} and {len(auxiliary)}"
            )
        d = auxiliary.shape[1]
        row = torch.full((d,), d**-0.5, dtype=auxiliary.dtype)
        measured = (auxiliary @ row).sort().values
        at = torch.arange(1, bins + 1, dtype=torch.float64) / (bins + 1) * (len(measured) - 1)
        below = at.floor().long()
        share = (at - below).to(auxiliary.dtype)
        quantiles = measured[below] * (1 - share) + measured[(below + 1).clamp_max(len(measured) - 1)] * share
        return cls(row.repeat(bins, 1), -quantiles)

    def recover(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The contents of each bin that holds anything, (k, d): a record, or an average of the records in it.

        Args:
            weight: gradient of the layer's weight, (bins, d), or a sum of gradients. bias: the same of its bias.
        """
        if weight.shape != self.weight.shape or bias.shape != self.bias.shape:
            raise ValueError(
                f"this layer's gradients are {tuple(self.weight.shape)} and {tuple(self.bias.shape)}, "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        wide, thin = weight.double(), bias.double()
        between = torch.cat([wide[:-1] - wide[1:], wide[-1:]])
        amount = torch.cat([thin[:-1] - thin[1:], thin[-1:]])
        filled = amount.abs() > 1e-6 * thin.abs().max()
        return (between[filled] / amount[filled, None]).to(weight.dtype)


class Imprinted(nn.Module):
    """A classifier as the malicious server sends it: the layer first, then an average over it for each class.

    All neurons weigh alike in a class, so a record's gradient at every open neuron is the same. This is the least
    model that works; in front of a real one the layer's output is mapped back to the input's shape.
    """

    def __init__(self, imprint: Imprint, classes: int) -> None:
        super().__init__()
        bins, d = imprint.weight.shape
        self.layer = nn.Linear(d, bins)
        self.head = nn.Linear(bins, classes, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(imprint.weight)
            self.layer.bias.copy_(imprint.bias)
            per_class = torch.linspace(0.5, 1.5, classes) / bins
            self.head.weight.copy_(per_class[:, None].expand(classes, bins))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, classes) for inputs (n, ...)."""
        logits: torch.Tensor = self.head(F.relu(self.layer(x.flatten(1))))
        return logits
