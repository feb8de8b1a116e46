"""What all Byzantine attacks share: what the adversary knows, one look at the input, and lines to search.

An attack maps the honest updates (h, d) of one round to the f rows that the liars send instead of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

Knowledge = Literal["omniscient", "own data", "none"]
"""What an attack must see: every honest update of the round, the liars' own honest updates, or nothing."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One call's input, checked.

    Attributes:
        honest: (h, d), the honest rows; never written to.
        f: rows to craft.
        own: (f, d), what the liars would have sent had they been honest; None where nobody trained it.
        previous: (d,), the last aggregate, known to all from two successive global models; None in round 0.
        generator: seeded randomness of the experiment.
    """

    honest: torch.Tensor
    f: int
    own: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def n(self) -> int:
        """Rows that the server will see, h + f."""
        return len(self.honest) + self.f

    def draw(self, *shape: int, normal: bool = False) -> torch.Tensor:
        """Random numbers of the rows' dtype and device: uniform in [0, 1), or standard normal.

        Without a generator they are those of seed 0, so a call never touches torch's global state; pass a
        generator where two calls must differ.
        """
        device = self.honest.device
        generator = self.generator or torch.Generator(device).manual_seed(0)
        make = torch.randn if normal else torch.rand
        return make(*shape, generator=generator, dtype=self.honest.dtype, device=device)


@dataclass(frozen=True)
class Byzantine(ABC):
    """A frozen component whose fields are its strength. A subclass says in `craft` what is sent.

    Attributes:
        name: in the registry. knowledge: what it must see. colluding: whether the liars act together, so
            that one of them alone could not do the same.
        remembers: whether it uses the last aggregate. finite: False where it sends rows that no honest client could encode.
    """

    name: ClassVar[str]
    knowledge: ClassVar[Knowledge]
    colluding: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    finite: ClassVar[bool] = True

    @abstractmethod
    def craft(self, seen: Seen) -> torch.Tensor:
        """The liars' rows, (f, d) or one row (d,) that all of them send."""

    def check(self, h: int, f: int) -> None:  # noqa: B027  # most attacks are defined for all h and f
        """Raises ValueError where the attack is not defined for h honest rows and f liars."""

    def __call__(
        self,
        honest: torch.Tensor,
        f: int,
        generator: torch.Generator | None = None,
        *,
        own: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The f rows that the liars send, (f, d), in the honest rows' dtype and on their device.

        Args:
            honest: floating (h, d), h >= 1, finite; never written to.
            f: liars, 0 <= f.
            generator: for attacks that draw, on the rows' device.
            own, previous: see `Seen`; attacks that can use them do.

        Raises:
            ValueError: f negative or no whole number, rows that are no finite floating matrix, or values
                for which the attack is not defined; the message names value, bound and way out.
        """
        _check_rows(self.name, honest, f, generator)
        _check_beside(self.name, honest, f, own, previous)
        if f == 0:
            return honest.new_empty(0, honest.shape[1])
        self.check(len(honest), f)
        rows = self.craft(Seen(honest.detach(), f, own, previous, generator)).to(honest.dtype)
        if self.finite and not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
            raise ValueError(
                f"{self.name}: what f={f} liars would send leaves the range of {honest.dtype}; "
                "lower its strength, or give rows in float64"
            )
        return rows.expand(f, honest.shape[1]).clone()


@dataclass(frozen=True)
class Line(Byzantine):
    """An attack whose liars all send origin + strength x direction: what `optimal` can search.

    The origin is the honest mean, or zero.
    """

    from_mean: ClassVar[bool]

    @abstractmethod
    def direction(self, seen: Seen) -> torch.Tensor:
        """(d,), the direction in which strength moves the liars."""

    @abstractmethod
    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        """How far this attack goes by itself."""

    def craft(self, seen: Seen) -> torch.Tensor:
        direction = self.direction(seen)
        return self.at(seen, direction, self.strength(seen, direction))

    def at(self, seen: Seen, direction: torch.Tensor, strength: float) -> torch.Tensor:
        """The row (d,) that is sent at this strength."""
        step = strength * direction
        return seen.honest.mean(0) + step if self.from_mean else step


def require_number(name: str, field: str, value: float, low: float, *, strict: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number >= low (> low if strict)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value < float("inf") if strict else low <= value < float("inf")):
        raise ValueError(
            f"{name}: {field} must be a finite number {'above' if strict else 'of at least'} {low:g}, found {value!r}"
        )


def _check_rows(name: str, honest: torch.Tensor, f: int, generator: torch.Generator | None) -> None:
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ValueError(f"{name}: f counts liars, so it is a whole number >= 0, found {f!r}")
    if not isinstance(honest, torch.Tensor) or honest.ndim != 2 or not honest.is_floating_point():
        found = f"{honest.dtype} {tuple(honest.shape)}" if isinstance(honest, torch.Tensor) else type(honest)
        raise ValueError(f"{name}: the honest updates are a floating matrix (h, d), found {found}")
    if honest.layout != torch.strided or honest.is_meta:
        kind = "a meta tensor" if honest.is_meta else str(honest.layout)
        raise ValueError(f"{name}: the honest updates are a dense matrix, found {kind}; use .to_dense()")
    h, d = honest.shape
    if h == 0 or d == 0:
        raise ValueError(f"{name}: needs h >= 1 honest rows of d >= 1 numbers, got h={h}, d={d}, f={f}")
    # a finite sum says that all are finite; one that is not may come from large numbers, so look closely
    if not bool(honest.sum().isfinite()) and not bool(honest.isfinite().all()):
        raise ValueError(
            f"{name}: an honest row of h={h} holds a NaN or an infinity; refuse that client first"
        )
    if generator is not None and generator.device.type != honest.device.type:
        raise ValueError(
            f"{name}: the generator is on {generator.device}, the rows on {honest.device}; "
            "make it with torch.Generator(device=...)"
        )


def _check_beside(
    name: str, honest: torch.Tensor, f: int, own: torch.Tensor | None, previous: torch.Tensor | None
) -> None:
    d = honest.shape[1]
    for what, given, shape in (("own", own, (f, d)), ("previous", previous, (d,))):
        if given is None:
            continue
        if tuple(given.shape) != shape:
            raise ValueError(f"{name}: {what} has shape {tuple(given.shape)}, expected {shape}")
        if given.dtype != honest.dtype or given.device != honest.device:
            raise ValueError(
                f"{name}: {what} is {given.dtype} on {given.device}, "
                f"the honest rows {honest.dtype} on {honest.device}"
            )
