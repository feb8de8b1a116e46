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
from dataclasses import replace
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
from securefed_benchmarks.fashion import MEAN, STD, whole
from securefed_benchmarks.side_by_side import (
    ALL,
    BATCH,
    CLIENTS,
    CLIP,
    EACH,
    FEDERATIONS,
    HEAD,
    NET,
    POOL,
    ROUNDS,
    STEPS,
    Bools,
    Played,
    local,
    play,
    summed_gradients,
    views,
)
from securefed_benchmarks.timing import report

Floats = NDArray[np.float64]
POPULATION = 1000
EPSILON, DELTA = 8.0, 1e-5
ASKED, OUTSIDE = 3, 300
"""Clients whose records are asked about one by one, and records that nobody had beside them."""


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
