"""The step-one check of somebody else's loop: does it train what its epsilon is computed for?

The loop's loss is not ours to call, so one record is put through the loop twice: alone, and in the first
batch. Alone, its per-sample gradient must be autograd's. In company it must be the same up to 1 / batch:
then the loss is a mean of the records' own losses. A sum is refused, and so is a loss in which records
touch each other (class weights in a mean, a mean over all tokens, contrastive pairs): there one record
moves the others' gradients, and clipping each of them bounds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from securefed.errors import PrivacyError, SelfCheckError
from securefed.training.dp import GRAD_SAMPLE
from securefed.training.self_check import compare, tolerance


class StepOneCheck:
    """Watches the first record alone, the first batch, and the first step.

    Args:
        module: the model as the loop calls it. parameters: name -> trained tensor.
        groups: the optimizer's parameter groups.
    """

    def __init__(
        self, module: nn.Module, parameters: Mapping[str, nn.Parameter], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        self._module, self._parameters, self._groups = module, parameters, groups
        self._alone: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._buffers = {n: b.detach().clone() for n, b in module.state_dict().items() if n not in parameters}
        self._rates: list[tuple[nn.Module, str, float]] = []
        self._call: tuple[Any, Any] | None = None
        self._answer: torch.Tensor | None = None
        self._dtypes: set[torch.dtype] = set()
        self._hook: Any = None
        self.gradients_done = self.step_done = False

    @property
    def wants_probe(self) -> bool:
        """Whether the next batch of two or more should be preceded by its first record alone."""
        return not self.gradients_done

    def arm(self) -> None:
        """Before the lone record: dropout rests, so that two passes of one record are comparable."""
        if self._hook is not None:
            return
        self._hook = self._module.register_forward_hook(self._see_call, with_kwargs=True)
        self._rates = list(_dropout_rates(self._module))
        for part, name, _ in self._rates:
            setattr(part, name, 0.0)

    def disarm(self) -> None:
        """Gives dropout back and forgets the record."""
        for part, name, rate in self._rates:
            setattr(part, name, rate)
        if self._hook is not None:
            self._hook.remove()
        self._rates, self._hook, self._call, self._answer, self._alone = [], None, None, None, {}

    # -------------------------------------------------------------------------------- gradients

    def see_alone(self) -> None:
        """After the lone record's backward pass.

        Raises:
            SelfCheckError: its per-sample gradient is not autograd's gradient.
        """
        alone = {n: _rows(p)[0].detach().clone() for n, p in self._parameters.items()}
        if _finite(alone):
            self._compare_with_autograd({n: g.double() for n, g in alone.items()})
            self._alone = alone
        self._answer = self._ask()

    def see_batch(self, rows: int) -> None:
        """After the backward pass of the batch whose first record was seen alone.

        Raises:
            SelfCheckError: the per-sample gradients do not add up to autograd's.
            PrivacyError: the loss sums over records, or couples them.
        """
        if rows < 2 or not self._alone:
            return  # nothing to tell from this record; the next batch is asked again
        sums = {n: _rows(p).double().sum(0) for n, p in self._parameters.items()}
        if _finite(sums):
            self._compare_with_autograd(sums)
        self.gradients_done = self._see_reduction(rows)
        self._alone = {}  # the next part of this batch begins with another record

    def _compare_with_autograd(self, found: Mapping[str, torch.Tensor]) -> None:
        for name, p in self._parameters.items():
            try:
                compare(name, found[name], _grad(p).double(), self._bound())
            except SelfCheckError as error:
                raise SelfCheckError(
                    f"{error}. If the loop changes gradients between backward and step (clip_grad_norm_, GradScaler), "
                    "take that out: records are clipped one by one here, and bf16 needs no scaler"
                ) from None

    def _see_reduction(self, rows: int) -> bool:
        """Whether this record could tell; zero gradients, alone and in company, tell nothing."""
        here = {n: _rows(p)[0].double() for n, p in self._parameters.items()}
        dot = sum(float((here[n] * g.double()).sum()) for n, g in self._alone.items())
        square = sum(float(g.double().square().sum()) for g in self._alone.values())
        if square == 0 and not any(bool(g.any()) for g in here.values()):
            return False
        if dot > square * rows**-0.5:  # a mean gives square / rows, a sum gives square
            raise PrivacyError(
                f"the loss sums over the {rows} records of a batch instead of averaging them (a record alone and in the batch "
                'weigh alike); use reduction="mean", so that a record\'s gradient is known whatever the batch'
            )
        for name, g in self._alone.items():
            try:
                compare(name, here[name] * rows, g.double(), self._bound())
            except SelfCheckError:
                raise PrivacyError(
                    f"{name}: a record's gradient depends on the other records of its batch (class weights, a mean over all tokens, "
                    "contrastive pairs, dropout at a fixed rate?), so clipping it bounds nothing; average each record's own loss over the batch"
                ) from None
        return True

    def _bound(self) -> float:
        dtypes = {getattr(p, GRAD_SAMPLE).dtype for p in self._parameters.values()}
        return tolerance(*dtypes, *self._dtypes)

    # ------------------------------------------------------------------------------------- step

    def before_release(self) -> None:
        """Remembers the trained tensors."""
        self._before = {n: p.detach().clone() for n, p in self._parameters.items()}

    def after_release(self) -> None:
        """After the first step.

        Raises:
            SelfCheckError: a tensor stayed although a gradient was released for it, or tensors moved and
                the model answers as before.
            PrivacyError: a buffer changed, which is private data outside the noised gradient.
        """
        moved = {n for n, p in self._parameters.items() if not torch.equal(p.detach(), self._before[n])}
        rates = [g["lr"] for g in self._groups]
        for name, p in self._parameters.items():
            if name not in moved and p.grad is not None and bool(p.grad.any()) and all(r > 0 for r in rates):
                raise SelfCheckError(
                    f"{name} did not change in a step that released a gradient for it; what the optimizer holds is not this tensor"
                )
        self._see_buffers()
        now = self._ask() if self._answer is not None else None
        live = {n for n in moved if not self._factor_of_nothing(n)}
        if live and now is not None and self._answer is not None and torch.equal(now, self._answer):
            raise SelfCheckError(
                f"{len(live)} tensors changed and the model answers as before; the adapter that is trained is not the one that is used"
            )
        self.step_done, self._before = True, {}

    def _see_buffers(self) -> None:
        state = self._module.state_dict()
        for name, before in self._buffers.items():
            if not torch.equal(state[name], before):
                raise PrivacyError(
                    f"{name} changed in a training step although the optimizer does not train it (running statistics?); it carries private "
                    "data past the noise: use a layer without such a buffer"
                )
        self._buffers = {}

    def _factor_of_nothing(self, name: str) -> bool:
        """A LoRA factor A whose B is zero still changes without changing an answer."""
        partner = dict(self._module.named_parameters()).get(name.replace("lora_A", "lora_B"))
        return "lora_A" in name and partner is not None and not bool(partner.detach().any())

    # ------------------------------------------------------------------------------- the model's answer

    def _see_call(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found = list(_floats(output))
        self._dtypes |= {t.dtype for t in found}
        if self._call is None and torch.is_grad_enabled():
            self._call = (args, kwargs)

    def _ask(self) -> torch.Tensor | None:
        """The model's answer on the lone record; None if the loop does not call the model as a whole."""
        if self._call is None:
            return None
        args, kwargs = self._call
        modes = {m: m.training for m in self._module.modules()}
        self._module.eval()
        try:
            with torch.no_grad():
                found = [t.detach().double().flatten() for t in _floats(self._module(*args, **kwargs))]
        finally:
            for part, training in modes.items():
                part.training = training
        return torch.cat(found) if found else None


def _rows(p: nn.Parameter) -> torch.Tensor:
    rows: torch.Tensor = getattr(p, GRAD_SAMPLE)
    return rows


def _grad(p: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _finite(tensors: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors.values())


def _dropout_rates(module: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Module, attribute and rate of everything that drops values at random."""
    for part in module.modules():
        own = isinstance(part, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(part).items()):
            named = name == "p" if own else "drop" in name
            if named and isinstance(value, float) and 0 < value <= 1:
                yield part, name, value


def _floats(output: Any) -> Iterator[torch.Tensor]:
    """Every floating tensor in a model's output, depth first."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _floats(value)
