"""Who gains and who loses: the rows are what an independent loop finds, and the worst are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import securefed.gains
from securefed.algorithms.ranks import held
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.evaluation import Evaluator
from securefed.federation import run
from securefed.gains import headline, train_alone
from securefed.tracking.report import write_report
from securefed.training.client import ClientRunner
from securefed.training.local import LocalWork, train_locally
from securefed.types import Vector
from tests.securefed.models import tiny

JOB: dict[str, Any] = {
    "name": "gains",
    "rounds": 3,
    "data": {"name": "digits", "clients": 4, "partition": "dirichlet", "alpha": 0.3, "limit": 600},
    "model": {"name": "mlp", "adapter": "full", "hidden": 8},
    "train": {"steps": 4, "learning_rate": 0.3},
    "evaluate": {"baselines": False, "alone": True},
    "algorithm": {"name": "ditto", "strength": 0.05},
    "engine": {"threads": 1},
    "tracking": {"report": False},
}


def gains_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "clients.json").read_text())
    return found


def test_every_client_is_beside_training_alone_and_the_global_model(home: Path, tmp_path: Path) -> None:
    result = run(JOB, folder=tmp_path / "a")
    found = gains_of(tmp_path / "a")
    rows = found["clients"]
    assert [r["client"] for r in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["gain_over_alone"] == pytest.approx(row["own"] - row["alone"])
        assert row["gain_over_global"] == pytest.approx(row["own"] - row["global"])
        assert row["own"] == pytest.approx(
            json.loads((tmp_path / "a" / "summary.json").read_text())["client_metrics"][str(row["client"])][
                "accuracy"
            ]
        )
    assert found["worst_client"] == min(rows, key=lambda r: r["own"])
    assert found["gain"] + found["lose"] <= 4
    assert result.metrics["worst_client_accuracy"] == found["worst_client"]["own"]
    assert result.metrics["gain_over_alone"] == pytest.approx(np.mean([r["gain_over_alone"] for r in rows]))


def test_alone_is_the_same_work_in_the_same_rounds_without_the_others(home: Path, tmp_path: Path) -> None:
    """An independent loop: two trainings of the job's steps a round, as Ditto has them, and no server."""
    job = load_config(JOB, {"clients_per_round": 2, "rounds": 4})
    run(job, folder=tmp_path / "a")
    took = [
        json.loads(line)["survivors"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    assembly = assemble(job)
    model, client = assembly.model, 1
    data = model.encode(assembly.shards[client].train, job.data.max_length)
    vector = model.read(model.layout)
    for round, cohort in enumerate(took):
        for phase in (0, 1) if client in cohort else ():
            work = LocalWork(client, round, tuple(sorted(model.layout.names)), phase)
            vector = train_locally(model, data, vector, work, job.train, dp=None, entropy=None, seed=0).vector
    runner = ClientRunner(job, model, assembly.shards, run="", entropy=SystemEntropy())
    mine = Evaluator(assembly, runner).predictions(vector, {}, model.layout.select(lambda n: False))
    wanted = mine[client].score(10).values()["accuracy"]
    assert gains_of(tmp_path / "a")["clients"][client]["alone"] == pytest.approx(wanted)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[int, Vector]:
    """Client -> the model that it is given by itself, once a run has ended."""
    found: dict[int, Vector] = {}

    def watched(parts: Any, client: int, *more: Any) -> Vector:
        found[client] = train_alone(parts, client, *more)
        return found[client]

    monkeypatch.setattr(securefed.gains, "train_alone", watched)
    return found


@pytest.mark.parametrize("algorithm", ["fedavg", {"name": "finetune", "tune_rounds": 2, "tune_rate": 0.01}])
def test_a_federation_of_one_gains_nothing_over_training_alone(
    home: Path, tmp_path: Path, alone: dict[int, Vector], algorithm: Any
) -> None:
    job = {**JOB, "algorithm": algorithm, "server": {"learning_rate": 0.7}}
    run(job, {"data.clients": 1, "data.partition": "iid"}, folder=tmp_path / "a")
    row = gains_of(tmp_path / "a")["clients"][0]
    assert row["own"] == row["alone"]
    newest = sorted((tmp_path / "a" / "checkpoint").glob("round-*"))[-1]
    stored = load_file(newest / "state.safetensors")
    np.testing.assert_array_equal(alone[0], stored.get("local.0", stored["vector"]))


def texts(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """A job on a few sentences and a tiny encoder."""
    lines = [f"{tiny.TEXTS[i % 6]} number {i},{i % 2}" for i in range(60)]
    (folder / "table.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    data = {"name": str(folder / "table.csv"), "clients": 2, "partition": "iid", "max_length": 16}
    name = str(tiny.tiny_bert(folder / "bert"))
    return {**JOB, "data": data, "model": {"name": name, **model}, "algorithm": "fedavg"}


@pytest.mark.parametrize("clip", [0.2, 5.0])
def test_one_client_of_fedsgd_alone_takes_the_federations_own_steps(
    home: Path, tmp_path: Path, alone: dict[int, Vector], clip: float
) -> None:
    """Its rate is the server's, and its head's centre is measured once."""
    changes = {
        "algorithm": "fedsgd",
        "data.clients": 1,
        "train": {"steps": 1},
        "server.learning_rate": 0.7,
        "privacy.unit": "example",
        "privacy.noise_multiplier": 0.0,
        "privacy.sample_rate": 1.0,
        "privacy.max_grad_norm": clip,
        "privacy.delta": 1e-4,
    }
    run(texts(tmp_path, {"adapter": "head", "head_centre": True}), changes, folder=tmp_path / "a")
    newest = sorted((tmp_path / "a" / "checkpoint").glob("round-*"))[-1]
    together = load_file(newest / "state.safetensors")["vector"]
    assert np.abs(together).max() > 0.01
    np.testing.assert_allclose(alone[0], together, atol=1e-5)


@pytest.mark.parametrize("way", ["slices", "flora"])
def test_a_client_alone_has_the_rank_that_it_has_in_the_run(
    home: Path, tmp_path: Path, alone: dict[int, Vector], way: str
) -> None:
    job = texts(tmp_path, {"adapter": "lora", "rank": 4, "ranks": [1, 4], "merged": way == "flora"})
    run({**job, "algorithm": way}, {"train.learning_rate": 0.5}, folder=tmp_path / "a")
    model = assemble(load_config({**job, "algorithm": way})).model
    for client, rank in enumerate((1, 4)):
        beyond = alone[client][held(model.layout, model.part_of, rank) == 0]
        assert not beyond.any()
        factors = model.layout.unflatten(alone[client])
        moved = [t.any(0) for n, t in factors.items() if n.endswith(".lora_B")]
        assert all(int(columns.sum()) == rank for columns in moved)


def test_domains_are_pooled_over_their_clients(home: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    generator = np.random.default_rng(0)
    lines = ["text,label,who"]
    for who in ("left", "right"):
        for i in range(60):
            label = int(generator.integers(2))
            lines.append(f"{'good fine' if label else 'bad poor'} {who} {i},{label},{who}")
    table.write_text("\n".join(lines) + "\n")
    job = {
        **JOB,
        "data": {
            "name": str(table),
            "clients": 4,
            "partition": "natural",
            "client_column": "who",
            "max_length": 16,
        },
        "model": {"name": str(tiny.tiny_bert(tmp_path / "bert")), "adapter": "lora", "rank": 2},
        "algorithm": "fedavg",
        "rounds": 1,
    }
    run(job, folder=tmp_path / "a")
    found = gains_of(tmp_path / "a")
    assert {d["domain"]: len(d["clients"]) for d in found["domains"]} == {"left": 2, "right": 2}
    for domain in found["domains"]:
        members = [r for r in found["clients"] if r["client"] in domain["clients"]]
        pooled = sum(r["own"] * r["test"] for r in members) / sum(r["test"] for r in members)
        assert domain["own"] == pytest.approx(pooled)
    assert found["worst_domain"] in found["domains"]
    assert "worst_domain_accuracy" in headline(found)


def test_the_page_names_the_worst_and_says_what_alone_is(home: Path, tmp_path: Path) -> None:
    run(
        JOB,
        {"privacy.unit": "example", "privacy.noise_multiplier": 1.0, "privacy.delta": 1e-4},
        folder=tmp_path / "a",
    )
    page = write_report(tmp_path / "a").read_text()
    found = gains_of(tmp_path / "a")
    assert "Who gains and who loses" in page
    assert f"accuracy of the worst client: {found['worst_client']['name']}" in page
    assert "without noise" in page
    assert "computed on private data" in page


def test_a_job_without_personal_parts_reports_gains_only_when_asked(home: Path, tmp_path: Path) -> None:
    run(JOB, {"algorithm": "fedavg", "evaluate.alone": False}, folder=tmp_path / "a")
    assert not (tmp_path / "a" / "clients.json").exists()
    run(JOB, {"algorithm": "fedper", "evaluate.alone": False}, folder=tmp_path / "b")
    row = gains_of(tmp_path / "b")["clients"][0]
    assert (row["alone"], row["global"]) == (None, None)  # no whole model at the server, nobody trained alone


def test_a_client_without_a_part_of_its_own_is_judged_with_the_servers(home: Path) -> None:
    """Not with the part of whoever was judged before it."""
    job = load_config(JOB)
    assembly = assemble(job)
    model = assembly.model
    runner = ClientRunner(job, model, assembly.shards, run="", entropy=SystemEntropy())
    evaluator, vector = Evaluator(assembly, runner), model.read(model.layout)
    spoilt = {0: np.full(model.layout.size, 7.0, np.float32)}
    mixed = evaluator.predictions(vector, spoilt, model.layout)
    clean = evaluator.predictions(vector, {}, model.layout)
    assert not np.array_equal(mixed[0].losses, clean[0].losses)
    assert all(np.array_equal(mixed[k].losses, clean[k].losses) for k in (1, 2, 3))
    assert np.array_equal(model.read(model.layout), vector)


def test_personal_vectors_are_in_the_checkpoint_only(home: Path, tmp_path: Path) -> None:
    run(JOB, folder=tmp_path / "a")
    newest = sorted((tmp_path / "a" / "checkpoint").glob("round-*"))[-1]
    assert {k for k in load_file(newest / "state.safetensors") if k.startswith("local.")} == {
        f"local.{k}" for k in range(4)
    }
