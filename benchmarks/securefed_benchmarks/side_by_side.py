"""Federations side by side: all clients of all of them step at once, one attacked, the others its shadows.

An MLP on Fashion-MNIST, plain or under example-level DP, whole or with the last layer alone. Played by `federation_leaks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.types import View
from securefed_benchmarks.fashion import Net

Bools = NDArray[np.bool_]
CLIENTS, EACH, ROUNDS, PASSES, BATCH, RATE = 10, 100, 15, 2, 20, 0.1
POOL, FEDERATIONS = 2 * CLIENTS * EACH, 17
NET = Net(32)
CLIP, PRIVATE_RATE = 1.0, 0.2
STEPS = PASSES * EACH // BATCH
ALL, HEAD = slice(None), slice(-10 * 33, None)
"""What is trained and sent: the whole vector, or the last layer's weights and biases."""


@dataclass(frozen=True, eq=False)
class Played:
    """Seventeen federations: their last models (s, d), who had which record, and the first one's rounds.

    Attributes:
        shards: (clients, each), records of the first federation's clients. models: (rounds, d), what each round began from.
        updates: (rounds, clients, d), new minus old. noise: noise multiplier of each step. part: what trained.
    """

    noise: float
    part: slice
    final: torch.Tensor = field(repr=False)
    included: Bools = field(repr=False)
    shards: torch.Tensor = field(repr=False)
    models: torch.Tensor = field(repr=False)
    updates: torch.Tensor = field(repr=False)


def summed_gradients(
    models: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    taken: torch.Tensor,
    clip: float | None,
    part: slice = ALL,
) -> torch.Tensor:
    """Sum of the gradients of each model's records for what trains, each clipped in its own length, (m, d of `part`).

    Args:
        models: (m, d). x: (m, b, 784). y: (m, b). taken: (m, b), which records are in the batch. clip: None for none.
    """
    parts = torch.split(models, [int(np.prod(s)) for s in NET.shapes], 1)
    w1, b1, w2, b2 = (p.reshape(-1, *s) for p, s in zip(parts, NET.shapes, strict=True))
    hidden = torch.baddbmm(b1[:, None], x, w1.transpose(1, 2))
    active = hidden.relu()
    logits = torch.baddbmm(b2[:, None], active, w2.transpose(1, 2))
    error = logits.softmax(-1) - torch.nn.functional.one_hot(y, 10)
    whole = part == ALL
    back = (error @ w2) * (hidden > 0)
    weight = taken.to(x.dtype)
    if clip is not None:  # a record's gradient is two outer products, so its length needs no gradient
        lengths = error.square().sum(-1) * (1 + active.square().sum(-1))
        if whole:
            lengths = lengths + back.square().sum(-1) * (1 + x.square().sum(-1))
        weight = weight * (clip / lengths.sqrt().clamp_min(1e-12)).clamp_max(1)
    error, back = error * weight[..., None], back * weight[..., None]
    first = (back.transpose(1, 2) @ x, back.sum(1)) if whole else ()
    layers = (*first, error.transpose(1, 2) @ active, error.sum(1))
    return torch.cat([layer.reshape(len(x), -1) for layer in layers], 1)


def local(
    models: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    shards: torch.Tensor,
    noise: float,
    generator: torch.Generator,
    part: slice = ALL,
) -> torch.Tensor:
    """Each client's model after a round's local steps, (m, d): shuffled batches, or Poisson batches, clipped and noised."""
    here = models.clone()
    m, size = shards.shape
    order = torch.rand(m, size, generator=generator).argsort(1)
    for step in range(STEPS):
        if noise:
            taken = torch.rand(m, size, generator=generator) < BATCH / size
            chosen = shards
        else:
            if step % (size // BATCH) == 0:
                order = torch.rand(m, size, generator=generator).argsort(1)
            at = step % (size // BATCH) * BATCH
            chosen = shards.gather(1, order[:, at : at + BATCH])
            taken = torch.ones(m, BATCH, dtype=torch.bool)
        slope = summed_gradients(here, x[chosen], y[chosen], taken, CLIP if noise else None, part)
        if noise:
            slope += noise * CLIP * torch.randn(slope.shape, generator=generator)
        here[:, part] -= (PRIVATE_RATE if noise else RATE) / BATCH * slope
    return here


def halves_of_pool(federations: int, generator: torch.Generator) -> torch.Tensor:
    """The records of each federation, (s, POOL / 2): the first one's drawn, then pairs that share out the pool.

    So each record is in exactly half of the shadows, however few they are.

    Raises:
        ValueError: an even number, or fewer than five: a record needs two shadows on each side.
    """
    if federations < 5 or not federations % 2:
        raise ValueError(
            f"one federation and two pairs of shadows or more make an odd number, got {federations}"
        )
    drawn = torch.rand(1 + federations // 2, POOL, generator=generator).argsort(1)
    pairs = drawn[1:].reshape(-1, POOL // 2)
    return torch.cat([drawn[:1, : POOL // 2], pairs])


def play(
    x: torch.Tensor,
    y: torch.Tensor,
    noise: float,
    seed: int,
    part: slice = ALL,
    federations: int = FEDERATIONS,
) -> Played:
    """All federations, from one first model, each on its own half of the pool."""
    generator = torch.Generator().manual_seed(seed)
    halves = halves_of_pool(federations, generator)
    shards = halves.reshape(federations, CLIENTS, EACH)
    final = NET.first(seed).expand(federations, -1).clone()
    models, updates = [], []
    for _ in range(ROUNDS):
        begun = final.repeat_interleave(CLIENTS, 0)
        change = local(begun, x, y, shards.reshape(-1, EACH), noise, generator, part) - begun
        change = change.reshape(federations, CLIENTS, -1)
        models.append(final[0].clone())
        updates.append(change[0].clone())
        final = final + change.mean(1)
    included = np.zeros((federations, POOL), bool)
    included[np.arange(federations)[:, None], halves.numpy()] = True
    return Played(noise, part, final, included, shards[0], torch.stack(models), torch.stack(updates))


def views(played: Played, reveals: str) -> list[View]:
    """What the server saw of each round: every update, or their sum."""
    found = []
    for number, (model, updates) in enumerate(zip(played.models, played.updates, strict=True)):
        rows = {c: updates[c].numpy() for c in range(CLIENTS)} if reveals == "updates" else {}
        total = updates.double().sum(0).numpy()
        ids = tuple(range(CLIENTS))
        found.append(
            View("server", number, reveals, ids, "", model.numpy(), None, rows, total, CLIENTS)  # type: ignore[arg-type]  # one of the two
        )
    return found
