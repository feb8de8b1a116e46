"""`compression` in jobs: fewer bytes as really sent, the same sum under every protection, resumed, clipped where sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from securefed.assembly import assemble
from securefed.config import Component, load_config
from securefed.errors import ConfigError
from securefed.federation import resume, run
from securefed.parts import Parts
from securefed.protect.plain import CHECK, HEADER
from securefed.registry import ALGORITHMS, make_compression
from securefed.training.client import ClientJob
from tests.entropy import SeededEntropy
from tests.stopping import StopAfter

JOB: dict[str, Any] = {
    "name": "small",
    "rounds": 3,
    "weights": "equal",
    "data": {"name": "digits", "clients": 5, "partition": "iid", "limit": 400},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 3, "learning_rate": 0.3, "batch_size": 32},
    "evaluate": {"baselines": False, "every": 0, "clients": False},
    "tracking": {"report": False},
    "engine": {"threads": 1, "checkpoint_every": 1},
}
D = 650
EXAMPLE = {
    "privacy.unit": "example",
    "privacy.noise_multiplier": 1.0,
    "privacy.delta": 1e-4,
    "privacy.sample_rate": 0.2,
}
CLIENT = {"privacy.unit": "client", "privacy.noise_multiplier": 1.0, "privacy.delta": 1e-2}
LINEAR = {
    "random_k": {"name": "random_k", "share": 0.25},
    "count_sketch": {"name": "count_sketch", "share": 0.5, "top": 0.1},
    "low_rank": {"name": "low_rank", "rank": 2},
}
CODED = {"top_k": {"name": "top_k", "share": 0.1}, "quantized": {"name": "quantized"}}
ALL = {**LINEAR, **CODED}


def state_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors")


def sent(folder: Path) -> float:
    found: float = json.loads((folder / "bytes.json").read_text())["mib_up"] * 2**20
    return found


@pytest.mark.parametrize("name", CODED)
def test_a_coded_update_takes_the_bytes_of_its_header_its_code_and_its_checksum(
    name: str, home: Path, tmp_path: Path
) -> None:
    run({**JOB, "compression": CODED[name]}, folder=tmp_path / "a")
    options = {k: v for k, v in CODED[name].items() if k != "name"}
    coding = make_compression(Component(name, options))
    assert sent(tmp_path / "a") == pytest.approx(3 * 5 * (HEADER.size + coding.bytes_of(D) + CHECK.size))


@pytest.mark.parametrize("name", LINEAR)
def test_linear_maps_under_masking_give_the_sum_that_they_give_in_the_clear(
    name: str, home: Path, tmp_path: Path
) -> None:
    for protection in ("plain", "masking"):
        run({**JOB, "compression": LINEAR[name]}, {"protection": protection}, folder=tmp_path / protection)
    run(JOB, {"protection": "masking"}, folder=tmp_path / "whole")
    plain, masked = (state_of(tmp_path / p)["vector"] for p in ("plain", "masking"))
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(masked, plain, atol=1e-4)
    assert sent(tmp_path / "masking") < sent(tmp_path / "whole")


def test_a_projection_travels_encrypted(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra ckks is not installed")
    for protection in ("plain", "ckks"):
        run(
            {**JOB, "compression": LINEAR["random_k"]},
            {"protection": protection},
            folder=tmp_path / protection,
        )
    plain, encrypted = (state_of(tmp_path / p)["vector"] for p in ("plain", "ckks"))
    np.testing.assert_allclose(encrypted, plain, atol=1e-4)


@pytest.mark.parametrize("name", [*ALL, "random_k with memory"])
def test_a_resumed_run_ends_with_the_same_bits_memory_included(name: str, home: Path, tmp_path: Path) -> None:
    chosen = ALL.get(name, {**LINEAR["random_k"], "error_feedback": True})
    job = {**JOB, "compression": chosen}
    run(job, folder=tmp_path / "whole")
    run(job, folder=tmp_path / "cut", stop_flag=StopAfter(1))
    resume(tmp_path / "cut")
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for key in whole:
        np.testing.assert_array_equal(whole[key], cut[key])
    remembers = any(k.startswith(("residual.", "memory.")) for k in whole)
    assert remembers == (name not in ("random_k", "quantized"))


@pytest.mark.parametrize("name", ["random_k", "low_rank", "top_k"])
def test_a_rule_over_rows_that_trims_nobody_ends_where_the_mean_does(
    name: str, home: Path, tmp_path: Path
) -> None:
    """Rows are lifted into d coordinates one by one, and what the server remembers stays the same."""
    for rule in ("mean", {"name": "trimmed_mean", "f": 0}):
        folder = tmp_path / (rule if isinstance(rule, str) else "rows")
        run({**JOB, "compression": ALL[name], "aggregator": rule}, folder=folder)
    mean, rows = (state_of(tmp_path / n)["vector"] for n in ("mean", "rows"))
    assert np.abs(mean).max() > 0.01
    np.testing.assert_allclose(rows, mean, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_under_client_level_noise_what_is_sent_is_what_was_clipped(name: str, home: Path) -> None:
    clip = 0.05
    config = load_config({**JOB, "compression": ALL[name]}, {**CLIENT, "privacy.max_grad_norm": clip})
    assembly = assemble(config)
    parts = Parts(assembly, "clip", SeededEntropy(1))
    try:
        names = assembly.model.layout.names
        start = assembly.model.read(assembly.model.layout)
        outcome = parts.runner.run_job(ClientJob(0, 0, names, names, start, 1.0))
    finally:
        parts.close()
    assert outcome.update is not None
    norm = float(np.linalg.norm(outcome.update.vector.astype(np.float64)))
    assert 0.5 * clip < norm <= clip


@pytest.mark.parametrize("name", ALL)
def test_every_compression_runs_under_client_level_noise_at_the_same_price(
    name: str, home: Path, tmp_path: Path
) -> None:
    whole = run(JOB, CLIENT, folder=tmp_path / "whole")
    small = run({**JOB, "compression": ALL[name]}, CLIENT, folder=tmp_path / "small")
    assert whole.ledger is not None
    assert small.ledger is not None
    assert small.ledger.epsilon(1e-2) == whole.ledger.epsilon(1e-2)


@pytest.mark.parametrize("name", LINEAR)
def test_noise_in_integers_fits_what_is_sent(name: str, home: Path, tmp_path: Path) -> None:
    noise = {**CLIENT, "privacy.noise": "skellam", "protection": "masking"}
    result = run({**JOB, "rounds": 2, "compression": LINEAR[name]}, noise, folder=tmp_path / "a")
    assert result.rounds == 2


@pytest.mark.parametrize("name", ["top_k", "low_rank"])
def test_under_example_level_noise_memory_holds_noised_numbers_alone(name: str, home: Path) -> None:
    """What is sent and what is kept add up to the journaled vector, which carries its noise."""
    config = load_config({**JOB, "compression": ALL[name]}, EXAMPLE)
    assembly = assemble(config)
    parts = Parts(assembly, "noised", SeededEntropy(1))
    try:
        names = assembly.model.layout.names
        start = assembly.model.read(assembly.model.layout)
        outcome = parts.runner.run_job(ClientJob(2, 0, names, names, start, 1.0))
        assert parts.ledger is not None
        stored = parts.ledger.outbox("noised", 2, 0)
        again = parts.runner.run_job(ClientJob(2, 0, names, names, start, 1.0))
    finally:
        parts.close()
    assert stored is not None
    assert outcome.update is not None
    assert again.update is not None
    assert outcome.residual is not None
    assert parts.sending is not None
    got, _ = parts.sending.received(outcome.update.vector, assembly.model.layout, 0, {})
    np.testing.assert_allclose(got + outcome.residual, load(stored)["update"], atol=1e-6)
    np.testing.assert_array_equal(again.update.vector, outcome.update.vector)  # sent again byte for byte


def test_masking_refuses_a_coding_and_names_the_linear_ones() -> None:
    with pytest.raises(ConfigError, match="random_k"):
        load_config({**JOB, "compression": "top_k"}, {"protection": "masking"})


@pytest.mark.parametrize("algorithm", ["fedbuff", "ditto", "finetune", "distill"])
def test_an_algorithm_named_by_its_class_is_refused_like_one_named_by_its_word(algorithm: str) -> None:
    path = ALGORITHMS[algorithm]
    options = {"fedbuff": {"concurrency": 4}}.get(algorithm, {})
    rest = {"clients_per_round": 2, "clock.seconds": 1.0} if algorithm == "fedbuff" else {}
    for name in (algorithm, path):
        job = {**JOB, "algorithm": {"name": name, **options}}
        load_config(job, rest)
        with pytest.raises(ConfigError, match=f"algorithm {algorithm} sends something else"):
            load_config({**job, "compression": "random_k"}, rest)
