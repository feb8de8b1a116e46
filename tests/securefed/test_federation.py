"""The round loop on small real data: it learns, repeats, resumes, refuses, and never forgets a spend."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed import run_folder
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.errors import CheckpointError, ConfigError, PrivacyError
from securefed.federation import Result, resume, run
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.training.client import ClientRunner
from tests.entropy import SeededEntropy
from tests.stopping import StopAfter

DIGITS: dict[str, Any] = {
    "name": "digits",
    "rounds": 6,
    "data": {"name": "digits", "clients": 4, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 1, "learning_rate": 0.3, "batch_size": 32},
    "evaluate": {"baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1},
}
PRIVATE: dict[str, Any] = {
    **DIGITS,
    "train": {"steps": 2, "learning_rate": 0.5},
    "privacy": {
        "unit": "example",
        "noise_multiplier": 1.0,
        "delta": 1e-4,
        "sample_rate": 0.1,
        "max_grad_norm": 1.0,
    },
}


def model_of(folder: Path) -> bytes:
    newest = sorted((folder / "checkpoint").glob("round-*"))[-1]
    return (newest / "state.safetensors").read_bytes()


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_federation_learns_digits_and_leaves_a_folder_that_explains_itself(folder: Path) -> None:
    result = run(DIGITS, folder=folder)
    assert result.metrics["accuracy"] > 0.85
    assert (result.rounds, result.stopped, result.ledger) == (6, "rounds", None)
    for name in ("config.toml", "environment.json", "metrics.jsonl", "bytes.json", "report.html", "adapter"):
        assert (folder / name).exists(), name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(6))


def test_two_runs_with_one_seed_end_in_the_same_bits(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(DIGITS, folder=tmp_path / name)
    assert model_of(tmp_path / "a") == model_of(tmp_path / "b")
    run(DIGITS, {"seed": 1}, folder=tmp_path / "c")
    assert model_of(tmp_path / "a") != model_of(tmp_path / "c")


def test_a_run_folder_holds_all_to_run_it_again(home: Path, tmp_path: Path) -> None:
    run(DIGITS, folder=tmp_path / "a")
    run(tmp_path / "a" / "config.toml", folder=tmp_path / "b")
    assert model_of(tmp_path / "a") == model_of(tmp_path / "b")


def test_a_pool_of_processes_gives_the_same_bits_as_one_process(home: Path, tmp_path: Path) -> None:
    run(DIGITS, folder=tmp_path / "one")
    pooled = run(DIGITS, {"engine.workers": 2}, folder=tmp_path / "two")
    one = np.frombuffer(model_of(tmp_path / "one"), np.uint8)
    assert pooled.metrics["accuracy"] > 0.85
    assert model_of(tmp_path / "two") == one.tobytes()


@pytest.mark.parametrize("adapt", [{}, {"server.optimizer": "fedadam", "server.learning_rate": 0.05}])
def test_an_interrupted_run_resumes_to_the_same_bits(
    home: Path, tmp_path: Path, adapt: dict[str, Any]
) -> None:
    run(DIGITS, adapt, folder=tmp_path / "whole")
    first = run(DIGITS, adapt, folder=tmp_path / "cut", stop_flag=StopAfter(2))
    assert (first.stopped, first.rounds) == ("interrupted", 2)
    second = resume(tmp_path / "cut")
    assert (second.stopped, second.rounds) == ("rounds", 6)
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")
    lines = [
        json.loads(line)["round"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == list(range(6))


def test_resuming_a_finished_run_plays_nothing_and_changes_nothing(folder: Path) -> None:
    run(DIGITS, folder=folder)
    before = model_of(folder)
    assert resume(folder).rounds == 6
    assert model_of(folder) == before


def test_a_run_never_writes_over_another(folder: Path) -> None:
    run(DIGITS, folder=folder)
    with pytest.raises(CheckpointError, match="exists"):
        run(DIGITS, folder=folder)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda pattern: "20261121-101500")
    config = load_config({**DIGITS, "output": str(tmp_path)})
    names = []
    for _ in range(3):
        path = run_folder.new_folder(config, None)
        path.mkdir()
        names.append(path.name)
    assert names == ["digits-20261121-101500", "digits-20261121-101500-2", "digits-20261121-101500-3"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        resume(tmp_path)


# --------------------------------------------------------------------------------------------- privacy


def spent(result: Result) -> float:
    assert result.ledger is not None
    return float(result.ledger.epsilon(1e-4))


def test_the_statement_is_the_composition_of_every_step_of_the_schedule(folder: Path) -> None:
    result = run(PRIVATE, folder=folder)
    assert spent(result) == pytest.approx(epsilon_of([SampledGaussian(1.0, 0.1, 12)], 1e-4), rel=1e-9)
    text = (folder / "privacy.json").read_text()
    assert '"delta"' in text


def test_noise_is_calibrated_for_the_whole_schedule_and_stays_within_its_target(folder: Path) -> None:
    privacy = {**PRIVATE["privacy"], "epsilon": 4.0}
    del privacy["noise_multiplier"]
    result = run({**PRIVATE, "privacy": privacy}, folder=folder)
    assert 3.9 < spent(result) <= 4.0


def test_sampled_cohorts_are_calibrated_for_the_busiest_client(folder: Path) -> None:
    privacy = {**PRIVATE["privacy"], "epsilon": 4.0}
    del privacy["noise_multiplier"]
    result = run({**PRIVATE, "clients_per_round": 2, "rounds": 8, "privacy": privacy}, folder=folder)
    assert result.stopped == "rounds"
    assert 3.9 < spent(result) <= 4.0


def test_a_step_past_the_budget_is_refused_before_it_is_taken(folder: Path) -> None:
    limit = epsilon_of([SampledGaussian(1.0, 0.1, 7)], 1e-4)  # three rounds of two steps fit, four do not
    result = run(PRIVATE, {"privacy.epsilon": limit}, folder=folder)
    assert (result.stopped, result.rounds) == ("budget", 3)
    assert spent(result) == pytest.approx(epsilon_of([SampledGaussian(1.0, 0.1, 6)], 1e-4), rel=1e-9)


def test_a_second_run_in_a_new_folder_adds_to_what_the_data_has_spent(home: Path, tmp_path: Path) -> None:
    run(PRIVATE, folder=tmp_path / "a")
    result = run(PRIVATE, folder=tmp_path / "b")
    dataset = json.loads((tmp_path / "b" / "privacy.json").read_text())
    assert dataset
    both = epsilon_of([SampledGaussian(1.0, 0.1, 24)], 1e-4)
    site = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])["site_epsilon"]
    assert site == pytest.approx(both, rel=1e-6)
    assert spent(result) < site


def test_a_site_cap_holds_across_runs(home: Path, tmp_path: Path) -> None:
    cap = epsilon_of([SampledGaussian(1.0, 0.1, 17)], 1e-4)
    run(PRIVATE, {"privacy.site_epsilon": cap}, folder=tmp_path / "a")
    result = run(PRIVATE, {"privacy.site_epsilon": cap}, folder=tmp_path / "b")
    assert (result.stopped, result.rounds) == ("budget", 2)


class Crash(BaseException):
    """Ends a run at once, as a kill would; not an Exception, so nothing handles it."""


def test_an_unfinished_attempt_stays_charged_and_is_drawn_anew(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClientRunner._train

    def crash_in_round_two(self: ClientRunner, job: Any) -> Any:
        if job.round == 2 and job.client == 1:
            raise Crash
        return original(self, job)

    with monkeypatch.context() as patched:
        patched.setattr(ClientRunner, "_train", crash_in_round_two)
        with pytest.raises(Crash):
            run(PRIVATE, folder=tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert result.ledger is not None
    assert result.ledger.epsilon(1e-4, client=1) == pytest.approx(
        epsilon_of([SampledGaussian(1.0, 0.1, 14)], 1e-4), rel=1e-9
    )
    assert result.ledger.epsilon(1e-4, client=3) == pytest.approx(
        epsilon_of([SampledGaussian(1.0, 0.1, 12)], 1e-4), rel=1e-9
    )


def test_a_finished_update_is_sent_again_byte_for_byte_and_charged_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import securefed.rounds as rounds

    sent: list[dict[int, bytes]] = []
    original = rounds.exchange

    def remember(protection: Any, parameters: Any, updates: Any, entropy: Any) -> Any:
        if parameters.round == 2:
            sent.append({k: u.vector.tobytes() for k, u in updates.items()})
            if len(sent) == 1:
                raise Crash  # after every update was settled, before the server has a checkpoint
        return original(protection, parameters, updates, entropy)

    monkeypatch.setattr(rounds, "exchange", remember)
    with pytest.raises(Crash):
        run(PRIVATE, folder=tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert sent[0] == sent[1], "with the system's randomness a redrawn update could not be equal"
    assert spent(result) == pytest.approx(epsilon_of([SampledGaussian(1.0, 0.1, 12)], 1e-4), rel=1e-9)


def test_dp_under_test_entropy_resumes_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    run(PRIVATE, folder=tmp_path / "whole", entropy=SeededEntropy(7))
    run(PRIVATE, folder=tmp_path / "cut", entropy=SeededEntropy(7), stop_flag=StopAfter(3))
    resume(tmp_path / "cut", entropy=SeededEntropy(7))
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")


def test_two_private_runs_draw_different_noise(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(PRIVATE, folder=tmp_path / name)
    assert model_of(tmp_path / "a") != model_of(tmp_path / "b")


def test_private_runs_in_a_pool_share_the_sites_ledger(folder: Path) -> None:
    result = run(PRIVATE, {"engine.workers": 2}, folder=folder)
    assert result.ledger is not None
    with Ledger.site() as ledger:
        assert (
            sum(e.steps for e in ledger.events(run=json.loads((folder / "run.json").read_text())["run"]))
            == 4 * 12
        )


def test_delta_above_one_over_the_largest_shard_is_refused_before_anything_is_spent(folder: Path) -> None:
    with pytest.raises(ConfigError, match="1/records of every shard"):
        run(PRIVATE, {"privacy.delta": 0.01}, folder=folder)
    assert not folder.exists()


# -------------------------------------------------------------------------------------- client level


CLIENT: dict[str, Any] = {
    **DIGITS,
    "data": {"name": "digits", "clients": 40, "partition": "iid"},
    "clients_per_round": 10,
    "privacy": {"unit": "client", "noise_multiplier": 1.5, "delta": 1e-3, "max_grad_norm": 0.5},
}


def test_client_level_dp_is_a_ledger_of_its_own(folder: Path) -> None:
    result = run(CLIENT, folder=folder)
    assert result.ledger is not None
    expected = epsilon_of([SampledGaussian(1.5, 0.25, 6)], 1e-3)
    assert result.ledger.epsilon(1e-3, unit="client") == pytest.approx(expected, rel=1e-9)
    with pytest.raises(PrivacyError, match="client level"):
        result.ledger.epsilon(1e-3, unit="example")
    text = result.ledger.statement(1e-3).text()
    assert "every one of the 40 clients" in text
    assert "not against the server" in text


def test_client_level_aggregate_moves_by_at_most_clip_over_denominator_when_a_client_lies(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server clips what it gets: a client that skips its own clip cannot move the sum further."""
    import securefed.privacy.shared_release as client_side

    monkeypatch.setattr(client_side, "clip_update", lambda v, c: type("C", (), {"vector": v * 1e6})())
    config = {
        **CLIENT,
        "privacy": {**CLIENT["privacy"], "noise_multiplier": 1e-9},
        "rounds": 1,
        "clients_per_round": 0,
    }
    run(config, folder=tmp_path / "lied", entropy=SeededEntropy(1))
    from safetensors.numpy import load

    model = assemble(load_config(config)).model
    moved = load(model_of(tmp_path / "lied"))["vector"] - model.read(model.layout)
    assert np.linalg.norm(moved) > 0.01, "the lie arrived"
    assert np.linalg.norm(moved) <= 0.5 * (1 + 1e-5)


def test_a_client_level_round_cut_after_its_release_applies_the_same_bytes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import securefed.federation as federation

    original = federation.save_state

    def crash(folder: Path, state: Any, identity: Any) -> Any:
        if state.round == 3:
            raise Crash
        return original(folder, state, identity)

    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_state", crash)
        with pytest.raises(Crash):
            run(CLIENT, folder=tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert result.ledger is not None
    expected = epsilon_of([SampledGaussian(1.5, 0.25, 6)], 1e-3)
    assert result.ledger.epsilon(1e-3, unit="client") == pytest.approx(expected, rel=1e-9), "charged once"


# ------------------------------------------------------------------------------------- liars, stopping


def test_a_non_finite_update_is_refused_counted_and_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClientRunner._train

    def poison(self: ClientRunner, job: Any) -> Any:
        outcome = original(self, job)
        if job.client == 2:
            outcome.update.vector[0] = np.nan
        return outcome

    monkeypatch.setattr(ClientRunner, "_train", poison)
    result = run(DIGITS, folder=folder)
    assert result.metrics["accuracy"] > 0.8
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "non-finite" in last["refused"]["2"]
    assert last["survivors"] == [0, 1, 3]


def test_convergence_stops_a_run_without_dp(folder: Path) -> None:
    result = run(DIGITS, {"rounds": 200, "stop.patience": 2, "stop.min_delta": 0.02}, folder=folder)
    assert result.stopped == "converged"
    assert result.rounds < 100


def test_a_stop_flag_set_by_another_thread_ends_the_run_after_the_round(folder: Path) -> None:
    flag = threading.Event()
    flag.set()
    assert run(DIGITS, folder=folder, stop_flag=flag).rounds == 1


def test_shard_sizes_weigh_without_dp_and_all_weigh_the_same_under_dp(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import securefed.rounds as rounds

    seen: list[dict[int, float]] = []
    original = rounds.exchange

    def remember(protection: Any, parameters: Any, updates: Any, entropy: Any) -> Any:
        seen.append({k: u.weight for k, u in updates.items()})
        return original(protection, parameters, updates, entropy)

    monkeypatch.setattr(rounds, "exchange", remember)
    skewed = {"data": {"name": "digits", "clients": 4, "partition": "quantity", "alpha": 1.0}, "rounds": 1}
    run({**DIGITS, **skewed}, folder=tmp_path / "a")
    run({**PRIVATE, **skewed, "privacy": {**PRIVATE["privacy"], "delta": 1e-5}}, folder=tmp_path / "b")
    assert len(set(seen[0].values())) > 1
    assert set(seen[1].values()) == {1.0}


def test_the_config_of_a_run_is_stored_resolved(folder: Path) -> None:
    run(DIGITS, {"rounds": 1}, folder=folder)
    assert load_config(folder / "config.toml") == load_config(DIGITS, {"rounds": 1})
