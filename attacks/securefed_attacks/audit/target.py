"""The attacked model as the attacks see it: losses, confidences and gradients of candidates under any state.

The module is never written to: a state's tensors, LoRA products included, go in by `torch.func.functional_call`.
It is always in evaluation mode; an attack that runs a model with dropout measures the dropout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from securefed.data.batch import IGNORE, Batch, Encoded, collate
from securefed.errors import AuditError
from securefed_attacks.audit.copies import Copies
from securefed_attacks.audit.frozen_prefix import FrozenPrefix
from securefed_attacks.audit.states import Tensors, lora_modules
from securefed_attacks.lira import confidence

Floats = NDArray[np.float64]
Kind = Literal["classifier", "hf-classifier", "causal-lm", "plain"]
"""How the module is called: with a `Batch`, with token ids, the same predicting the next one, or with a tensor."""
BLOCK = 32
WINDOW_NUMBERS = 25_000_000
"""Numbers of all gradients that are kept at a time."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What one state says of each record: loss in nats (mean over tokens for language models), and confidence."""

    loss: Floats = field(repr=False)
    confidence: Floats = field(repr=False)


class Target:
    """A module, how it is called, and the candidates as it reads them.

    Attributes:
        module: in evaluation mode. own: its tensors by its own names. kind: how it is called. encoded: the candidates, images standing for any tensor.
        tokenizer: of text models. body: the model that reads token ids, for the span attack; None without tokens.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Kind,
        encoded: Encoded,
        *,
        scales: Mapping[str, float],
        tokenizer: Any = None,
        body: nn.Module | None = None,
        inputs: torch.Tensor | None = None,
    ) -> None:
        self.module, self.kind, self.encoded = module.eval(), kind, encoded
        self.tokenizer, self.body, self.inputs = tokenizer, body, inputs
        self.scales = dict(scales)
        module.requires_grad_(False)
        self.own: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        self._found: dict[str, str] = {}
        self._prefix: FrozenPrefix | None = None

    def __len__(self) -> int:
        return len(self.encoded) if self.inputs is None else len(self.inputs)

    # --------------------------------------------------------------------------------------------- weights

    def resolve(self, name: str) -> str | None:
        """The module's own name of a state's tensor: equal, or the one that ends or begins like it."""
        if name not in self._found:
            shorter = name.partition(".")[2]
            ends = [o for o in self.own if o.endswith(f".{name}")]
            self._found[name] = (
                name
                if name in self.own
                else ends[0]
                if len(ends) == 1
                else shorter
                if shorter in self.own
                else ""
            )
        return self._found[name] or None

    def check(self, state: Tensors) -> None:
        """Raises AuditError where the state is not one of this base model."""
        for module in lora_modules(state):
            self.weight_of(module)
            if module not in self.scales:
                raise AuditError(
                    f"{module} has LoRA factors of unknown scale; name recipe.lora_alpha, or give the PEFT folder"
                )
        for name, value in state.items():
            if name.endswith((".lora_A", ".lora_B")):
                continue
            own = self.resolve(name)
            if own is None or self.own[own].shape != value.shape:
                found = "no such tensor" if own is None else f"shape {tuple(self.own[own].shape)}"
                raise AuditError(
                    f"the state has {name} of shape {tuple(value.shape)}, the base model {found}; name the base it was trained from"
                )

    def weight_of(self, module: str) -> str:
        """The module's own name of a layer's weight.

        Raises:
            AuditError: the base model has no such layer.
        """
        own = self.resolve(f"{module}.weight")
        if own is None:
            raise AuditError(
                f"the adapter changes {module}, which the base model does not have; name the base it was trained from"
            )
        return own

    def effective(self, state: Tensors) -> Tensors:
        """The module's tensors under a state, with W + scale x B A where it holds factors; differentiable."""
        found = {
            self._found[n]: v
            for n, v in state.items()
            if not n.endswith((".lora_A", ".lora_B")) and self.resolve(n)
        }
        for module in lora_modules(state):
            name = self.weight_of(module)
            product = self.scales[module] * state[f"{module}.lora_B"] @ state[f"{module}.lora_A"]
            weight = found.get(name, self.own[name])
            transposed = type(self.parent(name)).__name__ == "Conv1D"  # GPT-2's weights are (in, out)
            found[name] = weight + (product.T if transposed else product)
        return found

    def parent(self, parameter: str) -> nn.Module:
        """The layer that a parameter, by the module's own name, belongs to."""
        return self.module.get_submodule(parameter.rpartition(".")[0])

    # --------------------------------------------------------------------------------------------- records

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> Batch:
        """These candidates as the module reads them."""
        if self.inputs is not None:
            labels = self.encoded.labels
            index = np.asarray(rows, np.int64)
            return Batch(
                images=self.inputs[index], labels=None if labels is None else torch.from_numpy(labels[index])
            )
        found = collate(self.encoded, rows)
        return found if self._prefix is None else replace(found, hidden=self._prefix.states(rows))

    def keep_prefix(self, before: Tensors, moved: Collection[str]) -> None:
        """From here on layers below everything that moved do not run again; nothing where there are none.

        Args:
            before: a state. moved: all that differs in any state that this target will be asked about.
        """
        self._prefix = None
        self._prefix = FrozenPrefix.of(self, before, moved)

    def forward(self, weights: Tensors, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, labels), aligned; for language models (b, t - 1, v) and (b, t - 1)."""
        if batch.hidden is not None and self._prefix is not None:
            with self._prefix.skipped(batch.hidden):
                return self.forward(weights, replace(batch, hidden=None))
        assert batch.labels is not None
        if self.kind == "classifier":
            return functional_call(self.module, weights, (batch,)).float(), batch.labels
        if self.kind == "plain":
            found = functional_call(self.module, weights, (batch.images,))
            return getattr(found, "logits", found).float(), batch.labels
        call = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        logits = functional_call(self.module, weights, (), call).logits.float()
        return (logits[:, :-1], batch.labels[:, 1:]) if self.kind == "causal-lm" else (logits, batch.labels)

    def losses(self, weights: Tensors, batch: Batch) -> torch.Tensor:
        """Each record's loss (b,), differentiable; language models: the mean over its predicted tokens."""
        logits, labels = self.forward(weights, batch)
        if self.kind != "causal-lm":
            return F.cross_entropy(logits, labels, reduction="none")
        each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
        return each.sum(1) / (labels != IGNORE).sum(1).clamp_min(1)

    @torch.no_grad()
    def score(self, state: Tensors, rows: NDArray[np.int64] | None = None) -> Scores:
        """Loss and confidence of the candidates under a state, in evaluation mode."""
        self.module.eval()
        weights = self.effective(state)
        asked = np.arange(len(self)) if rows is None else rows
        order = asked[np.argsort(self.lengths[asked], kind="stable")]
        loss, sure = np.zeros(len(self)), np.zeros(len(self))
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            batch = self.batch(block)
            if self.kind == "causal-lm":
                loss[block] = self.losses(weights, batch).double().numpy()
                sure[block] = -loss[block]
                continue
            logits, labels = self.forward(weights, batch)
            loss[block] = F.cross_entropy(logits.double(), labels, reduction="none").numpy()
            sure[block] = confidence(logits, labels)
        return Scores(loss[asked], sure[asked])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """What each candidate costs: its tokens, or 1."""
        return np.ones(len(self), np.int64) if self.inputs is not None else self.encoded.lengths

    def gradients(
        self, state: Tensors, names: Sequence[str], rows: NDArray[np.int64]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Each record's gradient for these tensors at a state, in order; many records a pass where that can be."""
        self.module.eval()
        copies = Copies.of(self, state, names) if len(rows) > 1 else None
        if copies is None:
            yield from (self.gradient(state, names, [int(row)]) for row in rows)
            return
        window = max(1, WINDOW_NUMBERS // max(1, sum(state[n].numel() for n in names)))
        for start in range(0, len(rows), window):
            here = rows[start : start + window]
            found = copies.gradients(copies.spread(len(here)), here[:, None])
            yield from ({n: found[n][k] for n in names} for k in range(len(here)))

    def gradient(
        self, state: Tensors, names: Sequence[str], rows: Sequence[int] | NDArray[np.int64]
    ) -> dict[str, torch.Tensor]:
        """The gradient of the records' mean loss for these tensors at a state."""
        leaves = {n: state[n].detach().clone().requires_grad_() for n in names}
        loss = self.losses(self.effective({**state, **leaves}), self.batch(rows)).mean()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: torch.zeros_like(state[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}

    def trainable(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of these tensors those that are parameters: running statistics move too, and have no gradient."""
        parameters = {n for n, _ in self.module.named_parameters(remove_duplicate=False)}
        return tuple(n for n in names if n.endswith((".lora_A", ".lora_B")) or self.resolve(n) in parameters)

    def check_eval(self, state: Tensors) -> None:
        """Raises AuditError where the model in evaluation mode answers twice differently."""
        few = np.arange(min(4, len(self)))
        if len(few) and not np.allclose(self.score(state, few).loss, self.score(state, few).loss, rtol=1e-4):
            raise AuditError(
                "the base model answers differently each time although it is in evaluation mode; "
                "an attack would measure that and not membership: take the randomness out of its forward pass"
            )
