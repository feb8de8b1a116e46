"""What all rules share: one look at the input, dropping of bad rows, and the seam to the round loop.

A rule over single coordinates derives from `Rule`; one that only needs inner products, so that its result
is a weighted sum of the rows, from `GramRule`; a map that is put before a rule from `PreAggregator`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch

from securefed.rows import Rows, as_rows, bad_rows, combine
from securefed.types import Reveals, RoundContext
from securefed_defenses.given import (
    About,
    Given,
    Space,
    check_space,
    equal_weights,
    measure,
    public_weights,
    unmeasured,
)


@dataclass(frozen=True)
class Part(ABC):
    """A frozen component whose fields are its configuration.

    Attributes:
        on_nonfinite: what a row with a NaN or an infinity does: "refuse" the call, or "drop" the row and
            count it as one of the f.
    """

    name: ClassVar[str]
    """The name in the registry."""

    on_nonfinite: Literal["refuse", "drop"] = field(default="refuse", kw_only=True)

    @property
    def needs(self) -> Reveals:
        """Single updates."""
        return "updates"

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("refuse", "drop"):
            raise ValueError(f'{self.name}: on_nonfinite is "refuse" or "drop", found {self.on_nonfinite!r}')
        f = getattr(self, "f", 0)
        if isinstance(f, bool) or not isinstance(f, int) or f < 0:
            raise ValueError(f"{self.name}: f counts liars, so it is a whole number >= 0, found {f!r}")

    def least(self, f: int) -> int:
        """The smallest n that the rule accepts for f liars."""
        return 1

    def bound(self) -> str:
        """`least` as a formula, for the message of a refusal."""
        return "1"

    def check(self, n: int) -> None:
        """Raises ValueError where n is too small for f."""
        f = getattr(self, "f", 0)
        if n < self.least(f):
            said = f"got n={n}, f={f}; lower f or add clients" if hasattr(self, "f") else f"got n={n}"
            raise ValueError(f"{self.name} needs n >= {self.bound()}, {said}")

    def without(self, bad: Sequence[int], n: int) -> Self:
        """The same rule after these rows of n were dropped: each was one of its f.

        Raises:
            ValueError: more rows than f, or all of them.
        """
        if len(bad) >= n:
            raise ValueError(f"{self.name}: all n={n} rows hold a NaN or an infinity; nothing to aggregate")
        if not hasattr(self, "f"):
            return self
        if len(bad) > self.f:
            raise ValueError(
                f"{self.name}: {len(bad)} of n={n} rows hold a NaN or an infinity, more than f={self.f}; raise f"
            )
        return dataclasses.replace(self, f=self.f - len(bad))  # type: ignore[call-arg]  # it has an f, see above

    def draw(self, given: Given) -> torch.Generator:
        """The call's generator.

        Raises:
            ValueError: there is none, or it lives on another device than the rows.
        """
        if given.generator is None:
            raise ValueError(
                f"{self.name} draws at random: give it a seeded generator, {self.name}(...)(updates, generator=...), "
                "or RoundContext.generator in a step"
            )
        if given.generator.device.type != given.rows.device.type:
            raise ValueError(
                f"{self.name}: the generator is on {given.generator.device}, the rows on {given.rows.device}; "
                "make it with torch.Generator(device=...)"
            )
        return given.generator

    def settle(self, given: Given, bad: Sequence[int]) -> tuple[Self, Given]:
        """The rule and its input without the bad rows, where the rule may drop them.

        Raises:
            ValueError: there are bad rows and the rule refuses them, or there are more than it tolerates.
        """
        if not bad:
            return self, given
        n, found = given.rows.n, ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        if self.on_nonfinite == "refuse":
            raise ValueError(
                f"{self.name}: row {found} of n={n} holds a NaN, an infinity or a length beyond float64; "
                f'refuse that client, or set on_nonfinite = "drop" to count it as one of the f'
            )
        return self.without(bad, n), given.keep([i for i in range(n) if i not in set(bad)])


@dataclass(frozen=True)
class Rule(Part):
    """(n, d) -> (d,). A subclass says how in `combine`."""

    @abstractmethod
    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        """The aggregate (d,) of checked rows, and the rule's new state."""

    def __call__(self, updates: Rows, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """The aggregate, (d,), of n rows; all weigh the same.

        Args:
            updates: float32 or float64 (n, d), a list of vectors, an iterator over them or a `RowSource`;
                never written to.
            generator: for rules that draw at random.

        Raises:
            ValueError: n too small for f, ragged or non-finite rows, integers, no rows.
        """
        rows = as_rows(updates)
        return self.play(Given(rows, equal_weights(rows.n), generator), None)[0]

    def step(self, updates: Rows, context: RoundContext, state: Any) -> tuple[torch.Tensor, Any]:
        """The aggregate of one round and the rule's new state.

        Raises:
            ValueError: as in a call; or the context names a client twice, does not fit the rows, or lacks
                what the rule reads from it.
        """
        rows = as_rows(updates)
        return self.play(Given(rows, public_weights(rows.n, context), context.generator, context), state)

    def play(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        """Checks, drops what is to be dropped, and combines."""
        self.check(given.rows.n)
        rule, given = self.settle(given, bad_rows(given.rows))
        return rule.combine(given, state)


@dataclass(frozen=True)
class GramRule(Rule):
    """A rule whose result is `weights @ rows`, with weights that follow from inner products alone.

    So it reads the rows twice, whatever it computes in between, and an attack can search against it
    without touching a vector: `weights_from_gram` is all it is.
    """

    about: ClassVar[About] = "any"
    space: Space = field(default="factor", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space(self.name, self.space)
        if self.space == "product" and self.reads_more:
            raise ValueError(f'{self.name} compares with more than the rows; it has no space = "product"')

    @property
    def reads_more(self) -> bool:
        """Whether `measure` reads more than the rows: a memory, a centre, a trusted update."""
        return False

    @abstractmethod
    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The rows' weights (n,) from inner products, float64 (n, n) on the CPU.

        `weights` are the clients' public ones; a rule without a weighted form leaves them unread.
        """

    def weights_from_gram(self, gram: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The weights (n,), float64, with which the rule adds up rows that have these inner products.

        Args:
            gram: (n, n), about any point where `about == "any"`, about the origin where "origin".
            weights: the clients' public weights, (n,); equal by default.

        Raises:
            ValueError: not square, not finite, or n too small for f.
        """
        _check_gram(self.name, gram)
        self.check(len(gram))
        given = equal_weights(len(gram)) if weights is None else (weights / weights.sum()).double().cpu()
        return self.solve(gram.detach().double().cpu(), given).to(gram.device)

    def measure(self, given: Given, state: Any) -> torch.Tensor:
        """The inner products that `solve` reads."""
        return measure(given, self.about, self.space)

    def play(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        self.check(given.rows.n)
        found = self.measure(given, state)
        bad = unmeasured(given.rows, found)
        if not bad:
            return self.finish(given, found, state)
        rule, given = self.settle(given, bad)
        return rule.finish(given, rule.measure(given, state), state)

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        return self.finish(given, self.measure(given, state), state)

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        """The aggregate once the inner products are there."""
        return combine(self.solve(found.cpu(), given.weights), given.rows), state


@dataclass(frozen=True)
class PreAggregator(Part):
    """(n, d) -> (m, d), linear in the rows: `matrix @ rows`, with a matrix from inner products alone."""

    about: ClassVar[About | None] = "any"
    """None: the matrix does not depend on the rows at all."""

    space: Space = field(default="factor", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space(self.name, self.space)

    def rows_out(self, n: int) -> int:
        """m, the rows that n rows become."""
        return n

    @abstractmethod
    def mix(self, gram: torch.Tensor | None, given: Given) -> torch.Tensor:
        """The matrix (m, n), float64 on the CPU; `gram` is None where `about` is."""

    def matrix_from_gram(self, gram: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The matrix (m, n), float64, that is applied to rows with these inner products.

        Raises:
            ValueError: not square, not finite, n too small for f, or no generator for a random map.
        """
        _check_gram(self.name, gram)
        self.check(len(gram))
        n = len(gram)
        given = Given(as_rows(torch.zeros(n, 1, dtype=torch.float64)), equal_weights(n), generator)
        return self.mix(gram.detach().double().cpu(), given).to(gram.device)

    def __call__(self, updates: Rows, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """The mapped rows, (m, d), in the rows' dtype and on their device; the input is never written to.

        Raises:
            ValueError: as for a rule.
        """
        rows = as_rows(updates)
        self.check(rows.n)
        given = Given(rows, equal_weights(rows.n), generator)
        found = None if self.about is None else measure(given, self.about, self.space)
        bad = bad_rows(rows) if found is None else unmeasured(rows, found)
        part, given = self.settle(given, bad)
        if bad and self.about is not None:
            found = measure(given, self.about, self.space)
        return combine(part.mix(None if found is None else found.cpu(), given), given.rows)


def _check_gram(name: str, gram: torch.Tensor) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not bool(torch.isfinite(gram).all()):
        raise ValueError(f"{name}: inner products are a finite (n, n) matrix, found {tuple(gram.shape)}")
