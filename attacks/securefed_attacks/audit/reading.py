"""What is read from each view's update: the bag of tokens, and whole texts where a second layer proves them."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from securefed_attacks.audit.clock import Clock
from securefed_attacks.audit.exposure import marks
from securefed_attacks.audit.states import Tensors
from securefed_attacks.audit.target import Target
from securefed_attacks.span_order import NOTHING, TextOrder, order_tokens
from securefed_attacks.span_tokens import TokenBag, token_bag
from securefed_attacks.transformer_reader import Observed, Reader, open_reader

ORDER_S = 15.0
"""Seconds that putting one update's tokens in order may take; what is found by then counts."""
SAME = 1e-6
"""Updates that are equal to this but for their length have the same span."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What one update says.

    Attributes:
        bag: as read. order: whole texts; empty where none was looked for or proved.
        found, ranking: the bag's tokens without the tokenizer's marks.
    """

    bag: TokenBag = field(repr=False)
    order: TextOrder = field(repr=False)
    found: tuple[int, ...] = field(repr=False)
    ranking: tuple[int, ...] = field(repr=False)


def reader_of(target: Target, before: Tensors) -> Reader | str:
    """The model that reads tokens as it was when the round began, or why there is none.

    The target's own module is left as it is: where the round did not begin from its weights, a copy gets them.
    """
    if target.body is None:
        return "the model reads no tokens"
    body = target.body
    weights = target.effective(before)
    if any(not torch.equal(weights[n], target.own[n]) for n in weights):
        path = next(n for n, m in target.module.named_modules() if m is body)
        module = copy.deepcopy(target.module)
        module.load_state_dict(weights, strict=False)
        body = module.get_submodule(path)
    try:
        return open_reader(body)
    except (ValueError, AttributeError, TypeError) as error:
        return f"its first attention layer was not found: {error}"


def read_updates(
    target: Target,
    reader: Reader,
    before: Tensors,
    updates: Mapping[str, Tensors],
    longest: int,
    clock: Clock,
    ordered: Collection[str] = (),
) -> dict[str, Reading]:
    """Name -> what its update says, as far as the time goes; an update that shows no token is left out.

    Args:
        longest: tokens of the longest record. ordered: names whose tokens are put in order as well.
    """
    found: dict[str, Reading] = {}
    spans: list[tuple[Observed, str]] = []
    took = 0.0
    for name, update in updates.items():
        seen = reader.observed(0, update, before)
        if not seen.direct and not seen.through:
            continue
        same = next((other for span, other in spans if _parallel(span, seen)), None)
        if same is not None:
            found[name] = found[same]
            continue
        if found and not clock.allows(took, f"tokens, {name}"):
            continue
        clock.tell(f"looking for tokens in the span: {name}")
        began = time.monotonic()
        bag = token_bag(reader, update, before=before, longest=longest, seconds=clock.left)
        took = max(took, time.monotonic() - began)
        order = _ordered(target, reader, before, update, bag, longest, clock) if name in ordered else NOTHING
        found[name] = _reading(target, bag, order)
        spans.append((seen, name))
    return found


def _reading(target: Target, bag: TokenBag, order: TextOrder) -> Reading:
    special = marks(target)
    ranking = tuple(t for t in bag.ranking.tolist() if t not in special)
    return Reading(bag, order, tuple(t for t in bag.tokens if t not in special), ranking)


def _ordered(
    target: Target,
    reader: Reader,
    before: Tensors,
    update: Tensors,
    bag: TokenBag,
    longest: int,
    clock: Clock,
) -> TextOrder:
    if not bag.tokens or not clock.allows(0.0, "putting tokens in order"):
        return NOTHING
    clock.tell("putting tokens in order")
    marked = [getattr(target.tokenizer, name, None) for name in ("sep_token_id", "eos_token_id")]
    ends = () if reader.causal else [int(end) for end in marked if end in bag.tokens]
    return order_tokens(
        reader,
        update,
        bag,
        before=before,
        longest=longest,
        ends=ends,
        seconds=min(ORDER_S, clock.left),
    )


def _parallel(one: Observed, two: Observed) -> bool:
    pairs = list(zip(_matrices(one), _matrices(two), strict=False))
    if len(list(_matrices(one))) != len(list(_matrices(two))):
        return False
    return all(a.shape == b.shape and _equal_but_for_length(a, b) for a, b in pairs)


def _matrices(seen: Observed) -> Iterator[torch.Tensor]:
    yield from seen.direct
    yield from (rows for rows, _ in seen.through)


def _equal_but_for_length(a: torch.Tensor, b: torch.Tensor) -> bool:
    one, two = a / a.norm().clamp_min(1e-30), b / b.norm().clamp_min(1e-30)
    return bool((one - two).abs().max() <= SAME * one.abs().max())
