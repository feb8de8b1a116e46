"""What training, evaluation and the federation see of any model: tensors by name, losses by record."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import IGNORE, Batch, Encoded
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.layout import Layout
from securefed.models.encoder import TextClassifier
from securefed.models.language import CausalLM, Seq2SeqLM, token_losses
from securefed.types import Vector


class TaskModel:
    """One resident model; adapters of many clients pass through it by `write` and `read`.

    `losses` gives one value per record, none depending on another record, and every trainable tensor sees
    the batch in dimension 0, so Opacus' hooks (unwrapped: `GradSampleHooks(model.module,
    loss_reduction="sum")`) give each record's gradient. A batch must not be empty.

    Attributes:
        module: what trains, in training mode (Opacus asks for it; without dropout it changes nothing).
        device: where it is. task: "classification", "causal-lm" or "seq2seq". config: as given.
        parameters: clean name -> every trainable tensor. layout: the same names and their shapes.
        part_of: clean name -> "A", "B" (LoRA's factors), "adapter" (of another kind), "head", "centre" (of its
            features), "anchor" (where tangents are taken), "base", or "merged" (base weights that only the server changes).
        base_digest: identity of what does not train; equal digests and vectors mean equal functions.
        depth: number of stages whose output can be cached: encoder layers, then the pooled features; a
            decoder's layers in causal language modelling; 0 for none. Dropout would make a cached output one draw for all, so with dropout it is 0.
        name: what the world calls the base. classes: k, 0 for language models.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        config: ModelConfig,
        device: torch.device,
        parameters: Mapping[str, nn.Parameter],
        part_of: Mapping[str, str],
        base_digest: str,
        encode: Callable[[Examples, int], Encoded],
        name: str,
        classes: int = 0,
        image_shape: tuple[int, int, int] | None = None,
        max_length: int = 64,
        peft: Any = None,
        frozen: Mapping[str, nn.Parameter] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.module = module
        self.config = config
        self.task: str = config.task
        self.device = device
        self.parameters: dict[str, nn.Parameter] = dict(parameters)
        self.part_of: dict[str, str] = dict(part_of)
        self.layout = Layout.of(self.parameters)
        self.base_digest = base_digest
        self.name = name
        self.classes = classes
        self.image_shape = image_shape
        self.max_length = max_length
        self.peft = peft
        self.frozen_adapter: dict[str, nn.Parameter] = dict(frozen or {})
        self.tokenizer = tokenizer
        self._encode = encode
        self.depth: int = _stages(module) if config.dropout == 0 else 0

    def __repr__(self) -> str:
        return (
            f"TaskModel({self.name}, {self.task}, {self.config.adapter}, d={self.layout.size}, {self.device})"
        )

    @property
    def trained(self) -> int:
        """How many numbers train; an anchor's are in `layout` and only the server sets them."""
        return self.layout.select(lambda name: self.part_of[name] != "anchor").size

    # ------------------------------------------------------------------------------------- tensors

    def read(self, layout: Layout) -> Vector:
        """The values of these tensors now, one float32 vector (d,), a copy."""
        return layout.flatten(self.parameters)

    def write(self, vector: Vector, layout: Layout) -> None:
        """Sets these tensors from the vector (d,).

        Raises:
            ModelError: a tensor the model does not train, or a vector of another size or dtype.
        """
        self._known(layout.names)
        if layout.names and any(
            tuple(self.parameters[n].shape) != s for n, s in zip(layout.names, layout.shapes, strict=True)
        ):
            raise ModelError(
                "layout and model disagree about a tensor's shape; both sides must build the same model"
            )
        layout.write(vector, self.parameters)

    def set_trainable(self, names: Collection[str]) -> None:
        """Lets gradients flow to exactly these tensors.

        Raises:
            ModelError: a tensor that is not in `layout`.
        """
        self._known(names)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None

    def _known(self, names: Collection[str]) -> None:
        unknown = sorted(set(names) - self.parameters.keys())
        if unknown:
            raise ModelError(
                f"{unknown[0]!r} is not a trainable tensor of this model; see TaskModel.layout.names"
            )

    # ------------------------------------------------------------------------------------- records

    def encode(self, examples: Examples, max_length: int) -> Encoded:
        """The records as this model reads them, at most `max_length` tokens each.

        Raises:
            ModelError: records of another kind, or classification labels missing or outside [0, k).
        """
        if self.task == "classification":
            check_labels(examples, self.classes)
        return self._encode(examples, max_length)

    # ------------------------------------------------------------------------------------- forward

    def begin_round(self, round: int) -> None:
        """Draws anew what is public and of one round only: the tokens that a sampled vocabulary normalizes over."""
        if isinstance(self.module, CausalLM) and self.module.sampled is not None:
            self.module.sampled.draw(round)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k); (b, t, V) for language models. From `batch.hidden` if that is given."""
        logits: torch.Tensor = self.module(batch.to(self.device))
        return logits

    def losses(self, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy of each record, float32 (b,).

        Language models: the mean over the record's own predicted tokens (0 for a record with none). While
        nothing but a head's centre trains, it is half the squared distance of the record's features to it. In
        training mode over the sampled vocabulary, if the model has one (without label smoothing).
        """
        if isinstance(self.module, TextClassifier) and self.measures_centre:
            return self.module.distances(self.module.features(batch.to(self.device)))
        if isinstance(self.module, CausalLM) and self.module.sampled is not None and self.module.training:
            _labels(batch)
            return self.module.losses(batch.to(self.device))
        logits, labels = self._aligned(batch)
        if self.task == "classification":
            return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
        return token_losses(logits, labels, label_smoothing)

    @property
    def measures_centre(self) -> bool:
        """Whether exactly the head's centre trains (a round that measures the features' mean)."""
        training = {self.part_of[n] for n, p in self.parameters.items() if p.requires_grad}
        return training == {"centre"}

    def counts(self, batch: Batch) -> torch.Tensor:
        """Number of predictions in each record, int64 (b,): predicted tokens, or 1 in classification.

        Perplexity over records is exp(sum(losses x counts) / sum(counts)).
        """
        labels = _labels(batch)
        if self.task == "classification":
            return torch.ones_like(labels)
        kept = labels[:, 1:] if self.task == "causal-lm" else labels
        return (kept != IGNORE).sum(1)

    def _aligned(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labels = _labels(batch).to(self.device)
        logits = self.logits(batch)
        if self.task == "classification":
            return logits, labels
        assert isinstance(self.module, CausalLM | Seq2SeqLM)
        return self.module.align(logits, labels)

    # -------------------------------------------------------------------------------- frozen prefix

    def cut(self, trainable: Collection[str]) -> int:
        """The deepest stage with none of these tensors below it; 0 if nothing can be cached.

        It looks at names only. That the adapters below the cut keep their values while the cached output
        is in use is the caller's duty.

        Raises:
            ModelError: a tensor that is not in `layout`.
        """
        self._known(trainable)
        if not self.depth or not isinstance(self.module, TextClassifier | CausalLM):
            return 0
        return self.module.stage_below(trainable)

    def prefix(self, batch: Batch, cut: int) -> torch.Tensor:
        """The output of stage `cut`, float32 without gradient: hidden (b, t, h), or at `depth` what the head reads.

        `Batch(hidden=..., depth=cut, attention_mask=..., labels=...)` continues from it, with `below` where
        the head reads layers before the cut (`stage`).

        Raises:
            ModelError: `cut` is no stage of this model.
        """
        return self.stage(batch, cut)[0]

    def stage(self, batch: Batch, cut: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`prefix` and, float32 (b, j, h), what the head reads of j layers before the cut; None where j = 0.

        Raises:
            ModelError: `cut` is no stage of this model.
        """
        if not isinstance(self.module, TextClassifier | CausalLM) or not 1 <= cut <= self.depth:
            raise ModelError(
                f"cut={cut} is no cacheable stage of this model; stages are 1 to depth={self.depth}"
            )
        return self.module.stage(batch.to(self.device), cut)

    # --------------------------------------------------------------------------------------- result

    def save_adapter(self, folder: Path) -> None:
        """Writes what was trained: a PEFT folder for LoRA, safetensors otherwise, beside it the head.

        `PeftModel.from_pretrained` opens the former; `securefed.models.load_result` opens both.
        """
        from securefed.models.result import save_result

        save_result(self, Path(folder))


def _stages(module: nn.Module) -> int:
    """How many outputs of frozen parts a model of this kind could hand out."""
    if isinstance(module, CausalLM):
        return module.layers
    return module.layers + 1 if isinstance(module, TextClassifier) else 0


def _labels(batch: Batch) -> torch.Tensor:
    if batch.labels is None:
        raise ModelError("this batch has no labels; losses need them")
    return batch.labels


def check_labels(examples: Examples, classes: int) -> None:
    """Raises ModelError unless every record has a label in [0, classes)."""
    if examples.labels is None:
        raise ModelError("classification needs a label for each record; name its column in data.label_column")
    if len(examples.labels) and (examples.labels.min() < 0 or examples.labels.max() >= classes):
        found = sorted({int(examples.labels.min()), int(examples.labels.max())})
        raise ModelError(f"labels must be 0 to {classes - 1} for {classes} classes, found {found}")
