"""Whole texts from a bag of tokens: what the second attention layer is fed must lie in its gradient's span too.

After Petrov et al. 2024 ("DAGER", arXiv 2405.15586), section 4: in a decoder a layer's input depends on earlier
tokens only, so texts are grown from left to right and every wrong token is seen at once. In an encoder it depends
on the whole text; there tokens are tried position by position until all inputs lie in the span, which proves the
text. The paper's encoder search is another heuristic over the same test.

Exact for one gradient. Over local steps the first block moves, so the second's inputs only stay near their span;
how near still counts is measured against wrong texts, and not set by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch

from securefed_attacks.span import CLEAR_GAP
from securefed_attacks.span_tokens import Span, TokenBag, check, steepest, threshold
from securefed_attacks.transformer_reader import Observed, Reader

CONTROLS = 512
"""Pairs of tokens beside the single ones over which the second layer's rank is swept."""
BEAM = 256
"""Beginnings kept at once; `TextOrder.complete` says when there were more."""
RESTARTS = 40
REPEATS = 8
"""A text of one token again and again looks like the token alone (attention averages equal values): such beginnings
are followed up to here, in case another token comes, and are no finding by themselves."""


@dataclass(frozen=True, eq=False)
class TextOrder:
    """Texts read out of an update.

    Attributes:
        texts: token ids in order. distances: the worst distance of each text's inputs from the span.
        threshold: the distance from which a text is refused. rank: dimension of the second layer's span.
        complete: neither the time nor the beam cut the search short.
    """

    texts: tuple[tuple[int, ...], ...] = field(repr=False)
    distances: tuple[float, ...]
    threshold: float
    rank: int
    complete: bool


Progress = Callable[[str], None]
NOTHING = TextOrder((), (), 0.0, 0, True)


def order_tokens(
    reader: Reader,
    update: Mapping[str, torch.Tensor],
    bag: TokenBag,
    *,
    before: Mapping[str, torch.Tensor] | None = None,
    longest: int = 64,
    ends: Collection[int] = (),
    seconds: float = 60.0,
    progress: Progress | None = None,
    seed: int = 0,
) -> TextOrder:
    """The texts behind a bag of tokens, as far as the second layer's gradient proves them.

    A decoder's last token is missing where it had no loss on it. An encoder without positions in its input
    (relative ones) gives no order here.

    Args:
        reader, update, before: as in `token_bag`. longest: tokens of the longest text looked for.
        ends: tokens that a text ends with, if known; saves trying other lengths (encoders).
        seconds: wall clock; what is found by then is returned and marked.
        progress: told in words how far it is, without any token. seed: of the restarts.
    """
    if not bag.tokens or len(reader.blocks) < 2 or (not reader.causal and not bag.pairs):
        return NOTHING
    seen = reader.observed(1, update, before)
    if not seen.direct and not seen.through:
        return NOTHING
    generator, deadline = torch.Generator().manual_seed(seed), time.monotonic() + seconds
    tell = progress or (lambda _: None)
    if reader.causal:
        return _grow(reader, seen, bag, longest, deadline, tell, generator)
    return _assemble(reader, seen, bag, frozenset(ends), deadline, tell, generator)


# ------------------------------------------------------------------------------------------- left to right


def _grow(
    reader: Reader,
    seen: Observed,
    bag: TokenBag,
    longest: int,
    deadline: float,
    tell: Progress,
    generator: torch.Generator,
) -> TextOrder:
    starts = torch.tensor(bag.at(0) or bag.tokens)[:, None]
    tokens = torch.tensor(bag.tokens)
    first = starts[torch.randint(len(starts), (CONTROLS,), generator=generator), 0]
    second = tokens[torch.randint(len(tokens), (CONTROLS,), generator=generator)]
    pairs = torch.stack([first, second], 1)
    inputs = torch.cat([reader.second(starts)[:, -1], reader.second(pairs)[:, -1]])
    finding, span = check(seen, inputs)
    if not len(finding.found):
        return TextOrder((), (), 0.0, finding.rank, True)
    edge = threshold(finding)
    done: list[tuple[tuple[int, ...], float]] = []
    alive = _kept(starts, finding.residual[: len(starts)], torch.zeros(len(starts)), edge)
    complete = True
    while len(alive[0]) and complete:
        beginnings, worst = alive
        length = beginnings.shape[1]
        tell(f"{len(beginnings)} beginnings of {length} tokens, {len(done)} texts ended")
        if length == longest or time.monotonic() > deadline or len(beginnings) > BEAM:
            complete = False
            done += _ended(beginnings, worst)
            break
        grown, far, parents = _extended(reader, span, beginnings, torch.tensor(bag.at(length) or bag.tokens))
        inside = torch.zeros(len(beginnings), dtype=torch.bool)
        inside[parents[far < edge]] = True
        done += _ended(beginnings[~inside], worst[~inside])
        alive = _varied(*_kept(grown, far, worst[parents], edge))
    telling = {t: w for t, w in done if len(t) == 1 or len(set(t)) > 1}
    return TextOrder(tuple(telling), tuple(telling.values()), edge, finding.rank, complete)


def _extended(
    reader: Reader, span: Span, beginnings: torch.Tensor, options: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every beginning with every option behind it, how far that is, and which beginning it was."""
    n, m = len(beginnings), len(options)
    parents = torch.arange(n).repeat_interleave(m)
    grown = torch.cat([beginnings[parents], options.repeat(n)[:, None]], 1)
    return grown, span.distance(reader.second(grown)[:, -1]), parents


def _kept(
    rows: torch.Tensor, far: torch.Tensor, worst: torch.Tensor, edge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    inside = far < edge
    return rows[inside], torch.maximum(worst[inside].double(), far[inside])


def _varied(rows: torch.Tensor, worst: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Without endless repetitions of one token."""
    if rows.shape[1] <= REPEATS:
        return rows, worst
    kept = (rows != rows[:, :1]).any(1)
    return rows[kept], worst[kept]


def _ended(rows: torch.Tensor, worst: torch.Tensor) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(r.tolist()), float(w)) for r, w in zip(rows, worst, strict=True)]


# ---------------------------------------------------------------------------------------- position by position


def _assemble(
    reader: Reader,
    seen: Observed,
    bag: TokenBag,
    ends: frozenset[int],
    deadline: float,
    tell: Progress,
    generator: torch.Generator,
) -> TextOrder:
    last = max(p for p, _ in bag.pairs)
    options = [list(bag.at(p)) for p in range(last + 1)]
    holes = [p for p, o in enumerate(options) if not o]
    options = options[: min(holes)] if holes else options
    if not options:  # dropout, or noise: nothing of the first position was seen, so no text begins
        return NOTHING
    lengths = [n for n in range(2, len(options) + 1) if not ends or ends & set(options[n - 1])]
    found: dict[tuple[int, ...], float] = {}
    edge, spans = 0.0, _spans(reader, seen, [_narrowed(o, ends, False) for o in options], bag, generator)
    for attempt in range(RESTARTS):
        span = spans[attempt % len(spans)]
        for length in lengths:
            uncovered = _uncovered(bag, found)
            if not uncovered:
                return _texts(found, edge, span, True)
            if time.monotonic() > deadline:
                return _texts(found, edge, span, False)
            tell(f"attempt {attempt + 1} of {RESTARTS}, length {length}: {len(found)} texts")
            tried = [_narrowed(o, ends, p == length - 1) for p, o in enumerate(options[:length])]
            text, far = _descended(reader, span, _start(tried, uncovered, generator), tried, deadline)
            wrong = _neighbours(text, tried, bag, generator)[1:]
            beside = span.distance(reader.second(wrong).flatten(0, 1)).reshape(len(wrong), length).amax(1)
            if float(beside.min()) >= CLEAR_GAP * far:
                found[tuple(text.tolist())] = far
                edge = max(edge, float(beside.min()) / CLEAR_GAP)
                spans = [span]
    return _texts(found, edge, spans[0], not _uncovered(bag, found))


def _spans(
    reader: Reader, seen: Observed, options: list[list[int]], bag: TokenBag, generator: torch.Generator
) -> list[Span]:
    """The span at the rank that separates a drawn text's neighbours, or at the steepest falls, steepest first."""
    text = _start(options, bag.pairs, generator)
    finding, span = check(seen, reader.second(_neighbours(text, options, bag, generator)).flatten(0, 1))
    return [span] if len(finding.found) else steepest(seen, 3)


def _uncovered(bag: TokenBag, found: Collection[tuple[int, ...]]) -> frozenset[tuple[int, int]]:
    return bag.pairs - {pair for text in found for pair in enumerate(text)}


def _narrowed(options: list[int], ends: frozenset[int], last: bool) -> list[int]:
    """An end token stands last and nowhere else."""
    kept = [t for t in options if (t in ends) == last] if ends else options
    return kept or options


def _start(
    options: list[list[int]], uncovered: Collection[tuple[int, int]], generator: torch.Generator
) -> torch.Tensor:
    """A text of tokens not explained yet, as far as there are any."""
    chosen = []
    for p, here in enumerate(options):
        fresh = [t for t in here if (p, t) in uncovered] or here
        chosen.append(fresh[int(torch.randint(len(fresh), (1,), generator=generator))])
    return torch.tensor(chosen)


def _neighbours(
    text: torch.Tensor, options: list[list[int]], bag: TokenBag, generator: torch.Generator, count: int = 16
) -> torch.Tensor:
    """The text itself, then texts that differ from it in one token."""
    rows = text.repeat(count + 1, 1)
    for i in range(1, count + 1):
        p = int(torch.randint(len(text), (1,), generator=generator))
        others = [t for t in options[p] if t != int(text[p])] or [t for t in bag.tokens if t != int(text[p])]
        if others:
            rows[i, p] = others[int(torch.randint(len(others), (1,), generator=generator))]
    return rows


def _descended(
    reader: Reader, span: Span, text: torch.Tensor, options: list[list[int]], deadline: float
) -> tuple[torch.Tensor, float]:
    """The text after exchanging one token at a time for the best of its position until nothing gets better."""
    length, best = len(text), float("inf")
    open_positions = [p for p, o in enumerate(options) if len(o) > 1]
    while True:
        before = best
        for p in open_positions or [0]:
            rows = text.repeat(len(options[p]), 1)
            rows[:, p] = torch.tensor(options[p])
            far = span.distance(reader.second(rows).flatten(0, 1)).reshape(len(rows), length)
            score = far.square().sum(1)
            choice = int(score.argmin())
            text, best = rows[choice], float(score[choice])
        if best >= before * (1 - 1e-6) or time.monotonic() > deadline:
            break
    return text, float(span.distance(reader.second(text[None])[0]).max())


def _texts(found: Mapping[tuple[int, ...], float], edge: float, span: Span, complete: bool) -> TextOrder:
    return TextOrder(tuple(found), tuple(found.values()), edge, span.rank, complete)
