"""Texts whose gradient is the one that was seen, where no span gives tokens away: gradient matching over embeddings.

Embeddings are moved until the gradient that they give matches the one seen: by the squared plus the absolute difference (Deng,
Wang, Li, Wang, Shang, Liu, Rajasekaran and Ding, "TAG: gradient attack on transformer-based language models", 2021, arXiv
2103.06819, equation 4) or by the cosine, held near lengths that embeddings have, and between times by discrete steps:
words change places, and of all arrangements the one stays that matches best and reads best to a language model (Balunovic,
Dimitrov, Jovanovic and Vechev, "LAMP: extracting text from gradients with language model priors", NeurIPS 2022, arXiv
2202.08827, sections 4.1 to 4.3).

Adversary: the server, with the gradient of one small batch, the model, the labels and the lengths. It works on whatever was
trained, LoRA's B at B = 0 with a rank below the number of tokens included; noise, sums over clients and long texts end it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Prior = Callable[[torch.Tensor], torch.Tensor]
"""Token ids (n, l) -> log perplexity of each under a language model that the adversary has, (n,)."""
Progress = Callable[[int, float], None]
Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True, eq=False)
class MatchedText:
    """Attributes:
    ids: (b, l), the tokens nearest to the embeddings that match best. mismatch: the distance of those tokens' own
        gradient; near 0 the gradient is explained. iterations, seconds: what it took.
    """

    ids: torch.Tensor = field(repr=False)
    mismatch: float
    iterations: int
    seconds: float


@dataclass(frozen=True)
class TextMatching:
    """The attack and its strength.

    Attributes:
        distance: "cosine" averaged over tensors, or "tag": squared plus `absolute` times absolute difference.
        absolute: weight of the absolute difference. lengths: weight that holds embeddings at the length tokens have.
        iterations: Adam's. rate: its first; falls evenly to a tenth. restarts: beginnings, of which the best goes on.
        swap_every: iterations between discrete steps, 0 for none. swaps: arrangements tried in one.
        prior_weight: of the log perplexity against the distance, where a prior is given. seconds: budget. seed: of all draws.
    """

    distance: Literal["cosine", "tag"] = "cosine"
    absolute: float = 0.01
    lengths: float = 0.1
    iterations: int = 400
    rate: float = 0.05
    restarts: int = 8
    swap_every: int = 50
    swaps: int = 40
    prior_weight: float = 0.02
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.restarts) < 1 or min(self.swap_every, self.swaps) < 0 or self.rate <= 0:
            raise ValueError(f"text matching needs iterations, restarts >= 1 and rate > 0; got {self}")
        if min(self.absolute, self.lengths, self.prior_weight) < 0:
            raise ValueError(f"weights are not negative; got {self}")

    def __call__(
        self,
        model: Any,
        gradient: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        length: int,
        *,
        known: Mapping[int, int] | None = None,
        among: Sequence[int] | None = None,
        prior: Prior | None = None,
        progress: Progress | None = None,
    ) -> MatchedText:
        """Tokens whose gradient is the given one.

        Args:
            model: classifies (Hugging Face's interface: inputs_embeds, labels); as sent, in evaluation mode.
            gradient: parameter name -> gradient of the mean loss. labels: (b,). length: l tokens of each text.
            known: position -> token that every text has there (what begins and ends one).
            among: tokens that may occur; all of the vocabulary by default.
            prior: a language model over the same tokens. progress: called with (iteration, distance).

        Raises:
            ValueError: a gradient that is not the model's, not finite or zero.
        """
        search = _Search(self, model, gradient, labels, length, known or {}, among, prior)
        began = time.monotonic()
        deadline = math.inf if self.seconds is None else began + self.seconds
        starts = [search.beginning() for _ in range(self.restarts)]
        x = min(starts, key=search.value)
        best, kept, done = math.inf, search.nearest(x), 0
        state = torch.optim.Adam([x.requires_grad_()], self.rate)
        for i in range(self.iterations):
            if time.monotonic() > deadline:
                break
            state.param_groups[0]["lr"] = self.rate * (1 - 0.9 * i / self.iterations)
            loss = search.step(x)
            state.step()
            done = i + 1
            last = i + 1 == self.iterations
            if last or (self.swap_every and (i + 1) % self.swap_every == 0):
                if not last:
                    search.rearrange(x)
                ids = search.nearest(x)
                here = search.of_tokens(ids)
                if here < best:
                    best, kept = here, ids
            if progress is not None and i % 10 == 0:
                progress(i, loss)
        return MatchedText(kept, search.distance_of(kept), done, time.monotonic() - began)


class _Search:
    """The objective over embeddings (b, l, d), and the steps between arrangements of them."""

    def __init__(
        self,
        attack: TextMatching,
        model: Any,
        gradient: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        length: int,
        known: Mapping[int, int],
        among: Sequence[int] | None,
        prior: Prior | None,
    ) -> None:
        named = dict(model.named_parameters())
        if not gradient or any(n not in named or named[n].shape != g.shape for n, g in gradient.items()):
            raise ValueError("the gradient's names and shapes are not those of the model's parameters")
        norm = float(torch.stack([g.norm() for g in gradient.values()]).norm())
        if not math.isfinite(norm) or norm == 0:
            raise ValueError(f"a gradient of norm {norm} has nothing to match")
        used = {n: g for n, g in gradient.items() if bool(g.any())}
        self.attack, self.model, self.labels, self.prior = attack, model, labels, prior
        self.parameters, self.seen = [named[n] for n in used], [g.detach() for g in used.values()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.table: torch.Tensor = model.get_input_embeddings().weight.detach()
        self.among = torch.arange(len(self.table)) if among is None else torch.as_tensor(list(among))
        self.known, self.length = dict(known), length
        self.free = [p for p in range(length) if p not in self.known]
        self.usual = self.table[self.among].norm(dim=1).mean()
        self.generator = torch.Generator().manual_seed(attack.seed)

    def beginning(self) -> torch.Tensor:
        """Embeddings of tokens drawn at random: lengths and directions that texts have."""
        shape = (len(self.labels), self.length)
        drawn = self.among[torch.randint(len(self.among), shape, generator=self.generator)]
        return self._pinned(self.table[drawn].clone())

    def _pinned(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for position, token in self.known.items():
                x[:, position] = self.table[token]
        return x

    def step(self, x: torch.Tensor) -> float:
        """Sets the slope at x; the distance there."""
        self._pinned(x)
        far = self._distance(x, create=True)
        total = far + self.attack.lengths * (x.norm(dim=-1).mean() / self.usual - 1).square()
        (slope,) = torch.autograd.grad(total, [x])
        for position in self.known:
            slope[:, position] = 0
        x.grad = slope
        return float(far.detach())

    def value(self, x: torch.Tensor) -> float:
        """The distance at embeddings."""
        return float(self._distance(x.detach(), create=False).detach())

    def distance_of(self, ids: torch.Tensor) -> float:
        """The distance of tokens' own gradient."""
        return self.value(self.table[ids])

    def of_tokens(self, ids: torch.Tensor) -> float:
        """The same with what the prior thinks of them."""
        return self.distance_of(ids) + self._unlikely(ids)

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The token of largest cosine at each place, (b, l)."""
        here = x.detach()
        unit = torch.nn.functional.normalize(self.table[self.among], dim=1)
        ids = self.among[(torch.nn.functional.normalize(here, dim=-1) @ unit.T).argmax(-1)]
        for position, token in self.known.items():
            ids[:, position] = token
        return ids

    def rearrange(self, x: torch.Tensor) -> None:
        """Words change places where that matches, or reads, better (LAMP, section 4.3)."""
        best = self.value(x) + self._unlikely(self.nearest(x))
        for _ in range(self.attack.swaps if len(self.free) > 1 else 0):
            row = int(torch.randint(len(x), (1,), generator=self.generator))
            order = self._moved()
            tried = x.detach().clone()
            tried[row] = tried[row, order]
            value = self.value(tried) + self._unlikely(self.nearest(tried))
            if value < best:
                best = value
                with torch.no_grad():
                    x.copy_(tried)

    def _moved(self) -> list[int]:
        """An arrangement of the places: two change, or one word or the end of the text moves elsewhere."""
        places = list(self.free)
        kind, i, j = (
            int(torch.randint(n, (1,), generator=self.generator)) for n in (3, len(places), len(places))
        )
        if kind == 0:
            places[i], places[j] = places[j], places[i]
        elif kind == 1:
            places.insert(j, places.pop(i))
        else:
            places = places[i:] + places[:i]
        order = list(range(self.length))
        for place, source in zip(self.free, places, strict=True):
            order[place] = source
        return order

    def _unlikely(self, ids: torch.Tensor) -> float:
        return 0.0 if self.prior is None else self.attack.prior_weight * float(self.prior(ids).mean())

    def _distance(self, x: torch.Tensor, create: bool) -> torch.Tensor:
        loss = self.model(inputs_embeds=x, labels=self.labels).loss
        here = torch.autograd.grad(loss, self.parameters, create_graph=create)
        if self.attack.distance == "cosine":
            parts = [1 - torch.cosine_similarity(g.flatten(), s.flatten(), 0) for g, s in self._pairs(here)]
            return torch.stack(parts).mean()
        scale = torch.stack([s.square().sum() for s in self.seen]).sum()
        parts = [
            (g - s).square().sum() / scale + self.attack.absolute * (g - s).abs().sum() / s.abs().sum()
            for g, s in self._pairs(here)
        ]
        return torch.stack(parts).sum()

    def _pairs(self, here: Tensors) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(here, self.seen, strict=True))
