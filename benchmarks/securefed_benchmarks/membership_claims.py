"""Who was trained on, from the final model alone: LiRA with 32 shadows, RMIA and one threshold, on Fashion-MNIST.

33 nets of one hidden layer (64) are trained on random halves of 4,000 images, 40 epochs; eight of them are attacked in
turn, each with the other 32 as its shadows. RMIA's population are 2,000 images that none of them saw.

    python -m securefed_benchmarks.membership_claims            # two minutes on one core
    python -m securefed_benchmarks.membership_claims speed      # shadows together beside one by one, CPU seconds
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from securefed_benchmarks.timing import alternate, ratio, report

if TYPE_CHECKING:
    import torch

    from securefed_attacks.shadows import ShadowTraining

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
POOL, POPULATION, HIDDEN, MODELS, TARGETS = 4000, 2000, 64, 33, 8
EPOCHS, BATCH, RATE = 40, 64, 0.05
FEW = 4
"""References of the rows that ask what a few models are good for."""
SPEED = ((784, 64, 64), (784, 64, 16), (784, 16, 16))
"""(inputs, hidden, batch) that are timed."""


def main() -> None:
    """Prints one JSON line per attack, or per size that is timed."""
    import torch

    sections: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {"attacks": attacks, "speed": speed}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", nargs="?", choices=sections, default="attacks")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for row in sections[asked.section](asked.seed):
        report(f"membership: {asked.section}", row)


@dataclass(frozen=True, eq=False)
class Trained:
    """Confidences of all models in the pool (s, n) and in the population (s, m), and who had which record."""

    pool: Floats = field(repr=False)
    population: Floats = field(repr=False)
    included: Bools = field(repr=False)
    accuracy: tuple[float, float]
    seconds: float

    def without(self, target: int) -> Trained:
        """The shadows of one target: all models but itself."""
        kept = np.arange(len(self.pool)) != target
        return Trained(
            self.pool[kept], self.population[kept], self.included[kept], self.accuracy, self.seconds
        )


def recipe(seed: int, epochs: int = EPOCHS, batch: int = BATCH) -> ShadowTraining:
    """How every model here is trained."""
    from securefed_attacks.shadows import ShadowTraining

    return ShadowTraining(epochs, batch, RATE, 0.9, seed)


def random_halves(models: int, records: int, seed: int) -> Bools:
    """Half of the records for each model, drawn by itself, (models, records)."""
    order = np.random.default_rng(seed).random((models, records)).argsort(1)
    chosen: Bools = order < records // 2
    return chosen


def trained(seed: int, models: int = MODELS, epochs: int = EPOCHS) -> Trained:
    """All models, trained together."""
    import torch

    from securefed_attacks.lira import confidence
    from securefed_attacks.shadows import train_shadows

    x, y = _images(POOL + POPULATION)
    included = random_halves(models, POOL, seed)
    began = time.process_time()
    shadows = train_shadows(partial(_net, 784, HIDDEN), x[:POOL], y[:POOL], included, recipe(seed, epochs))
    seconds = time.process_time() - began
    logits = shadows.logits(x)
    right = (logits.argmax(-1) == y)[:, :POOL]
    inside = torch.from_numpy(included)
    accuracy = (float(right[inside].float().mean()), float(right[~inside].float().mean()))
    scores = confidence(logits, y)
    return Trained(scores[:, :POOL], scores[:, POOL:], included, accuracy, seconds)


def scores(shadows: Trained, target: Floats, beside: Floats) -> Mapping[str, Floats]:
    """Attack -> a score for each record of the pool.

    Args:
        shadows: models that are not the target. target: (n,) and beside: (m,), its confidence in pool and population.
    """
    from securefed_attacks.lira import calibrated, lira
    from securefed_attacks.rmia import log_to_probability as p
    from securefed_attacks.rmia import rmia

    inside = shadows.included
    few = _balanced_few(inside)
    references = p(shadows.pool), p(beside), p(shadows.population)
    return {
        "loss": target,
        "calibrated loss": calibrated(target, shadows.pool, inside),
        "LiRA online": lira(target, shadows.pool, inside, mode="online"),
        "LiRA online, a spread per record": lira(target, shadows.pool, inside, variance="record"),
        "LiRA offline": lira(target, shadows.pool, inside, mode="offline"),
        "RMIA online": rmia(p(target), references[0], *references[1:], included=inside),
        f"RMIA online, {FEW} references": rmia(
            p(target), p(few[0](shadows.pool)), p(beside), p(shadows.population[:FEW]), included=few[1]
        ),
        f"LiRA online, {FEW} shadows": lira(target, few[0](shadows.pool), few[1]),
    }


def _balanced_few(included: Bools) -> tuple[Callable[[Floats], Floats], Bools]:
    """For each record the first models that had it and that had it not, half and half: (chooser, included (FEW, n))."""
    rows = np.concatenate(
        [
            np.argsort(~included, 0, kind="stable")[: FEW // 2],
            np.argsort(included, 0, kind="stable")[: FEW // 2],
        ]
    )
    return partial(_chosen, rows), _chosen(rows, included)


def _chosen(rows: NDArray[np.intp], values: Any) -> Any:
    return np.take_along_axis(values, rows, 0)


def attacks(seed: int = 0, targets: int = TARGETS) -> Iterator[dict[str, Any]]:
    """AUC and TPR at low FPR of every attack, over all targets together, with 95 % intervals."""
    models = trained(seed)
    found: dict[str, list[Floats]] = {}
    for target in range(targets):
        mine = scores(models.without(target), models.pool[target], models.population[target])
        for name, values in mine.items():
            found.setdefault(name, []).append(values)
    members = np.concatenate(models.included[:targets])
    for name, several in found.items():
        facts = judged(np.concatenate(several), members)
        yield {"attack": name, **facts, "tpr_at_0.001_by_target": by_target(several, models.included)}
    yield {
        "models": MODELS,
        "accuracy_in": round(models.accuracy[0], 3),
        "accuracy_out": round(models.accuracy[1], 3),
        "training_cpu_s": round(models.seconds, 1),
    }


def by_target(scores: Sequence[Floats], included: Bools) -> list[float]:
    """Mean, standard deviation, smallest and largest of the targets' own TPR in per cent at 0.1 % FPR."""
    from securefed_attacks.statistics import tpr_at_fpr

    own = [100 * tpr_at_fpr(s, inside, 0.001) for s, inside in zip(scores, included, strict=False)]
    return [round(float(v), 1) for v in (np.mean(own), np.std(own, ddof=1), min(own), max(own))]


def judged(values: Floats, members: Bools) -> dict[str, Any]:
    """AUC, and TPR in per cent at 1 % and 0.1 % FPR with its interval."""
    from securefed_attacks.statistics import auc, clopper_pearson, tpr_at_fpr

    facts: dict[str, Any] = {"auc": round(auc(values, members), 4)}
    for fpr in (0.01, 0.001):
        share = tpr_at_fpr(values, members, fpr)
        low, high = clopper_pearson(round(share * int(members.sum())), int(members.sum()), 0.95)
        facts[f"tpr_at_{fpr:g}"] = [round(100 * v, 2) for v in (share, low, high)]
    return facts


# ------------------------------------------------------------------------------------------------- speed


def speed(seed: int = 0, shadows: int = 32, epochs: int = 2, repeats: int = 3) -> Iterator[dict[str, Any]]:
    """CPU seconds of an epoch of all shadows together, beside three ways to train them one by one."""
    x, y = _images(POOL)
    included = random_halves(shadows, POOL, seed)
    for inputs, hidden, batch in SPEED:
        ways = _ways(partial(_net, inputs, hidden), x, y, included, recipe(seed, epochs, batch))
        seconds = alternate(ways, repeats, time.process_time)
        yield {
            "net": f"{inputs}-{hidden}-10",
            "batch": batch,
            "together_s_an_epoch": round(min(seconds["together"]) / epochs, 3),
            **{
                f"over {name}": ratio(seconds["together"], [s * shadows / SAMPLED for s in seconds[name]])
                for name in ("same code", "bare loop", "data loader")
            },
        }


def _ways(
    make: Callable[[], torch.nn.Module],
    x: torch.Tensor,
    y: torch.Tensor,
    included: Bools,
    training: ShadowTraining,
) -> dict[str, Callable[[], Any]]:
    import torch

    from securefed_attacks.shadows import train_shadows

    own = [torch.from_numpy(np.flatnonzero(row)) for row in included]
    epochs, batch = training.epochs, training.batch_size

    def alone(k: int) -> None:
        train_shadows(make, x, y, included[k : k + 1], training)

    def bare(k: int) -> None:
        _loop(make(), x, y, own[k], epochs, batch)

    def loader(k: int) -> None:
        _loader(make(), x[own[k]], y[own[k]], epochs, batch)

    return {
        "together": partial(train_shadows, make, x, y, included, training),
        "same code": partial(_each, alone),
        "bare loop": partial(_each, bare),
        "data loader": partial(_each, loader),
    }


SAMPLED = 8
"""Shadows of which the time one by one is taken; they cost alike."""


def _each(train: Callable[[int], Any]) -> None:
    for k in range(SAMPLED):
        train(k)


def _loop(
    net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, own: torch.Tensor, epochs: int, batch: int
) -> None:
    import torch

    step = torch.optim.SGD(net.parameters(), RATE, 0.9)
    for _ in range(epochs):
        for rows in torch.split(own[torch.randperm(len(own))], batch):
            step.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]  # torch's stub
            step.step()


def _loader(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int) -> None:
    import torch

    step = torch.optim.SGD(net.parameters(), RATE, 0.9)
    batches: Sequence[Any] | Any = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch, shuffle=True
    )
    for _ in range(epochs):
        for inputs, labels in batches:
            step.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]  # torch's stub
            step.step()


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training images, pixels in [0, 1] (count, 784), and their labels."""
    from securefed_benchmarks.fashion import MEAN, STD, whole

    (x, y), _ = whole()
    return (x[:count] * STD + MEAN).contiguous(), y[:count].contiguous()


def _net(inputs: int, hidden: int) -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


if __name__ == "__main__":
    main()
