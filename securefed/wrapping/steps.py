"""The private step, cut where a foreign loop cuts it: a batch goes out, a backward pass comes back, a release.

What may happen is a small machine: each batch of `hand_out` is answered by exactly one `after_backward`.
Anything else (a step on other data, two steps on a batch, a batch passed over) would make the accounting
untrue and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError, SelfCheckError
from securefed.training.dp import GRAD_SAMPLE, DPWork, KeyedDPOptimizer, Seen, empty_step
from securefed.wrapping.account import Account
from securefed.wrapping.loader import Piece
from securefed.wrapping.probe import StepOneCheck


class PrivateOptimizer(KeyedDPOptimizer):
    """Your optimizer, whose `step()` clips each record, adds noise and only then steps.

    Parameter groups, state and learning rates are those of the optimizer inside. A step completes when
    the last part of a batch has come; before that it only adds to the sum.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, dp: DPWork, noise: Stream, answered: Callable[[], None]
    ) -> None:
        super().__init__(optimizer, dp, noise, Seen())
        self._answered, self._dp, self._releasing = answered, dp, False
        self._guard = optimizer.register_step_pre_hook(self._refuse_bare_step)

    def step(self, closure: Any = None) -> None:
        """The private step for the batch that the loader gave last.

        Raises:
            PrivacyError: no batch of `private.loader` is waiting for a step, or a closure is given.
            SelfCheckError: gradients are not what the epsilon is computed for.
        """
        if closure is not None:
            raise PrivacyError(
                "an optimizer that evaluates the loss again (a closure) releases more than one gradient a step; use SGD or Adam"
            )
        self._answered()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients, not the sum over the parts of a batch."""
        for p in self.params:
            setattr(p, GRAD_SAMPLE, None)
        self.original_optimizer.zero_grad(set_to_none)

    def release(self) -> None:
        """Noise, the public denominator, and the inner optimizer's step.

        Raises:
            PrivacyError: somebody changed the noise or the clip that is accounted.
        """
        if (self.noise_multiplier, self.max_grad_norm) != (self._dp.noise_multiplier, self._dp.max_grad_norm):
            raise PrivacyError(
                f"noise_multiplier={self.noise_multiplier:g}, max_grad_norm={self.max_grad_norm:g} are not those that are accounted "
                f"({self._dp.noise_multiplier:g}, {self._dp.max_grad_norm:g}); make_private again for another mechanism"
            )
        self.add_noise()
        self.scale_grad()
        self._releasing = True
        try:
            self.original_optimizer.step()
        finally:
            self._releasing = False

    def _refuse_bare_step(self, *_: Any) -> None:
        if not self._releasing:
            raise PrivacyError(
                "this is the optimizer under the private one, and its step would apply gradients without clip and noise; "
                "call private.optimizer.step()"
            )

    def give_back(self) -> None:
        """The inner optimizer steps by itself again."""
        self._guard.remove()

    def clear(self) -> None:
        """Forgets gradients and the sum."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad, p.summed_grad = None, None
                setattr(p, GRAD_SAMPLE, None)


class PrivateSteps:
    """The machine.

    Args:
        module: the model, hooks on. parameters: name -> trained tensor.
        noise, masks: secret randomness for what is added, and for dropout.
        physical_batch: records at most in one backward pass; 0 = the whole batch.
        check: make the step-one check.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        dp: DPWork,
        account: Account,
        noise: Stream,
        masks: Stream,
        *,
        physical_batch: int = 0,
        check: bool = True,
    ) -> None:
        self.parameters, self.account, self.physical_batch = parameters, account, physical_batch
        self.optimizer = PrivateOptimizer(optimizer, dp, noise, self.after_backward)
        self.check = StepOneCheck(module, parameters, self.optimizer.param_groups) if check else None
        self._masks = masks
        self.released = False
        """Whether the last `after_backward` ended a step."""
        self.on_empty: list[Callable[[], None]] = []
        self._piece: Piece | None = None
        self._open = False

    @property
    def wants_probe(self) -> bool:
        """Whether the next batch should be preceded by its first record alone."""
        return self.check is not None and self.check.wants_probe

    def begin_epoch(self) -> None:
        """Drops a batch that was given and never used; nothing of it was released.

        Raises:
            BudgetExceeded: the plan's steps are taken.
        """
        if self.account.left <= 0:
            self.account.before_step()
        self.optimizer.clear()
        self._piece, self._open = None, False

    def hand_out(self, piece: Piece) -> None:
        """Before the loop sees a batch: its spend is on disk.

        Raises:
            BudgetExceeded: the next step would exceed the budget; nothing was charged.
        """
        if not self._open:
            self.account.before_step()
            self.optimizer.clear()
            self._open = True
        self.optimizer.zero_grad()
        # Dropout draws its masks from torch's generator, in the order of the records: under a seed that somebody
        # knows, one record more would move the masks of all others. Under a secret seed masks are independent of
        # who is there, and a mixture over them is as private as each.
        torch.manual_seed(int(self._masks.words(1)[0] >> np.uint64(1)))
        if piece.probe and self.check is not None:
            self.check.arm()
        self._piece = piece

    def require_used(self) -> None:
        """Raises PrivacyError if the batch given last has had no step."""
        if self._piece is not None:
            raise PrivacyError(
                "the last batch has had no optimizer.step(); every batch takes exactly one backward pass and one step, whatever it holds "
                "(to accumulate gradients give make_private physical_batch=)"
            )

    def after_backward(self) -> None:
        """The batch's gradients are there: check them, add them, and release if the batch is whole."""
        piece = self._piece
        if piece is None:
            raise PrivacyError(
                "optimizer.step() without a batch of private.loader before it; its data was not Poisson sampled. "
                "Iterate over private.loader, one step a batch"
            )
        self.released, self._piece = False, None
        if piece.rows == 0:
            self._answer_empty()
            return
        self._check_rows(piece.rows)
        if piece.probe:
            assert self.check is not None
            self.check.see_alone()
            self.optimizer.zero_grad()
            return
        if self.check is not None and not self.check.gradients_done:
            self.check.see_batch(piece.rows)
        self.optimizer.record_scale = float(piece.rows)
        self.optimizer.clip_and_accumulate()
        self.optimizer.zero_grad()
        if piece.last:
            self._release()

    def empty(self) -> None:
        """A step over no record that the loop does not see; schedules are told."""
        self.hand_out(Piece(0))
        self.after_backward()
        for step in self.on_empty:
            step()

    def _answer_empty(self) -> None:
        """Noise alone is released, and it counts: Poisson batches may be empty."""
        empty_step(self.parameters)
        self.optimizer.clip_and_accumulate()
        self._release()

    def _release(self) -> None:
        check = self.check if self.check is not None and not self.check.step_done else None
        if check is not None:
            check.before_release()
        self.account.after_step()
        self.optimizer.release()
        for p in self.parameters.values():
            p.summed_grad = None  # type: ignore[attr-defined]  # Opacus' attribute
            setattr(p, GRAD_SAMPLE, None)
        self.released, self._open = True, False
        if check is not None:
            check.after_release()
        if self.check is not None and self.check.step_done:
            self.check.disarm()

    def _check_rows(self, rows: int) -> None:
        for name, p in self.parameters.items():
            found = getattr(p, GRAD_SAMPLE, None)
            if not isinstance(found, torch.Tensor):
                what = (
                    "no per-sample gradients" if found is None else "gradients of more than one backward pass"
                )
                raise SelfCheckError(
                    f"{name} has {what}: it would be trained without a bound or not at all. One forward and one backward pass a batch, "
                    "in training mode, through every trained tensor"
                )
            if found.shape != (rows, *p.shape):
                raise SelfCheckError(
                    f"{name}: per-sample gradients of shape {tuple(found.shape)}, expected {(rows, *p.shape)}; "
                    "the loop trains on other records than the loader's, or the model mixes the batch dimension"
                )
