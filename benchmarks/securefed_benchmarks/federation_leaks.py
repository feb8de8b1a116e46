"""The end of the story: one federation, the attacks on its updates and its model, and what stops which of them.

Ten clients of 100 Fashion-MNIST images train an MLP (784-32-10): 15 rounds of two passes, batch 20. Seventeen such federations on
halves of 2,000 images run side by side (all clients of all of them at once): the first is attacked, the others
are the shadows of LiRA and RMIA, trained exactly as it was. Played plain; with the last layer alone trained and sent (the
smallest adapter there is, on a first layer that stays as drawn); and under example-level DP at epsilon 8. Plain and DP
are judged twice: by every client's update, and by the sum of ten alone (`View` of a secure sum).

    python -m securefed_benchmarks.federation_leaks                                  # about a CPU minute and a half
    python -m securefed_benchmarks.federation_leaks --federations 9 --seeds 0 1 2    # eight shadows, three seeds
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.types import View
from securefed_attacks.active_membership import ActiveMembership
from securefed_attacks.fedmia import FEWEST, alignment, fedmia
from securefed_attacks.imprint import Imprint, Imprinted
from securefed_attacks.linear_inversion import best_psnr, invert_linear, psnr
from securefed_attacks.lira import confidence, lira
from securefed_attacks.rmia import log_to_probability, rmia
from securefed_attacks.statistics import auc, tpr_at_fpr
from securefed_attacks.update_cosine import update_cosine
from securefed_attacks.views import updates_seen
from securefed_benchmarks.fashion import MEAN, STD, Net, whole
from securefed_benchmarks.timing import report

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CLIENTS, EACH, ROUNDS, PASSES, BATCH, RATE = 10, 100, 15, 2, 20, 0.1
POOL, POPULATION, FEDERATIONS = 2 * CLIENTS * EACH, 1000, 17
NET = Net(32)
EPSILON, DELTA, CLIP, PRIVATE_RATE = 8.0, 1e-5, 1.0, 0.2
STEPS = PASSES * EACH // BATCH
ALL, HEAD = slice(None), slice(-10 * 33, None)
"""What is trained and sent: the whole vector, or the last layer's weights and biases."""
ASKED, OUTSIDE = 3, 300
"""Clients whose records are asked about one by one, and records that nobody had beside them."""


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


# ------------------------------------------------------------------------------------------- membership


def of_model(played: Played, x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Floats]:
    """Attacks on the last model: a score for each record of the pool; what is hidden of updates does not matter to them."""
    logits = torch.stack([NET.logits(model, x) for model in played.final])
    all_ = confidence(logits, y)
    pool, beside, inside = all_[:, :POOL], all_[:, POOL:], played.included
    p = log_to_probability
    return {
        "loss": pool[0],
        "LiRA": lira(pool[0], pool[1:], inside[1:]),
        "RMIA": rmia(p(pool[0]), p(pool[1:]), p(beside[0]), p(beside[1:]), included=inside[1:]),
    }


def of_updates(
    played: Played, seen: Sequence[View], x: torch.Tensor, y: torch.Tensor
) -> Mapping[str, tuple[Floats, Bools]]:
    """Attacks on the updates of a few clients: scores of their records and of all that nobody had."""
    outside = torch.from_numpy(np.flatnonzero(~played.included[0]))[:OUTSIDE]
    rows = torch.cat([played.shards[:ASKED].flatten(), outside])
    aligned, cosines = [], []
    for view in seen:
        model, updates = (
            torch.from_numpy(np.array(view.before)),
            torch.from_numpy(updates_seen(view))[:, played.part],
        )
        slopes = torch.cat(
            [
                summed_gradients(
                    model.expand(len(r), -1),
                    x[r][:, None],
                    y[r][:, None],
                    torch.ones(len(r), 1),
                    None,
                    played.part,
                )
                for r in torch.split(rows, 250)
            ]
        )
        aligned.append(alignment(slopes, updates))
        cosines.append(update_cosine(slopes, updates[:ASKED]))
    table, mean = np.stack(aligned), np.mean(cosines, 0)
    found: dict[str, list[tuple[Floats, Bools]]] = {"update cosine": [], "FedMIA": []}
    for client in range(ASKED):
        mine = np.concatenate(
            [np.arange(client * EACH, (client + 1) * EACH), np.arange(ASKED * EACH, len(rows))]
        )
        members = np.arange(len(mine)) < EACH
        found["update cosine"].append((mean[client][mine], members))
        found["FedMIA"].append((fedmia(table, client)[mine], members))
    assert len(seen[0].clients) > FEWEST
    return {
        n: (np.concatenate([s for s, _ in f]), np.concatenate([m for _, m in f])) for n, f in found.items()
    }


def active(played: Played, x: torch.Tensor, y: torch.Tensor, reveals: str, seed: int) -> tuple[Floats, Bools]:
    """One more round, whose model the server has changed to ask about client 0's records and as many others."""
    outside = torch.from_numpy(np.flatnonzero(~played.included[0]))[:EACH]
    rows = torch.cat([played.shards[0], outside])

    def losses(model: NDArray[np.float32]) -> Floats:
        logits = NET.logits(torch.from_numpy(model), x[rows])
        found: Floats = torch.nn.functional.cross_entropy(logits, y[rows], reduction="none").double().numpy()
        return found

    def climb(model: NDArray[np.float32]) -> NDArray[np.float32]:
        one = torch.ones(1, len(rows))
        total = summed_gradients(
            torch.from_numpy(model)[None], x[rows][None], y[rows][None], one, None, played.part
        )
        found = torch.zeros(len(model))
        found[played.part] = total[0] / len(rows)
        slope: NDArray[np.float32] = found.numpy()
        return slope

    attack = ActiveMembership(step=0.02, steps=5)
    raised = torch.from_numpy(attack.ascend(played.final[0].numpy(), climb))
    begun = raised.expand(CLIENTS, -1)
    generator = torch.Generator().manual_seed(seed + 1)
    change = local(begun, x, y, played.shards, played.noise, generator, played.part) - begun
    again = replace(played, models=raised[None], updates=change[None])
    return attack(views(again, reveals), 0, losses), np.arange(len(rows)) < EACH


# -------------------------------------------------------------------------------------------- reconstruction


def imprinted(x: torch.Tensor, y: torch.Tensor, clients: int, noise: float, seed: int) -> float:
    """Share of 16 images a client above 40 dB, of one gradient or a sum of them, clipped and noised as a step of DP."""
    generator = torch.Generator().manual_seed(seed)
    pixels = x * STD + MEAN
    chosen = torch.randperm(POOL, generator=generator)[: 16 * clients]
    model = Imprinted(Imprint.fitted(pixels[POOL:], 512), 10)
    total = _noised(model, pixels[chosen], y[chosen], noise, generator)
    layer = Imprint(model.layer.weight.detach(), model.layer.bias.detach())
    return float((best_psnr(layer.recover(total[0], total[1]), pixels[chosen]) > 40).double().mean())


def inverted(x: torch.Tensor, y: torch.Tensor, noise: float, seed: int, part: slice = ALL) -> float:
    """Median PSNR of ten single images from a gradient, clipped and noised as a step of DP.

    The first layer's gives the image itself; the last layer's its active hidden units, and of those the
    shortest image that has them.
    """
    generator = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    pixels, found = x * STD + MEAN, []
    for i in range(10):
        w, b, v, c = _noised(net, pixels[i : i + 1], y[i : i + 1], noise, generator)
        guess = invert_linear(w, b) if part == ALL else shortest_image(net[0], invert_linear(v, c))
        found.append(min(psnr(guess, pixels[i]), 999.0))
    return float(np.median(found))


@torch.no_grad()
def shortest_image(layer: torch.nn.Module, active: torch.Tensor) -> torch.Tensor:
    """The image of least norm that a linear layer with ReLU maps to these units, where they are above zero."""
    assert isinstance(layer, torch.nn.Linear)
    on = active > 1e-6
    found: torch.Tensor = torch.linalg.lstsq(layer.weight[on], (active - layer.bias)[on, None]).solution[:, 0]
    return found


def _noised(
    net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, noise: float, generator: torch.Generator
) -> list[torch.Tensor]:
    parameters = list(net.parameters())
    if not noise:
        loss = torch.nn.functional.cross_entropy(net(x), y, reduction="sum")
        return list(torch.autograd.grad(loss, parameters))
    total = [torch.zeros_like(p) for p in parameters]
    for one, label in zip(x, y, strict=True):
        parts = torch.autograd.grad(
            torch.nn.functional.cross_entropy(net(one[None]), label[None]), parameters
        )
        length = float(torch.stack([p.norm() for p in parts]).norm())
        for t, p in zip(total, parts, strict=True):
            t += p * min(1.0, CLIP / max(length, 1e-12))
    return [t + noise * CLIP * torch.randn(t.shape, generator=generator) for t in total]


# ------------------------------------------------------------------------------------------------- the table


def rows(seed: int, federations: int = FEDERATIONS) -> Iterator[dict[str, Any]]:
    """One row for each way it is played: what each attack got, and the accuracy."""
    from securefed.privacy.calibration import calibrate_noise

    (x, y), tests = whole()
    x, y = x[: POOL + POPULATION].contiguous(), y[: POOL + POPULATION].contiguous()
    sigma = calibrate_noise(EPSILON, DELTA, BATCH / EACH, ROUNDS * STEPS)
    began = time.process_time()
    plain = play(x, y, 0.0, seed, ALL, federations)
    yield _row("plain", plain, "updates", x, y, tests, seed)
    yield _row(f"secure sum of {CLIENTS}", plain, "sum", x, y, tests, seed)
    head = play(x, y, 0.0, seed, HEAD, federations)
    yield _row("last layer alone", head, "updates", x, y, tests, seed)
    private = play(x, y, sigma, seed, ALL, federations)
    yield _row(f"DP epsilon {EPSILON:g}", private, "updates", x, y, tests, seed)
    yield _row(f"DP epsilon {EPSILON:g}, secure sum of {CLIENTS}", private, "sum", x, y, tests, seed)
    yield {"seed": seed, "federations": federations, "cpu_s": round(time.process_time() - began)}


def _row(
    name: str,
    played: Played,
    reveals: str,
    x: torch.Tensor,
    y: torch.Tensor,
    tests: tuple[torch.Tensor, torch.Tensor],
    seed: int,
) -> dict[str, Any]:
    noise, alone = played.noise, reveals == "updates"
    accuracy = float(np.mean([NET.accuracy(model, *tests) for model in played.final]))
    found: dict[str, Any] = {"way": name, "seed": seed, "accuracy": round(accuracy, 4)}
    found["noise_multiplier"] = round(noise, 3)
    judged = {n: (s, played.included[0]) for n, s in of_model(played, x, y).items()}
    judged |= of_updates(played, views(played, reveals), x, y)
    judged["active"] = active(played, x, y, reveals, seed)
    found |= {attack: _figures(scores, members) for attack, (scores, members) in judged.items()}
    if played.part == ALL:  # a layer that is not sent cannot be an imprint
        share = partial(imprinted, x, y, 1 if alone else CLIENTS, noise)
        found["imprint"] = round(float(np.mean([share(s) for s in range(3)])), 3)
    found["linear_inversion_db"] = round(inverted(x, y, noise, seed, played.part), 1) if alone else None
    return found


def _figures(scores: Floats, members: Bools) -> list[float]:
    """[AUC, half of its 95 % interval, TPR in % at 1 % FPR]."""
    from securefed_attacks.statistics import auc_interval

    interval = auc_interval(scores, members)
    return [
        round(auc(scores, members), 3),
        round((interval.high - interval.low) / 2, 3),
        round(100 * tpr_at_fpr(scores, members, 0.01), 2),
    ]


def main() -> None:
    """Prints one JSON line a way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(0)")
    parser.add_argument(
        "--federations", type=int, default=FEDERATIONS, help=f"with the attacked one ({FEDERATIONS})"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for row in rows(seed, asked.federations):
            report("federation leaks", row)


if __name__ == "__main__":
    main()
