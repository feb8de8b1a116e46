"""Clipped sums without rows: a layer's gradients are sums of products, and so are their norms.

A record's gradient of a linear layer is sum_t b_t a_t^T over its positions, with a the layer's input and b the
gradient of its output. Its squared norm is the sum of (A A^T) * (B B^T) over all pairs of positions (ghost norm:
Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679, section 4), and a weighted sum of all records'
gradients is one matrix product. So no record's gradient of a large matrix is ever written down. A and B of one
backward pass serve both (book-keeping: Bu et al. 2023, arXiv 2210.00038), where Opacus' ghost mode runs a second pass.
Where a matrix is small beside its positions, as in LoRA, rows are cheaper and are written down (the mixture of Bu et
al. 2022, arXiv 2205.10683). Other layers keep Opacus' rules, or its functorch.

Everything that bounds a record is float64, and what rounding could take off a norm is put on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from securefed.errors import ModelError, SelfCheckError
from securefed.training.dp_work import Seen, factors_of
from securefed.training.record_gradients import Lookups, RecordGradients, Rows, by_position, linear

Rule = Callable[[Any, list[torch.Tensor], torch.Tensor], Mapping[Any, torch.Tensor]]
"""(layer, [its input], gradient of its output) -> each trained tensor's rows."""


@dataclass(frozen=True, eq=False)
class _Ran:
    """One layer's forward pass: its input and how often that was written to, and where in the graph its output's gradient appears."""

    given: torch.Tensor = field(repr=False)
    version: int
    edge: Any = field(repr=False)


class GhostGradients:
    """Gradients per record of every trained tensor in a module, from one backward pass and mostly unwritten.

    Args:
        module: with the trained tensors requiring gradients.
        rules: how other layers than linear ones and embeddings give their rows.
        prepare, otherwise: for a layer without a rule, once beforehand, and its rule.

    Raises:
        ModelError: an embedding that changes its table as it is read, gradient checkpointing, or a layer that
            `prepare` cannot follow (a RuntimeError).
    """

    def __init__(
        self,
        module: nn.Module,
        rules: Mapping[type[nn.Module], Rule],
        prepare: Callable[[nn.Module], None],
        otherwise: Rule,
    ) -> None:
        self._rules, self._prepare, self._otherwise = rules, prepare, otherwise
        self._layers: dict[str, nn.Module] = {}
        self._ran: dict[str, _Ran] = {}
        self._kept: dict[int, RecordGradients] = {}
        self._handles: list[Any] = []
        self._prepared: list[nn.Module] = []
        if any(getattr(part, "gradient_checkpointing", False) for part in module.modules()):
            raise ModelError(
                "ghost clipping needs each layer's output once, and gradient checkpointing computes it twice; "
                'set model.gradient_checkpointing = false, or privacy.grad_sample_mode = "hooks"'
            )
        try:
            self._follow("", module)
        except RuntimeError as error:  # how Opacus says that it cannot follow a layer
            self.remove()
            raise ModelError(f"per-sample gradients: {str(error).splitlines()[0]}") from None
        except ModelError:
            self.remove()
            raise

    def _follow(self, name: str, part: nn.Module) -> None:
        """Puts hooks on what holds trained tensors; what has no rule is followed as one, with all inside it."""
        own = any(p.requires_grad for p in part.parameters(recurse=False))
        if own and getattr(part, "max_norm", None) is not None:
            raise ModelError(f"{name} rescales its table as it is read (max_norm); set max_norm = None")
        without_rule = own and not _is_linear(part) and type(part) not in {nn.Embedding, *self._rules}
        if without_rule:
            self._prepare(part)
            self._prepared.append(part)
        if own:
            self._layers[name] = part
            self._handles.append(part.register_forward_hook(self._note(name)))
        if not without_rule:
            for child, inside in part.named_children():
                self._follow(f"{name}.{child}" if name else child, inside)

    def remove(self) -> None:
        """Takes the hooks off and forgets everything."""
        for handle in self._handles:
            handle.remove()
        for part in self._prepared:
            vars(part).pop("ft_compute_sample_grad", None)  # what Opacus' functorch leaves there
        self.clear()

    def clear(self) -> None:
        """Forgets the last pass."""
        self._ran, self._kept = {}, {}

    @property
    def ready(self) -> bool:
        """Whether a backward pass has been made since `clear`."""
        return bool(self._kept)

    def backward(self, losses: torch.Tensor) -> None:
        """The backward pass of these records' losses, (n,), each a function of its own record alone.

        Gradients of the weights themselves are not computed.

        Raises:
            SelfCheckError: a trained layer did not run, does not reach the losses, was given what changed
                afterwards, or saw another number of records.
        """
        ran, self._ran, self._kept = self._ran, {}, {}
        lost = sorted(self._layers.keys() - ran.keys())
        if lost:
            raise SelfCheckError(
                f"{lost[0] or 'the model'} did not run in this forward pass, so it would be trained without a bound or not at all"
            )
        slopes = torch.autograd.grad(losses.sum(), [r.edge for r in ran.values()], allow_unused=True)
        for (name, run), b in zip(ran.items(), slopes, strict=True):
            if b is None or run.given._version != run.version:
                what = (
                    "the losses do not depend on the output of"
                    if b is None
                    else "the input was changed after"
                )
                raise SelfCheckError(
                    f"{what} {name or 'the model'} (is it written to in place?), so it has no gradient per record; "
                    'freeze it, or set privacy.grad_sample_mode = "hooks"'
                )
            if len(run.given) != len(losses) or len(b) != len(losses):
                raise SelfCheckError(
                    f"{name or 'the model'} met {len(run.given)} rows where the batch has {len(losses)} records, so records cannot be "
                    'told apart; freeze it, or set privacy.grad_sample_mode = "hooks"'
                )
            self._keep(self._layers[name], run.given, b)

    def squares(self, parameters: list[nn.Parameter]) -> torch.Tensor:
        """Each record's squared gradient norm over these tensors together, float64 (n,).

        Raises:
            SelfCheckError: none of them has gradients per record.
        """
        found = [self._kept[id(p)].squares() for p in parameters if id(p) in self._kept]
        if not found:
            raise SelfCheckError("no tensor in training has gradients per record")
        return torch.stack(found).sum(0)

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether the last pass gave this tensor gradients per record."""
        return id(parameter) in self._kept

    def add(self, weights: torch.Tensor, parameter: nn.Parameter, total: torch.Tensor) -> None:
        """Adds the weighted sum of the records' gradients of one tensor to `total`, float64 in its shape.

        A record of weight 0 adds nothing, be its gradient finite or not.
        """
        if self.holds(parameter):
            self._kept[id(parameter)].add(weights, total)

    def clip_into(
        self,
        totals: Mapping[nn.Parameter, torch.Tensor],
        max_grad_norm: float,
        seen: Seen,
        scale: float = 1.0,
    ) -> None:
        """Adds each record's gradient over these tensors, scaled to norm <= max_grad_norm, and forgets the pass.

        Args:
            totals: tensor -> float64 in its shape, added to. scale: see `KeyedDPOptimizer.record_scale`.
        """
        factor, _ = factors_of(self.squares(list(totals)), max_grad_norm, seen, scale)
        for p, total in totals.items():
            self.add(factor, p, total)
        self.clear()

    def rows(self, parameter: nn.Parameter, records: int) -> torch.Tensor:
        """The gradients written down, float64 (records, *shape); for checks."""
        found = parameter.new_zeros((records, *parameter.shape), dtype=torch.float64)
        for i in range(records):
            alone = torch.zeros(records, dtype=torch.float64, device=parameter.device)
            alone[i] = 1.0
            self.add(alone, parameter, found[i])
        return found

    def _note(self, name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...], out: torch.Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if not (given and isinstance(given[0], torch.Tensor) and isinstance(out, torch.Tensor)):
                raise SelfCheckError(
                    f"{name} takes or gives more than one tensor by position, so per-sample gradients cannot be computed; "
                    'freeze it, or set privacy.grad_sample_mode = "hooks"'
                )
            if not out.requires_grad:
                return
            if name in self._ran:
                raise SelfCheckError(
                    f"{name} ran twice in one forward pass, so ghost clipping would miss a part of its gradient; "
                    'set privacy.grad_sample_mode = "hooks"'
                )
            edge = torch.autograd.graph.get_gradient_edge(out)
            self._ran[name] = _Ran(given[0].detach(), given[0]._version, edge)

        return hook

    def _keep(self, layer: nn.Module, given: torch.Tensor, b: torch.Tensor) -> None:
        if _is_linear(layer):
            weight: torch.Tensor = layer.weight  # type: ignore[assignment]  # both kinds have one
            bias: torch.Tensor | None = layer.bias  # type: ignore[assignment]  # as above
            a, b = by_position(given), by_position(b)
            if weight.requires_grad:
                self._set(weight, linear(a, b) if type(layer) is nn.Linear else linear(b, a))
            if bias is not None and bias.requires_grad:
                self._set(bias, Rows(b.double().sum(1)))
        elif type(layer) is nn.Embedding:
            words = given.reshape(len(given), -1)
            self._set(layer.weight, Lookups.of(b.reshape(*words.shape, -1), words, layer.padding_idx))
        else:
            rule = self._rules.get(type(layer), self._otherwise)
            for p, rows in rule(layer, [given], b).items():
                if p.requires_grad:
                    self._set(p, Rows(rows))

    def _set(self, parameter: torch.Tensor, kept: RecordGradients) -> None:
        if id(parameter) in self._kept:
            raise SelfCheckError(
                'a trained tensor serves two layers, so ghost clipping would miss a part of its gradient; set privacy.grad_sample_mode = "hooks"'
            )
        self._kept[id(parameter)] = kept


def _is_linear(layer: nn.Module) -> bool:
    """A linear layer, also as GPT-2 keeps it, with its weight (in, out)."""
    kind = type(layer)
    return kind is nn.Linear or (kind.__name__, kind.__module__) == ("Conv1D", "transformers.pytorch_utils")
