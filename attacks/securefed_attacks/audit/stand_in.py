"""Modules whose forward pass is another one for a while, whatever library they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def stand_in(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Calls to these modules run these functions; weights, hooks, mode and other attributes stay theirs."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward  # found before the class' own, and not registered as anything
    try:
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
