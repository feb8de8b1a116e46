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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import nn

from securefed.errors import ModelError, SelfCheckError

Rules = Mapping[type[nn.Module], Any]


@dataclass(frozen=True, eq=False)
class Products:
    """A linear layer's gradients (out, in) as positions' products: b (n, t, out) and a (n, t, in)."""

    b: torch.Tensor = field(repr=False)
    a: torch.Tensor = field(repr=False)

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,), below the true ones by no more than a hair of `MARGIN`.

        A sum over pairs cancels, so its error is put on top: each product of k terms errs by less than k 2^-53 of
        the product of the norms, and by Cauchy and Schwarz all pairs together by that of tr(A A^T) tr(B B^T). What is put
        on is 2^13 times as much: a record whose positions cancel must not be so large in the sum of many that it
        rounds others' parts away.
        """
        positions = self.a.shape[1]
        if positions == 1:
            return _square(self.a) * _square(self.b)
        terms = self.a.shape[2] + self.b.shape[2] + positions**2
        return torch.cat([_pairs(a, b, terms * 2.0**-40) for a, b in self._parts()])

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (out, in)."""
        begun = 0
        for a, b in self._parts():
            weighted = b.double() * weights[begun : begun + len(b), None, None]
            total.addmm_(weighted.flatten(0, 1).T, a.double().flatten(0, 1))
            begun += len(b)

    def _parts(self) -> zip[tuple[torch.Tensor, torch.Tensor]]:
        """A few records' (a, b) at a time: what is doubled of them stays in a processor's cache."""
        records = max(1, _POSITIONS // self.a.shape[1])
        return zip(self.a.split(records), self.b.split(records), strict=True)


_POSITIONS = 128


def _pairs(a: torch.Tensor, b: torch.Tensor, error: float) -> torch.Tensor:
    """Sum over pairs of positions of (A A^T) * (B B^T), and `error` times both traces on top; float64 (n,)."""
    a, b = a.double(), b.double()
    between_a, between_b = torch.bmm(a, a.transpose(1, 2)), torch.bmm(b, b.transpose(1, 2))
    traces = between_a.diagonal(dim1=1, dim2=2).sum(1) * between_b.diagonal(dim1=1, dim2=2).sum(1)
    return between_a.mul_(between_b).sum((1, 2)).add_(traces, alpha=error)


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients as they are, (n, *shape)."""

    rows: torch.Tensor = field(repr=False)

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,)."""
        return _square(self.rows)

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (*shape)."""
        total.add_(torch.tensordot(weights, self.rows.double(), 1))


@dataclass(frozen=True, eq=False)
class Lookups:
    """An embedding's gradients (words, h): of each record its rows at the words that it looked up.

    What falls on one word of one record is added up first, once for norms and sums: raw positions that cancel
    would go into the sum of all records larger than the norm says.

    Attributes:
        sums: float64 (k, h). record, word: int64 (k,), whose and where. records: n.
    """

    sums: torch.Tensor = field(repr=False)
    record: torch.Tensor = field(repr=False)
    word: torch.Tensor = field(repr=False)
    records: int

    @staticmethod
    def of(b: torch.Tensor, words: torch.Tensor, padding: int | None) -> Lookups:
        """From each position's gradient (n, t, h) and word (n, t); the padding word has none."""
        if padding is not None:
            b = b * (words != padding)[..., None]
        record = torch.arange(len(b), device=b.device)[:, None].expand_as(words)
        keys, place = torch.unique(
            torch.stack([record.flatten(), words.flatten()]), dim=1, return_inverse=True
        )
        sums = b.new_zeros((keys.shape[1], b.shape[2]), dtype=torch.float64)
        sums.index_add_(0, place, b.double().flatten(0, 1))
        return Lookups(sums, keys[0], keys[1], len(b))

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,)."""
        return self.sums.new_zeros(self.records).index_add_(0, self.record, self.sums.square().sum(1))

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (words, h)."""
        used = weights[self.record] != 0  # a record of weight 0 may hold what is not finite
        total.index_add_(0, self.word[used], self.sums[used] * weights[self.record[used], None])


Kept = Products | Rows | Lookups


@dataclass(frozen=True, eq=False)
class _Ran:
    """One layer's forward pass: its input and how often that was written to, and where in the graph its output's gradient appears."""

    given: torch.Tensor = field(repr=False)
    version: int
    edge: Any = field(repr=False)


class GhostGradients:
    """Gradients per record of every trained tensor in a module, from one backward pass and mostly unwritten.

    Args:
        module: with the trained tensors requiring gradients. rules: how other layers than linear ones and embeddings
            give their rows; for what has none functorch runs the layer once more.

    Raises:
        ModelError: an embedding that changes its table as it is read, gradient checkpointing, or a layer that
            functorch cannot follow.
    """

    def __init__(self, module: nn.Module, rules: Rules = GradSampleHooks.GRAD_SAMPLERS) -> None:
        self._rules = rules
        self._layers: dict[str, nn.Module] = {}
        self._ran: dict[str, _Ran] = {}
        self._kept: dict[int, Kept] = {}
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
        """Puts hooks on what holds trained tensors; what functorch runs is followed as one, with all inside it."""
        own = any(p.requires_grad for p in part.parameters(recurse=False))
        if own and getattr(part, "max_norm", None) is not None:
            raise ModelError(f"{name} rescales its table as it is read (max_norm); set max_norm = None")
        by_functorch = own and not _is_linear(part) and type(part) not in {nn.Embedding, *self._rules}
        if by_functorch:
            prepare_layer(part)
            self._prepared.append(part)
        if own:
            self._layers[name] = part
            self._handles.append(part.register_forward_hook(self._note(name)))
        if not by_functorch:
            for child, inside in part.named_children():
                self._follow(f"{name}.{child}" if name else child, inside)

    def remove(self) -> None:
        """Takes the hooks off and forgets everything."""
        for handle in self._handles:
            handle.remove()
        for part in self._prepared:
            vars(part).pop("ft_compute_sample_grad", None)
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
        kept = self._kept.get(id(parameter))
        if kept is None:
            return
        used = torch.nonzero(weights).flatten()
        if len(used) < len(weights) and not isinstance(kept, Lookups):
            kept, weights = _take(kept, used), weights[used]
        kept.add(weights, total)

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
            a, b = _positions(given), _positions(b)
            if weight.requires_grad:
                self._set(weight, _linear(a, b) if type(layer) is nn.Linear else _linear(b, a))
            if bias is not None and bias.requires_grad:
                self._set(bias, Rows(b.double().sum(1)))
        elif type(layer) is nn.Embedding:
            words = given.reshape(len(given), -1)
            self._set(layer.weight, Lookups.of(b.reshape(*words.shape, -1), words, layer.padding_idx))
        else:
            rule = self._rules.get(type(layer), ft_compute_per_sample_gradient)
            for p, rows in rule(layer, [given], b).items():
                if p.requires_grad:
                    self._set(p, Rows(rows))

    def _set(self, parameter: torch.Tensor, kept: Kept) -> None:
        if id(parameter) in self._kept:
            raise SelfCheckError(
                'a trained tensor serves two layers, so ghost clipping would miss a part of its gradient; set privacy.grad_sample_mode = "hooks"'
            )
        self._kept[id(parameter)] = kept


def _linear(a: torch.Tensor, b: torch.Tensor) -> Kept:
    """Rows where they take fewer numbers than the products of positions cost, else the products."""
    positions, inner, outer = a.shape[1], a.shape[2], b.shape[2]
    if positions > 1 and inner * outer <= 2 * positions * (inner + outer):
        if outer > inner:  # batched products are laid out for a long right side
            return Rows(torch.bmm(a.to(b.dtype).transpose(1, 2), b).transpose(1, 2))
        return Rows(torch.bmm(b.transpose(1, 2), a.to(b.dtype)))
    return Products(b, a)


def _is_linear(layer: nn.Module) -> bool:
    """A linear layer, also as GPT-2 keeps it, with its weight (in, out)."""
    kind = type(layer)
    return kind is nn.Linear or (kind.__name__, kind.__module__) == ("Conv1D", "transformers.pytorch_utils")


def _positions(x: torch.Tensor) -> torch.Tensor:
    """(n, t, features): all dimensions between the first and the last are positions."""
    return x[:, None] if x.dim() == 2 else x.flatten(1, -2)


_ROWS = 16


def _square(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms, float64 (n,)."""
    if not len(rows):
        return rows.new_zeros(0, dtype=torch.float64)
    return torch.cat([r.flatten(1).double().square().sum(1) for r in rows.split(_ROWS)])


def _take(kept: Products | Rows, used: torch.Tensor) -> Products | Rows:
    if isinstance(kept, Products):
        return Products(kept.b[used], kept.a[used])
    return Rows(kept.rows[used])
