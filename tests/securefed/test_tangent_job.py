"""The adapter tangent in whole jobs, on a tiny encoder: private, masked, resumed between its phases, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import securefed as sf
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.errors import ConfigError
from securefed.federation import resume, run
from securefed.gains import train_alone
from securefed.models import load_result
from securefed.parts import Parts
from tests.results import model_of, rounds_of
from tests.securefed.models import tiny
from tests.stopping import StopAfter

EXAMPLE = {
    "privacy.unit": "example",
    "privacy.noise_multiplier": 0.7,
    "privacy.delta": 1e-3,
    "privacy.sample_rate": 0.5,
}
MASKED = {"protection": {"name": "masking", "below_table": True}}
PHASES = ["centre", "head", "head", "centre", "tangent", "tangent"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tangents")
    return {
        "rounds": len(PHASES),
        "weights": "equal",
        "algorithm": {"name": "fedavg", "head_rounds": 2},
        "data": tiny.three_clients(folder, 90),
        "model": {
            "name": str(tiny.tiny_bert(folder / "bert")),
            "adapter": "tangent",
            "layers": [0, 1],
            "head_layers": 2,
            "head_centre": True,
        },
        "train": {"steps": 1, "learning_rate": 4.0},
        "evaluate": {"baselines": False, "every": 0, "clients": False},
        "tracking": {"report": False},
        "engine": {"threads": 1, "checkpoint_every": 1},
    }


def test_a_private_masked_job_trains_twice_pays_for_every_round_and_its_folder_loads(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    result = run(job, {**EXAMPLE, **MASKED}, folder=tmp_path / "a")
    assert result.ledger is not None
    assert sum(e.steps for e in result.ledger.events(client=0)) == len(PHASES)
    rounds = rounds_of(tmp_path / "a")
    assert [r["phase"] for r in rounds] == PHASES
    model = load_result(tmp_path / "a" / "adapter")
    np.testing.assert_array_equal(model.read(model.layout), model_of(tmp_path / "a"))
    assert model.parameters["anchor.weight"].any()
    assert model.parameters["anchor.centre"].any()


def test_masked_and_plain_end_alike(job: dict[str, Any], home: Path, tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("masking", MASKED)):
        run(job, more, folder=tmp_path / name)
    np.testing.assert_allclose(model_of(tmp_path / "masking"), model_of(tmp_path / "plain"), atol=2e-3)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_that_stopped_about_the_change_ends_with_the_same_bits(
    stop: int, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    run(job, {}, folder=tmp_path / "whole")
    run(job, {}, folder=tmp_path / "cut", stop_flag=StopAfter(stop))
    resume(tmp_path / "cut")
    np.testing.assert_array_equal(model_of(tmp_path / "cut"), model_of(tmp_path / "whole"))


def test_nothing_of_the_first_head_is_sent_into_the_second(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    """What a compression left unsent, and what a rule with momentum remembers, are of tensors that begin again."""
    sparse = {
        "model.head_centre": False,
        "rounds": 4,
        "compression": {"name": "low_rank", "rank": 1},
        "aggregator": {"name": "centered_clipping", "radius": 1.0},
        "protection": "plain",
    }
    run(job, sparse, folder=tmp_path / "a", stop_flag=StopAfter(2))
    folders = sorted((tmp_path / "a" / "checkpoint").glob("round-*"))
    before, after = (load_file(f / "state.safetensors") for f in folders[-2:])
    kept = {n.partition(".")[0] for n in before}
    assert {"residual", "memory", "rule"} <= kept
    assert not {"residual", "memory", "rule"} & {n.partition(".")[0] for n in after}


@pytest.mark.parametrize("head_rounds", [0, 4, 5, 9])
def test_head_rounds_that_leave_nothing_are_told_before_anything_is_charged(
    head_rounds: int, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"at least 1|leaves none of rounds=6"):
        run(job, {**EXAMPLE, "algorithm.head_rounds": head_rounds}, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_patience_does_not_end_a_run_where_the_second_head_begins(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    watched = {
        "rounds": 12,
        "algorithm.head_rounds": 6,
        "evaluate.every": 1,
        "stop.patience": 1,
        "stop.metric": "loss",
    }
    run(job, watched, folder=tmp_path / "a")
    rounds = rounds_of(tmp_path / "a")
    assert rounds[-1]["phase"] == "tangent"


def test_what_is_handed_out_is_averaged_over_one_head_alone(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    run(job, {"server.average": 0.9}, folder=tmp_path / "a", stop_flag=StopAfter(3))
    model = load_result(tmp_path / "a" / "adapter")
    head = model.parameters["head.weight"]
    assert not head.any()  # the second begins at zero, without a trace of the first


def test_only_what_a_later_run_can_ask_for_is_kept_on_disk(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    kept: list[set[str]] = []
    for name in ("a", "b"):
        run(job, {**EXAMPLE, "train.cache_on_disk": "always"}, folder=tmp_path / name)
        kept.append({p.name for p in (home / "states").glob("*.states")})
    assert kept[0]
    assert kept[0] == kept[1]


def test_an_audit_says_that_it_does_not_follow_tangents(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    run(job, {}, folder=tmp_path / "a")
    with pytest.raises(sf.AuditError, match="a head on tangents reads gradients"):
        sf.audit(tmp_path / "a")


def test_cached_and_uncached_end_alike(job: dict[str, Any], home: Path, tmp_path: Path) -> None:
    for name, kept in (("cached", True), ("uncached", False)):
        run(job, {"train.cache_frozen": kept}, folder=tmp_path / name)
    np.testing.assert_allclose(model_of(tmp_path / "cached"), model_of(tmp_path / "uncached"), atol=1e-4)


def test_fedsgd_plays_both_phases_under_one_noise(job: dict[str, Any], home: Path, tmp_path: Path) -> None:
    shared = {"algorithm.name": "fedsgd", "privacy.noise": "central", "privacy.max_grad_norm": 0.5}
    run({**job, "train": {"steps": 1}}, {**EXAMPLE, **shared}, folder=tmp_path / "a")
    rounds = rounds_of(tmp_path / "a")
    assert [r["phase"] for r in rounds] == PHASES


def test_who_trains_alone_changes_over_with_all_others_also_where_it_missed_that_round(
    job: dict[str, Any], home: Path
) -> None:
    parts = Parts(assemble(load_config(job, {"evaluate.alone": True})), "run", SystemEntropy())
    try:
        first, model = parts.initial, parts.model
        assert first is not None
        vector = train_alone(parts, 0, (0, 1, 3, 4), first)
        early = train_alone(parts, 0, (0, 1), first, 2)
    finally:
        parts.close()
    assert model.layout.unflatten(vector)["anchor.weight"].any()
    stopped = model.layout.unflatten(early)  # before the others changed over
    assert stopped["head.weight"].any()
    assert not stopped["anchor.weight"].any()


def test_noise_that_is_taken_back_later_is_refused(job: dict[str, Any]) -> None:
    correlated = {
        "model.head_centre": False,
        "clients_per_round": 1,
        "privacy.unit": "client",
        "privacy.noise": "correlated",
        "privacy.noise_multiplier": 1.0,
        "privacy.delta": 1e-3,
    }
    with pytest.raises(ConfigError, match="a head on tangents begins anew in mid-run"):
        load_config(job, correlated)


@pytest.mark.parametrize("algorithm", ["ditto", "fedper", "fedrep", "finetune", "fedbuff", "distill"])
def test_algorithms_whose_clients_do_not_change_over_together_are_refused(
    algorithm: str, job: dict[str, Any]
) -> None:
    more = {"clients_per_round": 1, "algorithm.concurrency": 2} if algorithm == "fedbuff" else {}
    with pytest.raises(ConfigError, match="begins a second head where the first ended"):
        load_config({**job, "algorithm": {"name": algorithm}}, more)
