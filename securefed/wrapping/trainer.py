"""Hugging Face's `Trainer`, with the arguments people already have, under example-level privacy.

`per_device_train_batch_size` x `gradient_accumulation_steps` is the expected size of a Poisson batch, the
first of them the most records in one backward pass; `max_grad_norm` clips each record instead of the
batch; epochs or `max_steps` are the plan, and the noise is calibrated for it. Unit, neighbours and
adversary are those of `make_private`. One process and one device.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from securefed.errors import CheckpointError, PrivacyError
from securefed.wrapping.loader import Piece
from securefed.wrapping.private import Private, open_private
from securefed.wrapping.terms import check_arguments, make_terms

if TYPE_CHECKING:
    from securefed.crypto.entropy import Entropy
    from securefed.privacy.events import Accountant
    from securefed.privacy.ledger import Ledger

FILE = "privacy.json"
"""Beside a Trainer's checkpoint: which run it is and how many steps it has taken."""


class LogicalLoader:
    """Whole Poisson batches, each as the list of its parts; an empty one is an empty list."""

    def __init__(self, private: Private) -> None:
        self._private, self.dataset = private, private.loader.dataset
        self.batch_size = private.loader.batch_size

    def __len__(self) -> int:
        return len(self._private.loader)

    def __iter__(self) -> Iterator[list[tuple[Piece, Any]]]:
        parts: list[tuple[Piece, Any]] = []
        for piece, batch in self._private.loader.parts():
            if piece.rows:
                parts.append((piece, batch))
            if piece.last:
                yield parts
                parts = []


class PrivateTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped for us
    """A `Trainer` whose `train()` is differentially private per record.

    Takes everything that `Trainer` takes, and:

    Args:
        epsilon: target at delta for the whole plan. Or noise_multiplier: the noise itself.
        delta: in (0, 1 / records). data_id, ledger, site_epsilon, accountant, entropy: see `make_private`.

    The loss must be a mean of the records' own losses: where labels are per token (language models), it is
    computed here as the mean over records of each record's mean over its tokens. Evaluation, logging and
    early stopping look at data outside the guarantee. `fp16` is refused (its scaler changes gradients);
    `bf16` is right.

    Raises:
        PrivacyError: several devices, `fp16`, a sampling strategy of its own, or what `make_private` refuses.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float,
        data_id: str | None = None,
        ledger: Ledger | None = None,
        site_epsilon: float = 0.0,
        accountant: Accountant = "pld",
        entropy: Entropy | None = None,
        **options: Any,
    ) -> None:
        own = copy.copy(args or TrainingArguments())
        _check_arguments(own)
        self._clip, self._physical = float(own.max_grad_norm), int(own.per_device_train_batch_size)
        self._batch = self._physical * own.gradient_accumulation_steps
        check_arguments(
            accountant,
            "hooks",
            self._physical,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            delta=delta,
            site_epsilon=site_epsilon,
        )
        own.max_grad_norm, own.gradient_accumulation_steps = 0.0, 1  # both are done per record here
        own.ignore_data_skip = True  # a Poisson batch is never drawn again
        super().__init__(model, own, *positional, **options)
        self.model_accepts_loss_kwargs = False  # a loss divided by the batch's tokens couples its records
        self._asked: dict[str, Any] = {
            "epsilon": epsilon,
            "noise_multiplier": noise_multiplier,
            "delta": delta,
            "data_id": data_id,
            "site_epsilon": site_epsilon,
            "accountant": accountant,
        }
        self._ledger, self._entropy = ledger, entropy
        self._given: Any = getattr(self, "optimizer", None)
        self.private: Private | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`; the account is settled and the model plain again at its end.

        Raises:
            BudgetExceeded, SelfCheckError: see `make_private`.
        """
        self.private, self.optimizer = None, self._given
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.private is not None:
                self.private.close()

    def get_train_dataloader(self) -> Any:
        """Poisson batches of the training set."""
        if self.private is None:
            self.private = self._open()
        return LogicalLoader(self.private)

    def _open(self) -> Private:
        if self.train_dataset is None:
            raise PrivacyError("PrivateTrainer needs a train_dataset")
        dataset, collate = self.train_dataset, self.data_collator
        if hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        base = DataLoader(
            dataset,
            batch_size=self._batch,
            shuffle=True,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        records = len(dataset)
        epoch = -(-records // self._batch)
        steps = (
            self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * epoch)
        )
        terms = make_terms(dataset, records, min(1.0, self._batch / records), steps, **self._asked)
        return open_private(
            self.model,
            self.create_optimizer(),
            base,
            terms,
            max_grad_norm=self._clip,
            ledger=self._ledger,
            physical_batch=self._physical,
            mode="hooks",
            entropy=self._entropy,
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the arguments; the private one around it, once that is there."""
        if self.private is None:
            return super().create_optimizer(model)
        if self.optimizer is not self.private.optimizer:
            self.optimizer = self.private.optimizer
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Backward passes over the parts of one Poisson batch; `optimizer.step()` then releases."""
        assert self.private is not None
        steps, losses, rows = self.private.machine, torch.zeros((), device=self.args.device), 0
        if not inputs:
            steps.hand_out(Piece(0))
        for k, (piece, batch) in enumerate(inputs):
            steps.hand_out(piece)
            loss = super().training_step(model, batch)
            if not piece.probe:
                losses, rows = losses + loss * piece.rows, rows + piece.rows
            if k < len(inputs) - 1:
                steps.after_backward()
        return losses / max(1, rows)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of the records' own losses; per-token labels are averaged within each record first."""
        labels = inputs.get("labels")
        own = self.compute_loss_func is not None or self.label_smoother is not None
        if own or labels is None or labels.dim() != 2 or labels.is_floating_point():
            return super().compute_loss(model, inputs, return_outputs)
        outputs = model(**inputs)
        logits = outputs["logits"]
        if logits.dim() != 3 or logits.shape[:2] != labels.shape:
            return super().compute_loss(model, inputs, return_outputs)
        loss = _mean_over_records(logits, labels, shifted="CausalLM" in _kind(self.model))
        return (loss, outputs) if return_outputs else loss

    # the Trainer would count these for its speed figures; a list of parts has no token ids of its own

    def floating_point_ops(self, inputs: Any) -> int:
        """Of all parts together."""
        return sum(int(super(PrivateTrainer, self).floating_point_ops(batch)) for _, batch in inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        for _, batch in inputs:
            super()._track_num_input_tokens(batch)

    # ------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        assert self.private is not None
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self.private.write_position(folder / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        assert self.private is not None
        try:
            facts = json.loads((Path(checkpoint) / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise CheckpointError(
                f"{checkpoint} has no {FILE}, so what was spent before it is unknown; it was not made by PrivateTrainer"
            ) from None
        self.private.read_position(facts)


def _check_arguments(args: TrainingArguments) -> None:
    if args.fp16:
        raise PrivacyError("fp16 scales gradients by a factor that depends on the data; use bf16=True")
    if args.max_grad_norm <= 0:
        raise PrivacyError(
            f"max_grad_norm={args.max_grad_norm} clips each record's gradient and must be above 0"
        )
    if args.world_size > 1 or args.n_gpu > 1:
        raise PrivacyError(
            "PrivateTrainer works in one process on one device; set CUDA_VISIBLE_DEVICES to one"
        )
    sampling = getattr(args, "train_sampling_strategy", "random")
    if sampling != "random":
        raise PrivacyError(
            f'train_sampling_strategy="{sampling}" orders the records, and the account counts batches that are drawn at '
            'random; leave it at "random"'
        )
    if getattr(args, "gradient_checkpointing", False):
        chosen = dict(args.gradient_checkpointing_kwargs or {})
        if chosen.get("use_reentrant") is not True:
            raise PrivacyError(
                'gradient checkpointing under DP needs gradient_checkpointing_kwargs={"use_reentrant": True}'
            )


def _kind(model: Any) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__


def _mean_over_records(logits: torch.Tensor, labels: torch.Tensor, shifted: bool) -> torch.Tensor:
    """Cross-entropy over each record's own tokens (label -100 left out), then over records."""
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = nn.functional.cross_entropy(
        logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none"
    )
    counted = (labels != -100).sum(1).clamp(min=1)
    return (each.sum(1) / counted).mean()
