"""`algorithm = "distill"` in a job: unlike clients, tables under every protection, rule and guarantee, and resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from securefed.assembly import assemble, register
from securefed.config import load_config, to_toml
from securefed.errors import ConfigError, DataError, DivergedError, ModelError
from securefed.federation import resume, run
from securefed.models import load_result
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian, SkellamSum
from securefed.privacy.ledger import Ledger
from securefed.privacy.votes import vote_release
from securefed.types import SERVER
from tests.entropy import SeededEntropy

JOB: dict[str, Any] = {
    "name": "distilled",
    "rounds": 2,
    "weights": "equal",
    "algorithm": "distill",
    "data": {"name": "digits", "clients": 6, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 2, "learning_rate": 0.02, "optimizer": "adamw"},
    "distill": {
        "records": 120,
        "clients": [{"name": "logistic"}, {"name": "mlp", "hidden": 16}],
        "student_steps": 60,
        "digest_steps": 10,
    },
    "evaluate": {"baselines": False, "every": 0},
    "engine": {"threads": 1},
    "tracking": {"report": False},
}
CLIENT = {"privacy.unit": "client", "privacy.delta": 0.01, "privacy.noise_multiplier": 1.0}
EXAMPLE = {
    "privacy.unit": "example",
    "privacy.delta": 1e-4,
    "privacy.noise_multiplier": 1.0,
    "train": {"steps": 2, "learning_rate": 0.02, "optimizer": "adamw"},
}


def state_of(folder: Path) -> dict[str, np.ndarray]:
    newest = sorted((folder / "checkpoint").glob("round-*"))[-1]
    found: dict[str, np.ndarray] = load_file(newest / "state.safetensors")
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def play(folder: Path, changed: dict[str, Any] | None = None, **options: Any) -> Any:
    return run(JOB, changed or {}, folder=folder, **options)


def test_clients_of_unlike_shapes_teach_one_student(tmp_path: Path) -> None:
    result = play(tmp_path / "a", {"tracking.report": True})
    assert result.metrics["accuracy"] > 0.7, "ten classes"
    state = state_of(tmp_path / "a")
    sizes = {k: state[f"local.{k}"].size for k in range(6)}
    assert sizes[0] == sizes[2] != sizes[1] == sizes[3], "two architectures, dealt out in turn"
    assert state["rule.distill:taught"].shape == (120 * 10,)
    assert load_result(tmp_path / "a" / "adapter").layout.size == state["vector"].size == sizes[0]
    assert "each client" in (tmp_path / "a" / "report.html").read_text()
    for line in records(tmp_path / "a"):
        assert line["phase"] == "logit"
        assert line["mib_up"] == pytest.approx(6 * 4 * 1200 / 2**20, rel=0.05)
    down = [line["mib_down"] for line in records(tmp_path / "a")]
    assert down == pytest.approx([0, 6 * 4 * 1200 / 2**20])


def test_no_label_of_a_public_record_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels on the public records, and not a bit of the student changes."""
    from securefed.data import public

    play(tmp_path / "a", {"rounds": 1})
    empty = public._unlabelled
    monkeypatch.setattr(public, "_unlabelled", lambda e: _relabelled(empty(e)))
    play(tmp_path / "b", {"rounds": 1})
    np.testing.assert_array_equal(state_of(tmp_path / "a")["vector"], state_of(tmp_path / "b")["vector"])


def _relabelled(examples: Any) -> Any:
    import dataclasses

    return dataclasses.replace(examples, labels=examples.labels + 3)


@pytest.mark.parametrize("protection", ["masking", "ckks"])
def test_tables_travel_under_a_protection_and_teach_the_same(protection: str, tmp_path: Path) -> None:
    if protection == "ckks":
        pytest.importorskip("tenseal")
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    play(plain, {"rounds": 1})
    play(hidden, {"rounds": 1, "protection": protection})
    a, b = (state_of(f)["rule.distill:taught"] for f in (plain, hidden))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert not np.array_equal(a, b)
    assert json.loads((hidden / "facts.json").read_text())["protection"]["reveals"] == "sum"


def test_confidence_weights_pass_under_a_sum(tmp_path: Path) -> None:
    """Weighted answers beside their weights: both are sums."""
    for name, protection in (("a", "plain"), ("b", "masking")):
        play(tmp_path / name, {"rounds": 1, "protection": protection, "distill.confidence": True})
    a, b = (state_of(tmp_path / n)["rule.distill:taught"] for n in "ab")
    np.testing.assert_allclose(a, b, atol=1e-3)


def lied_to(rule: str, root: Path) -> float:
    """Accuracy of the student where one client of six sends its answers turned round, ten times as loud."""
    changed = {
        "aggregator": rule,
        "attack.name": "sign_flip",
        "attack.options": {"scale": 10.0},
        "attack.f": 1,
        "distill.back": "nothing",
        "distill.student_steps": 120,
    }
    accuracy: float = play(root / rule, changed).metrics["accuracy"]
    return accuracy


def test_a_liar_ruins_the_mean_of_logits_and_not_their_median(tmp_path: Path) -> None:
    assert lied_to("mean", tmp_path) < 0.4
    assert lied_to("median", tmp_path) > 0.7


def test_the_student_or_nothing_may_be_sent_back(tmp_path: Path) -> None:
    play(tmp_path / "s", {"distill.back": "student"})
    size = state_of(tmp_path / "s")["vector"].size
    assert [r["mib_down"] for r in records(tmp_path / "s")] == pytest.approx([0, 6 * 4 * size / 2**20])
    play(tmp_path / "n", {"distill.back": "nothing"})
    assert [r["mib_down"] for r in records(tmp_path / "n")] == [0, 0]
    assert not any("taught" in name for name in state_of(tmp_path / "n"))


# ------------------------------------------------------------------------------------------- guarantees


def test_answers_of_models_trained_with_dp_spend_their_steps_and_nothing_more(tmp_path: Path) -> None:
    result = play(tmp_path / "a", EXAMPLE)
    assert result.ledger is not None
    expected = epsilon_of([SampledGaussian(1.0, 0.1, 2 * 2)], 1e-4)
    assert result.ledger.epsilon(1e-4) == pytest.approx(expected, rel=1e-9)
    statement = result.ledger.statement(1e-4)
    assert statement.unit == "example"
    assert "the server included" in statement.adversary


@pytest.mark.parametrize("send", ["logits", "votes"])
def test_noise_on_the_sum_of_tables_is_one_release_a_round(send: str, tmp_path: Path) -> None:
    """With votes this is GNMax, accounted without looking at the votes."""
    result = play(tmp_path / "a", {**CLIENT, "distill.send": send})
    assert result.ledger is not None
    assert result.ledger.events() == (SampledGaussian(1.0, 1.0, 1),) * 2
    statement = result.ledger.statement(0.01)
    assert statement.unit == "client"
    assert "not against the server" in statement.adversary


def test_the_noise_that_is_released_has_the_scale_that_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that differ in noise alone: a released table's coordinate carries sigma x clip x sqrt(m) / n.

    m x k = 1200 coordinates of the difference of two noises: its deviation errs by 2 %, so 10 % fails once in 1e6.
    """
    monkeypatch.setattr(Ledger, "clear_outbox", lambda *_: None)  # what was released stays to be looked at
    released = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        play(folder, {**CLIENT, "rounds": 1, "distill.send": "votes"}, entropy=SeededEntropy(seed))
        released.append(np.frombuffer(_journaled(folder), "<f4") * np.sqrt(120))  # in votes per client
    deviation = np.std(released[0] - released[1]) / np.sqrt(2)
    assert deviation == pytest.approx(1.0 * np.sqrt(120) / 6, rel=0.1)


def _journaled(folder: Path) -> bytes:
    with Ledger.site() as ledger:
        payload = ledger.outbox(json.loads((folder / "run.json").read_text())["run"], SERVER, 0)
    assert payload is not None
    return payload


def test_local_noise_is_charged_to_each_client_and_any_rule_may_follow(tmp_path: Path) -> None:
    result = play(tmp_path / "a", {**CLIENT, "privacy.noise": "local", "aggregator": "median"})
    assert result.ledger is not None
    for client in range(6):
        assert result.ledger.events(client=client) == (SampledGaussian(1.0, 1.0, 1),) * 2
    statement = result.ledger.statement(0.01)
    assert statement.epsilon == pytest.approx(epsilon_of([SampledGaussian(1.0, 1.0, 2)], 0.01))
    assert statement.adversary == (
        "against everyone who sees the updates, the server included: each client adds its own noise before sending"
    )
    assert statement.clients == 6


def test_two_clients_with_the_same_records_are_two_clients(tmp_path: Path) -> None:
    """At client level a copy of one's records at somebody else is nothing that a run could mend."""
    import dataclasses

    assembly = assemble(load_config(JOB, {**CLIENT, "privacy.noise": "local"}))
    first, second, *rest = assembly.shards
    copied = dataclasses.replace(first, client=second.client)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        register(ledger, "run", dataclasses.replace(assembly, shards=(first, copied, *rest)))
        for client in (first.client, second.client):
            ledger.reserve(run="run", client=client, round=0, event=SampledGaussian(1.0, 1.0, 1))
        assert ledger.epsilon(0.01, unit="client") == epsilon_of([SampledGaussian(1.0, 1.0, 1)], 0.01)


def test_local_noise_is_calibrated_for_the_rounds_of_the_busiest_client(tmp_path: Path) -> None:
    changed = {k: v for k, v in CLIENT.items() if k != "privacy.noise_multiplier"}
    result = play(
        tmp_path / "a",
        {**changed, "privacy.noise": "local", "privacy.epsilon": 5.0, "clients_per_round": 3, "rounds": 3},
    )
    assert result.stopped == "rounds"
    assert result.ledger is not None
    assert 3.5 < result.ledger.epsilon(0.01) <= 5.0


def test_integer_noise_inside_a_masked_sum_of_tables(tmp_path: Path) -> None:
    result = play(
        tmp_path / "a",
        {**CLIENT, "privacy.noise": "skellam", "protection": "masking", "rounds": 1, "distill.send": "votes"},
    )
    assert result.ledger is not None
    assert all(isinstance(e, SkellamSum) for e in result.ledger.events())
    assert "the server included" in result.ledger.statement(0.01).adversary


def test_real_noise_in_an_encrypted_sum_of_tables(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    changed = {"privacy.noise": "gaussian", "protection": {"name": "ckks", "value_range": 16.0}, "rounds": 1}
    result = play(tmp_path / "a", {**CLIENT, **changed, "distill.send": "votes"})
    assert result.ledger is not None
    assert "decrypted sums" in result.ledger.statement(0.01).adversary


def test_a_rule_over_groups_that_hide_their_clients(tmp_path: Path) -> None:
    changed = {"protection": {"name": "grouped", "size": 3}, "data.clients": 9, "aggregator": "median"}
    assert play(tmp_path / "a", {**changed, "rounds": 1}).metrics["accuracy"] > 0.6


def test_many_clients_vote_under_noise_and_their_student_learns(tmp_path: Path) -> None:
    """GNMax with sixty clients of 20 records each: noise of 7 votes on counts of up to 60."""
    changed: dict[str, Any] = {
        "rounds": 1,
        "data.clients": 60,
        "distill.records": 60,
        "distill.send": "votes",
        "distill.clients": [{"name": "logistic"}],
        "train.epochs": 15,
        "train.batch_size": 8,
        **CLIENT,
    }
    result = play(tmp_path / "a", {**changed, "privacy.noise_multiplier": 0.9})
    assert result.metrics["accuracy"] > 0.5, "ten classes, sixty public records"
    assert result.ledger is not None
    assert result.ledger.epsilon(0.01) == pytest.approx(
        epsilon_of([vote_release(0.9 * 60**0.5, 60, "client")], 0.01), rel=1e-9
    )


def test_a_model_that_is_not_there_is_told_before_anything_is_registered(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        play(tmp_path / "a", {"distill.clients": [{"name": "./no-such-folder", "adapter": "head"}]})
    with Ledger.site() as ledger:
        assert ledger.events() == ()


def test_a_spent_budget_ends_the_run(tmp_path: Path) -> None:
    """Local noise for one round at this epsilon, and a second round that would exceed it."""
    once = epsilon_of([SampledGaussian(1.0, 1.0, 1)], 0.01)
    changed = {**CLIENT, "privacy.noise": "local", "privacy.epsilon": once * 1.01}
    result = play(tmp_path / "a", changed)
    assert (result.stopped, result.rounds) == ("budget", 1)


# ------------------------------------------------------------------------------------------- resumption


class StopAfterOne:
    def __init__(self) -> None:
        self.asked = 0

    def is_set(self) -> bool:
        self.asked += 1
        return True


@pytest.mark.parametrize("changed", [{}, EXAMPLE, {**CLIENT, "privacy.noise": "local"}])
def test_a_stopped_run_ends_with_the_same_bits(changed: dict[str, Any], tmp_path: Path) -> None:
    entropy = SeededEntropy(5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    play(whole, {**changed, "rounds": 3}, entropy=entropy)
    play(parts, {**changed, "rounds": 3}, entropy=entropy, stop_flag=StopAfterOne())
    assert resume(parts, entropy=entropy, stop_flag=StopAfterOne()).rounds == 2
    assert resume(parts, entropy=entropy).rounds == 3
    a, b = state_of(whole), state_of(parts)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "fedavg"}, r"\[distill\] is of the algorithm distill"),
        ({"distill.records": 0}, "records must be at least 1"),
        ({"distill.clip": 0.0}, "clip must be above 0"),
        ({"distill.clients": [{"name": "mlp"}] * 7}, "7 architectures for data.clients=6"),
        ({"distill.clients": [{"name": "mlp", "learning_rate": -1.0}]}, "learning_rate must be above 0"),
        ({"distill.clients": [{"hidden": 3}]}, "needs a name"),
        ({"distill.clients": [{"name": "mlp", "adapter": "lora"}]}, "has no adapters"),
        ({"distill.send": "logit"}, "did you mean 'logits'"),
        ({"server.learning_rate": 2.0}, "the server's student learns"),
        ({"engine.workers": 2}, "set 0"),
        ({"evaluate.alone": True}, "leave distill.clients out"),
        ({"protection": "masking", "distill.clip": 20.0}, "set protection.value_range = 20"),
        ({**CLIENT, "distill.confidence": True}, "private statistic"),
        ({**CLIENT, "weights": "size"}, 'set weights = "equal"'),
        ({**CLIENT, "privacy.clip": "adaptive"}, 'set privacy.clip = "fixed"'),
        ({**CLIENT, "aggregator": "median"}, "sensitivity of median is not proved"),
        ({**CLIENT, "protection": "masking"}, "let the clients add it inside the sum"),
        ({**EXAMPLE, "privacy.noise": "local"}, 'privacy.unit = "client"'),
        ({"model": {"name": "minilm", "task": "causal-lm"}}, "averages answers over classes"),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(JOB, changed)


@pytest.mark.parametrize("protection", ["masking", "ckks"])
def test_a_range_that_cuts_calibrated_local_noise_is_refused_before_anything_is_charged(
    home: Path, tmp_path: Path, protection: str
) -> None:
    """As a given noise multiplier is; masking cut what was sent, and ckks refused it after the round was charged."""
    local = {
        "privacy.unit": "client",
        "privacy.noise": "local",
        "privacy.delta": 0.01,
        "privacy.epsilon": 1.0,
    }
    wanted = {**local, "protection.name": protection}
    with pytest.raises(ConfigError, match=r"set protection\.value_range = 33") as told:
        run(JOB, wanted, folder=tmp_path / "a")
    assert "which reaches 32.9" in str(told.value)
    with Ledger.site() as ledger:
        assert ledger.events(unit="client") == ()
    if protection == "masking":
        run(JOB, {**wanted, "protection.value_range": 33.0}, folder=tmp_path / "b")
        assert [r["clipped_share"] for r in records(tmp_path / "b")] == [0.0, 0.0]


def test_local_noise_is_for_tables_only() -> None:
    job = {k: v for k, v in JOB.items() if k not in ("algorithm", "distill")}
    with pytest.raises(ConfigError, match='set algorithm = "distill"'):
        load_config(job, {**CLIENT, "privacy.noise": "local"})


def test_the_resolved_job_reads_back(tmp_path: Path) -> None:
    job = load_config(JOB)
    (tmp_path / "job.toml").write_text(to_toml(job))
    assert load_config(tmp_path / "job.toml") == job


def test_a_public_set_that_clients_hold_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are among the clients' own records"):
        play(tmp_path / "a", {"distill.public": "digits"})
    assert not (tmp_path / "a").exists()


def test_a_liar_who_sends_what_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    play(tmp_path / "a", {"attack.name": "nan", "attack.f": 1, "rounds": 1})
    (line,) = records(tmp_path / "a")
    assert len(line["survivors"]) == 5
    assert "non-finite" in next(iter(line["refused"].values()))


def test_a_client_that_diverges_without_privacy_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="learning_rate"):
        play(tmp_path / "a", {"train": {"epochs": 2, "learning_rate": 1e30, "optimizer": "sgd"}})


@pytest.mark.parametrize(("noise", "heard"), [("central", [0, 2, 4]), ("local", [0, 1, 2, 3, 4, 5])])
def test_at_client_level_clients_that_diverge_do_not_end_the_round(
    noise: str, heard: list[int], tmp_path: Path
) -> None:
    """Ending it would tell who was there: they count as zero, or send noise alone where who takes part is public.

    At this rate the three mlps diverge; a logistic regression's weights stay finite.
    """
    broken = {"rounds": 1, "train": {"epochs": 2, "learning_rate": 1e30, "optimizer": "sgd"}}
    play(tmp_path / "a", {**CLIENT, **broken, "privacy.noise": noise})
    (line,) = records(tmp_path / "a")
    assert line["survivors"] == heard


@pytest.mark.model
@pytest.mark.dataset
@pytest.mark.slow
def test_three_architectures_on_sentiment(
    tmp_path: Path, require_model: Callable[[str], str], require_dataset: Callable[[str], Any]
) -> None:
    require_model("minilm")
    require_dataset("sentiment")
    result = run("configs/distill.toml", {"rounds": 1, "data.limit": 3000}, folder=tmp_path / "a")
    assert result.metrics["accuracy"] > 0.65
