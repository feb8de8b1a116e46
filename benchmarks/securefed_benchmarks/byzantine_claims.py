"""Which rule withstands which attack on Fashion-MNIST: the published claims, with 95 % intervals over seeds.

Three settings. Distributed SGD with worker momentum (Allouah et al., AISTATS 2023): 17 workers of whom 4 lie; the
same with 50 workers of whom 5 lie, whose server sees sums of groups only. FedAvg with a boosted backdoor: 20 clients
of whom 4 lie. Every run appends one JSON line to a result file and is never played twice, so a stopped benchmark goes
on where it was.

    python -m securefed_benchmarks.byzantine_claims benchmarks/configs/byzantine.toml --out results.jsonl
    python -m securefed_benchmarks.byzantine_claims benchmarks/configs/byzantine.toml --out results.jsonl --table
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from securefed.config import Component
from securefed.registry import make_aggregator
from securefed_attacks import BYZANTINE, BadNets
from securefed_benchmarks import groups
from securefed_benchmarks.bench.estimates import quantile
from securefed_benchmarks.fashion import CLASSES, Net, data, gradients, local_updates, split, tensors, whole

DIVERGED = 1e6
"""A coordinate this large is no model any more; the run ends and is scored as chance."""


@dataclass(frozen=True)
class Case:
    """One run: a setting, a rule, an attack and a seed, all by the names of the config."""

    setting: str
    rule: str
    attack: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.setting}/{self.rule}/{self.attack}/{self.seed}"


def cases(job: Mapping[str, Any]) -> Iterator[Case]:
    """Every run of the job, seeds outermost, so that a stopped benchmark has whole tables of fewer seeds."""
    for seed in range(job["seeds"]):
        for name, setting in job["settings"].items():
            if seed >= setting.get("seeds", job["seeds"]):
                continue
            for attack in setting["attacks"]:
                for rule in setting["rules"]:
                    yield Case(name, rule, attack, seed)


def play(job: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """The scores of one run."""
    setting = job["settings"][case.setting]
    tree, attack = job["rules"][case.rule], job["attacks"][case.attack]
    rule = make_aggregator(component(tree))
    if setting["kind"] == "backdoor":
        found = backdoor(setting, rule, attack, case.seed)
    elif "groups" in tree:
        honest = setting["n"] - setting["f"]  # who is there when nobody lies, in this setting
        n = honest if attack["name"] == "none" else setting["n"]
        cut = groups.drawn(n, tree["groups"], case.seed)
        real = tree.get("path") == "masking"
        means = groups.Protocol.of(cut, tree["groups"]) if real else groups.Arithmetic(cut)
        found = momentum_sgd(setting, lambda rows: rule(means(rows)), attack, case.seed)
        found["poisoned"] = groups.poisoned(cut, range(honest, n))
    else:
        found = momentum_sgd(setting, rule, attack, case.seed)
    return {"key": case.key, **vars(case), **found}


def component(tree: Mapping[str, Any]) -> Component:
    """A rule of the config, without what says which rows it gets."""
    return Component(tree["name"], {k: v for k, v in tree.items() if k not in ("name", "groups", "path")})


def momentum_sgd(
    setting: Mapping[str, Any], rule: Any, attack: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Worker momentum: each worker sends an average of its gradients; the liars see all of them."""
    (x, y), (test_x, test_y) = whole()
    n, f, beta = setting["n"], setting["f"], setting["momentum"]
    shards = split(y.numpy(), n - f, setting["alpha"], setting["floor"], seed)
    net, rng = Net(setting["hidden"]), np.random.default_rng(seed)
    model, momenta = net.first(seed), torch.zeros(n - f, net.size)
    lie = None if attack["name"] == "none" else BYZANTINE[attack["name"]](**_options(attack))
    generator = torch.Generator().manual_seed(seed)
    scores: list[float] = []
    for step in range(1, setting["steps"] + 1):
        rows = torch.from_numpy(np.stack([rng.choice(s, setting["batch"]) for s in shards]))
        momenta = beta * momenta + (1 - beta) * gradients(net, model, x[rows], y[rows])
        sent = momenta if lie is None else torch.cat([momenta, lie(momenta, f, generator)])
        model = model - setting["rate"] * rule(sent)
        if not float(model.abs().max()) < DIVERGED:
            return {"final": 1 / CLASSES, "best": max([1 / CLASSES, *scores]), "diverged": step}
        if step % setting["every"] == 0:
            scores.append(net.accuracy(model, test_x, test_y))
    return {"final": scores[-1], "best": max(scores)}


def backdoor(setting: Mapping[str, Any], rule: Any, attack: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """FedAvg; in the second half of the rounds the liars train on stamped images and boost what they send."""
    (train, test), n, f = data(), setting["n"], setting["f"]
    poison = BadNets(**setting["badnets"])
    rng = np.random.default_rng(seed)
    shards = split(train.take(range(len(train))).labels, n, setting["alpha"], setting["records"], seed)  # type: ignore[arg-type]  # it has labels
    own = [train.take(rng.choice(s, setting["records"], replace=False)) for s in shards]
    clean = [tensors(e) for e in own]
    bad = [tensors(poison(e, 10, rng)) if k < f else clean[k] for k, e in enumerate(own)]
    honest, spoiled = (tuple(torch.stack(c) for c in zip(*parts, strict=True)) for parts in (clean, bad))
    triggered = poison.triggered(test, 10)
    assert triggered is not None
    (test_x, test_y), (trigger_x, trigger_y) = whole()[1], tensors(triggered)
    net = Net(setting["hidden"])
    model, generator = net.first(seed), torch.Generator().manual_seed(seed)
    lie = None if attack["name"] == "none" else BYZANTINE[attack["name"]](**_options(attack))
    scores, success = [], []
    for round in range(setting["rounds"]):
        lying = lie is not None and round >= setting["clean_rounds"]
        x, y = spoiled if lying else honest
        updates = local_updates(
            net,
            model,
            x,
            y,
            epochs=setting["epochs"],
            batch=setting["batch"],
            rate=setting["rate"],
            generator=generator,
        )
        if lying and lie is not None:
            updates = torch.cat([lie(updates[f:], f, generator, own=updates[:f]), updates[f:]])
        model = model + rule(updates)
        scores.append(net.accuracy(model, test_x, test_y))
        success.append(net.accuracy(model, trigger_x, trigger_y))
    return {"final": scores[-1], "best": max(scores), "success": success[-1]}


def _options(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tree.items() if k != "name"}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return values[0], float("nan")
    return statistics.fmean(values), quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5


def shown(values: list[float]) -> str:
    """Mean ± half the interval's width; fewer than three values one by one."""
    if len(values) < 3:
        return ", ".join(f"{v:.1f}" for v in values)
    mean, half = interval(values)
    return f"{mean:.1f} ± {half:.1f}"


def load(path: Path) -> list[dict[str, Any]]:
    """The finished runs on record; a line cut short by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def tables(job: Mapping[str, Any], runs: list[dict[str, Any]]) -> Iterator[str]:
    """One Markdown table a setting: rules against attacks."""
    for name, setting in job["settings"].items():
        metrics = ("final", "best") if setting["kind"] == "momentum" else ("final", "success")
        yield f"\n**{name}**: {setting['title']}. Cells: {' / '.join(metrics)}, %.\n"
        yield "| rule | " + " | ".join(setting["attacks"]) + " |"
        yield "| --- |" + " --- |" * len(setting["attacks"])
        for rule in setting["rules"]:
            cells = [_cell(runs, name, rule, attack, metrics) for attack in setting["attacks"]]
            yield f"| {rule} | " + " | ".join(cells) + " |"


def _cell(runs: list[dict[str, Any]], setting: str, rule: str, attack: str, metrics: tuple[str, ...]) -> str:
    mine = [r for r in runs if (r["setting"], r["rule"], r["attack"]) == (setting, rule, attack)]
    if not mine:
        return "-"
    parts = []
    for metric in metrics:
        parts.append(shown([100 * r[metric] for r in mine]))
    return " / ".join(parts)


def claims(job: Mapping[str, Any], runs: list[dict[str, Any]]) -> Iterator[str]:
    """The differences that the claims are about, in points, paired by seed."""
    scores = {r["key"]: r for r in runs}
    yield "\n| difference | final | best |"
    yield "| --- | --- | --- |"
    for claim in job["claims"]:
        cells = []
        for metric in ("final", "best"):
            pairs = [
                [f"{'/'.join(claim[side])}/{seed}" for side in ("of", "over")] for seed in range(job["seeds"])
            ]
            known = [(scores[a][metric], scores[b][metric]) for a, b in pairs if a in scores and b in scores]
            mean, half = (
                interval([100 * (a - b) for a, b in known]) if known else (float("nan"), float("nan"))
            )
            cells.append(f"{mean:+.1f} ± {half:.1f}")
        of, over = (", ".join(claim[side]) for side in ("of", "over"))
        yield f"| {of} minus {over} | " + " | ".join(cells) + " |"


def main() -> None:
    """Plays what is not on record yet, or prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, nargs="?", default=Path("benchmarks/configs/byzantine.toml"))
    parser.add_argument("--out", type=Path, default=Path("byzantine.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of what is on record")
    parser.add_argument("--only", nargs="*", default=[], help="settings to play; all by default")
    asked = parser.parse_args()
    job = tomllib.loads(asked.config.read_text(encoding="utf-8"))
    if asked.table:
        runs = load(asked.out)
        sys.stdout.write("\n".join([*tables(job, runs), *claims(job, runs)]) + "\n")
        return
    torch.set_num_threads(1)
    done = {r["key"] for r in load(asked.out)}
    for case in cases(job):
        if case.key in done or (asked.only and case.setting not in asked.only):
            continue
        began = time.perf_counter()
        line = {**play(job, case), "seconds": round(time.perf_counter() - began, 1)}
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
