"""How an update was made, as far as the auditor knows: what an attack may assume and a control must repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from securefed.errors import AuditError
from securefed_attacks.leakage_budget import PLAIN, RESCALING

Observed = Literal["update", "clipped", "noised", "sum", "final"]
OBSERVED: tuple[Observed, ...] = ("update", "clipped", "noised", "sum", "final")


@dataclass(frozen=True)
class Recipe:
    """The local work behind an update; None where it is not known, and then nothing is assumed in its place.

    Attributes:
        optimizer: the client's, "sgd", "adamw" ... steps: local steps. learning_rate, batch_size: of them.
        momentum, weight_decay: of the optimizer.
        observed: what the captured difference is: one client's "update" as it was trained, the same
            "clipped", "noised", a "sum" (or mean) of several, or two states of the "final" model.
        max_grad_norm: clipping norm of the whole update. noise_multiplier: sigma over it.
        clients: how many are in the sum. lora_alpha: where bare state dicts hold LoRA factors, their alpha.
        max_length: tokens of a record that were read; longer ones were cut.
        delta: at which epsilon is claimed.
    """

    optimizer: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    observed: Observed = "update"
    max_grad_norm: float | None = None
    noise_multiplier: float | None = None
    clients: int | None = None
    lora_alpha: float | None = None
    max_length: int = 64
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.optimizer is not None and self.optimizer.lower() not in (*PLAIN, *RESCALING):
            raise AuditError(
                f"recipe.optimizer={self.optimizer!r} is not known; one of {', '.join((*PLAIN, *RESCALING))}, "
                "or leave it out: what depends on it is then not judged"
            )
        if self.observed not in OBSERVED:
            raise AuditError(f"recipe.observed={self.observed!r} must be one of {', '.join(OBSERVED)}")
        for name in ("steps", "batch_size", "clients", "max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise AuditError(f"recipe.{name}={value!r} counts something, so it is a whole number >= 1")
        for name in ("learning_rate", "max_grad_norm", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise AuditError(f"recipe.{name}={value!r} must be a finite number above 0")
        for name in ("momentum", "weight_decay", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise AuditError(f"recipe.{name}={value!r} must be a finite number of at least 0")
        if not 0 < self.delta < 1:
            raise AuditError(f"recipe.delta={self.delta!r} must lie strictly between 0 and 1")

    @classmethod
    def of(cls, given: Recipe | Mapping[str, Any] | None) -> Recipe:
        """A recipe from a mapping; the nearest name is told for one that does not exist."""
        if given is None:
            return cls()
        if isinstance(given, Recipe):
            return given
        import difflib

        known = [f.name for f in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
                raise AuditError(f"a recipe has no {key!r}; {hint}")
        return cls(**given)

    @property
    def plain(self) -> bool:
        """Whether the optimizer keeps an update inside the span of the gradients."""
        return self.optimizer is not None and self.optimizer.lower() in PLAIN

    def to_replay(self) -> tuple[str, ...]:
        """What is missing to repeat this local work on other records."""
        needed = ("optimizer", "steps", "learning_rate", "batch_size")
        return tuple(name for name in needed if getattr(self, name) is None)
