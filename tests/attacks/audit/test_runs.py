"""Runs end to end through the command: language models, text classifiers, DP; views as the server had them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import securefed as sf
from securefed.cli import main
from securefed_attacks.audit.run_views import reveals_words
from securefed_attacks.audit.sampling import same_mix
from securefed_benchmarks import reconstruction
from tests.attacks.audit import words

ROOT = Path(__file__).parents[3]
OTHERS = ("train", "parcel", "doctor", "plumber", "guest", "letter", "driver", "teacher")


def digits(tmp_path: Path, **more: Any) -> Path:
    job = {
        "rounds": 2,
        "output": str(tmp_path),
        "evaluate.baselines": False,
        "tracking.report": False,
        **more,
    }
    return sf.run(ROOT / "configs" / "digits.toml", overrides=job, folder=tmp_path / "run").folder


def audited(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command says as JSON."""
    assert main(["audit", str(folder), "--json", "--output", str(folder / "audit.html"), *words]) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    return tree


def views(tree: dict[str, Any]) -> set[str]:
    return {v["name"] for v in tree["views"] if v["made"]}


def found(tree: dict[str, Any], section: str) -> dict[str, str]:
    return {f["view"]: f["verdict"] for f in tree["findings"] if f["section"] == section}


@pytest.mark.parametrize("kind", words.KINDS)
def test_a_text_runs_client_is_read_from_its_update_and_not_from_a_masked_sum(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The same records, asked of both runs: client 0's update gives its tokens, the sum of all does not."""
    for name, protection in (("plain", {"name": "plain"}), ("masked", {"name": "masking"})):
        (tmp_path / name).mkdir()
        job = words.job(tmp_path / name, kind, protection=protection)
        folder = sf.run(job, folder=tmp_path / name / "run").folder
        tree = audited(folder, capsys, "--client", "0", "--shadows", "0", "--quiet")
        rebuilt = found(tree, "reconstruction")
        page = (folder / "audit.html").read_text(encoding="utf-8")
        assert not any(word in page for word in words.WORDS)
        if name == "plain":
            assert rebuilt["raw update"] == tree["verdict"] == "LEAKS"
            assert {"raw update", "sum", "final model"} == views(tree)
        else:
            assert {"sum", "final model"} == views(tree)
            assert rebuilt["sum"] != "LEAKS"
        assert len(tree["rounds"]) == 3


def test_a_text_run_under_dp_gives_no_token(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same job as above, which leaks without: one step at epsilon 8 for a record leaves nothing to read."""
    job = words.job(
        tmp_path, "llama", privacy={"unit": "example", "epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 0.1}
    )
    folder = sf.run(job, folder=tmp_path / "run").folder
    tree = audited(folder, capsys, "--client", "0", "--shadows", "0", "--quiet")
    assert {"noised", "sum", "final model"} == views(tree)
    assert found(tree, "reconstruction")["noised"] != "LEAKS"
    assert found(tree, "epsilon") == {"": "UNDERPOWERED"}, "nobody threw coins for this run's records"
    noised = next(r for r in tree["reconstruction"] if r["view"] == "noised")
    assert noised["exact"]["ours"]["hits"] == 0


@pytest.mark.slow
@pytest.mark.model("smollm2")
def test_a_run_of_smollm2_is_read_from_one_clients_update(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], require_model: Callable[[str], Any]
) -> None:
    """A causal language model of 135 million numbers, LoRA of rank 64: client 0's text comes back, nobody else's."""
    require_model("smollm2")
    texts = [
        *reconstruction.CONTINUED,
        *(f"The {w} arrived late and nobody was there to open it." for w in OTHERS),
    ]
    path = tmp_path / "records.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "client"])
        rows.writerows([t, f"c{k % 4}"] for k, t in enumerate(texts))
    job = {
        "name": "smollm2",
        "rounds": 2,
        "data": {
            "name": str(path),
            "clients": 4,
            "client_column": "client",
            "min_examples": 1,
            "max_length": 24,
        },
        "model": {
            "name": "smollm2",
            "task": "causal-lm",
            "adapter": "lora",
            "rank": 64,
            "alpha": 64.0,
            "layers": [0, 1],
        },
        "train": {"steps": 1, "learning_rate": 0.5, "batch_size": 4},
        "evaluate": {"baselines": False, "every": 0},
        "tracking": {"keep_views": 2, "report": False},
    }
    folder = sf.run(job, folder=tmp_path / "run").folder
    tree = audited(folder, capsys, "--client", "0", "--shadows", "0", "--sample", "8", "--quiet")
    assert views(tree) == {"raw update", "sum", "final model"}
    raw = next(r for r in tree["reconstruction"] if r["view"] == "raw update")
    assert raw["exact"]["ours"]["hits"] >= 0.8 * raw["tokens"]
    assert raw["exact"]["ours"]["hits"] == raw["exact"]["ours"]["guesses"], "no false token"
    assert found(tree, "reconstruction")["raw update"] == "LEAKS"


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ({}, {"raw update", "sum", "final model"}),
        ({"protection": "masking"}, {"sum", "final model"}),
        ({"protection": {"name": "grouped", "size": 4}}, {"sum", "final model"}),
        (
            {"privacy.unit": "client", "privacy.epsilon": 8.0},
            {"clipped", "noised", "sum", "final model"},
        ),
        (
            {"privacy.unit": "example", "privacy.epsilon": 8.0, "train.epochs": 0, "train.steps": 3},
            {"noised", "sum", "final model"},
        ),
    ],
)
def test_every_view_is_what_the_server_had_and_the_rest_says_why_not(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], made: set[str]
) -> None:
    tree = audited(
        digits(tmp_path, **{"tracking.keep_views": 5, **more}), capsys, "--quiet", "--sample", "300"
    )
    assert views(tree) == made
    assert all(v["why_not"] for v in tree["views"] if not v["made"])
    assert [r["name"] for r in tree["rounds"]] == ["round 1", "round 2"]
    assert all(0 <= r["auc"]["low"] <= r["auc"]["high"] <= 1 for r in tree["rounds"])
    clients = {v["name"]: v["clients"] for v in tree["views"] if v["made"]}
    grouped = "grouped" in str(more)
    assert clients["sum"] == (4 if grouped else 8)
    said = "4 sums seen are 2 independent equations in 8 clients' updates; they determine single updates of nobody"
    assert tree["facts"].get("Group sums") == (said if grouped else None)
    if "privacy.unit" in more:
        assert found(tree, "epsilon") == {"": "UNDERPOWERED"}, "nobody threw coins for this run's records"


def test_an_encrypted_runs_sum_is_seen_decrypted_only(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = audited(digits(tmp_path, **{"tracking.keep_views": 1, "protection": "ckks"}), capsys, "--quiet")
    assert views(tree) == {"decrypted", "final model"}


def test_a_client_that_took_no_part_and_a_folder_without_views_are_refused(
    home: Path, tmp_path: Path
) -> None:
    kept = digits(tmp_path / "a", **{"tracking.keep_views": 1})
    with pytest.raises(sf.AuditError, match="client 77 took part in none of the 1 kept rounds"):
        sf.audit(kept, client=77)
    with pytest.raises(sf.AuditError, match=r"run with tracking\.keep_views"):
        sf.audit(digits(tmp_path / "b"), client=0)


def test_others_of_the_same_mix_are_drawn_where_there_are_enough() -> None:
    rng = np.random.default_rng(0)
    members, others = np.repeat([0, 1], [90, 30]), np.repeat([0, 1, 2], [200, 200, 50])
    drawn = others[same_mix(members, others, rng)]
    assert np.bincount(drawn).tolist() == [200, 66]
    few = np.repeat([0, 1], [90, 30])
    assert len(same_mix(members, few[:50], rng)) == 50, (
        "label 1 is not among them: all are taken, and shift is measured"
    )
    assert len({reveals_words(r) for r in ("updates", "sum", "group sums")}) == 3


def test_a_distillations_student_is_audited_as_a_model_and_not_as_a_sum_of_updates(
    home: Path, tmp_path: Path
) -> None:
    """It learned from answers on public records: to look for clients' records in its steps would find nothing, and say so."""
    from securefed_attacks.audit.folder import open_run

    distilled = {"algorithm": "distill", "distill": {"records": 60, "student_steps": 10}, "weights": "equal"}
    given = open_run(digits(tmp_path, **distilled), 20, 0)
    assert given.recipe.observed == "final"
    for _, made in given.rounds:
        assert {c.name for c in made if c.update is not None} == {"final model"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, True),
        ({"train.head_learning_rate": 0.7}, False),
        ({"train.schedule": "cosine"}, False),
        ({"train.label_smoothing": 0.1}, False),
        ({"algorithm": "fedprox"}, False),
        ({"algorithm": "securefed.algorithms.fedprox:FedProx"}, False),
    ],
)
def test_local_work_that_a_recipe_cannot_say_is_not_replayed_as_something_else(
    more: dict[str, Any], told: bool, home: Path, tmp_path: Path
) -> None:
    from securefed_attacks.audit.folder import open_run

    recipe = open_run(digits(tmp_path, rounds=1, **{"tracking.keep_views": 1, **more}), 20, 0).recipe
    assert (recipe.learning_rate is not None, recipe.batch_size is not None) == (told, told)
    assert bool(recipe.to_replay()) != told


def test_ranks_that_may_be_pruned_are_no_plain_local_work() -> None:
    from securefed.config import load_config
    from securefed_attacks.audit.folder import _plain

    job = {"train": {"steps": 1}, "model": {"adapter": "lora", "rank": 4, "ranks": [2, 4]}}
    told = [
        _plain(load_config(job, {"algorithm.name": "hetlora", **more}))
        for more in ({}, {"algorithm.prune": 0.5})
    ]
    assert told == [True, False]


def test_a_loss_over_a_part_of_the_vocabulary_is_no_plain_local_work() -> None:
    from securefed.config import load_config
    from securefed_attacks.audit.folder import _plain

    job = {"train": {"steps": 1}, "model": {"task": "causal-lm", "adapter": "lora"}}
    assert [_plain(load_config(job, {"model.vocabulary_sample": n})) for n in (0, 64)] == [True, False]
