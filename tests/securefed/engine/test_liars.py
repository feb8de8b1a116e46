"""Liars in whole jobs: where they win, where a rule holds, and what a job with liars must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import Component, load_config
from securefed.engine.liars import Liars, liars_of, lying
from securefed.errors import ConfigError
from securefed.federation import resume, run
from securefed.training.client import ClientOutcome
from securefed.types import Update
from tests.securefed.test_federation import model_of
from tests.stopping import StopAfter

DIGITS: dict[str, Any] = {
    "rounds": 8,
    "data": {"name": "digits", "clients": 10, "partition": "iid"},
    "model": {"name": "mlp", "adapter": "full", "hidden": 32},
    "train": {"epochs": 2, "learning_rate": 0.2, "batch_size": 16},
    "evaluate": {"baselines": False, "clients": False, "every": 4},
    "engine": {"threads": 1},
}
IPM = {"attack.name": "ipm", "attack.options": {"tau": 10.0}, "attack.f": 2}
BACKDOOR = {
    "attack.name": "boost",
    "attack.options": {"scale": 5.0},
    "attack.poison": {"name": "badnets", "size": 2},
    "attack.f": 2,
}
ROBUST = {"name": "pipeline", "pre": [{"name": "nnm", "f": 2}], "rule": {"name": "geometric_median"}}


def play(folder: Path, *changes: dict[str, Any]) -> dict[str, float]:
    job = {k: v for change in changes for k, v in change.items()}
    return dict(run(DIGITS, job, folder=folder).metrics)


def test_ipm_breaks_the_mean_and_neighbour_mixing_holds(home: Path, tmp_path: Path) -> None:
    assert play(tmp_path / "broken", IPM)["accuracy"] < 0.3
    assert play(tmp_path / "held", IPM, {"aggregator": ROBUST})["accuracy"] > 0.85


def test_a_boosted_backdoor_replaces_the_mean_and_multi_krum_keeps_it_out(home: Path, tmp_path: Path) -> None:
    won = play(tmp_path / "won", BACKDOOR)
    assert won["attack_success"] > 0.9
    assert won["accuracy"] > 0.8
    held = play(tmp_path / "held", BACKDOOR, {"aggregator": {"name": "multi_krum", "f": 2}})
    assert held["attack_success"] < 0.2
    assert held["accuracy"] > 0.85


def test_label_flippers_alone_can_do_less_than_model_poisoning(home: Path, tmp_path: Path) -> None:
    flip = {"attack.poison": "label_flip", "attack.f": 4}
    clean, flipped = play(tmp_path / "clean"), play(tmp_path / "flipped", flip)
    assert flipped["accuracy"] < clean["accuracy"] - 0.02
    assert "attack_success" not in flipped
    held = play(tmp_path / "held", flip, {"aggregator": {**ROBUST, "pre": [{"name": "nnm", "f": 4}]}})
    assert held["accuracy"] > flipped["accuracy"]


def test_the_folder_says_that_the_liars_were_simulated(home: Path, tmp_path: Path) -> None:
    told = {"aggregator": {"name": "trimmed_mean", "f": 1}, "attack.declared_f": 1, "rounds": 1}
    play(tmp_path / "out", BACKDOOR, told)
    said = json.loads((tmp_path / "out" / "run.json").read_text())["attack"]
    assert (said["simulated"], said["f"], said["declared_f"], said["poison"]) == (True, 2, 1, "badnets")
    assert said["liars"] == list(liars_of(load_config(tmp_path / "out" / "config.toml"), 10))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Simulated attack" in page
    assert "which is wrong on purpose" in page
    assert "Attack success" in page
    play(tmp_path / "quiet", {"rounds": 1})
    assert json.loads((tmp_path / "quiet" / "run.json").read_text())["attack"] is None
    assert "Simulated attack" not in (tmp_path / "quiet" / "report.html").read_text()


@pytest.mark.parametrize("name", ["rop", "gaussian"])
def test_a_stopped_run_with_liars_resumes_to_the_same_bits(home: Path, tmp_path: Path, name: str) -> None:
    job = {"attack.name": name, "attack.f": 3, "attack.participation": 0.6, "rounds": 4}
    run(DIGITS, job, folder=tmp_path / "whole")
    run(DIGITS, job, folder=tmp_path / "cut", stop_flag=StopAfter(2))
    resume(tmp_path / "cut")
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")


def test_liars_are_drawn_once_and_lie_now_and_then() -> None:
    config = load_config(DIGITS, {**IPM, "attack.participation": 0.5})
    liars = liars_of(config, 10)
    assert len(set(liars)) == 2
    rounds = [lying(config, 10, r) for r in range(400)]
    assert all(set(r) <= set(liars) for r in rounds)
    share = np.mean([len(r) / 2 for r in rounds])
    assert abs(share - 0.5) < 0.09  # 800 fair coins: five standard deviations, 6e-7
    assert rounds == [lying(config, 10, r) for r in range(400)]


def outcomes(values: dict[int, float]) -> list[ClientOutcome]:
    return [
        ClientOutcome(k, Update(k, 0, np.full(3, v, np.float32), private=True)) for k, v in values.items()
    ]


def sent(config_changes: dict[str, Any], values: dict[int, float]) -> dict[int, float]:
    liars = Liars.of(load_config(DIGITS, config_changes), 10)
    found = liars.lie(outcomes(values), 0, "digest")
    return {o.client: float(o.update.vector[0]) for o in found if o.update is not None}


def test_honest_updates_pass_and_lies_are_made_of_them_alone() -> None:
    a, b = liars_of(load_config(DIGITS, IPM), 10)
    values = {k: 100.0 if k in (a, b) else 1.0 for k in range(10)}
    expected = {k: -10.0 if k in (a, b) else 1.0 for k in range(10)}
    assert sent(IPM, values) == expected


def test_an_attack_on_own_data_flips_each_liars_own_update() -> None:
    job = {"attack.name": "sign_flip", "attack.f": 2, "attack.options": {"scale": 2.0}}
    a, b = liars_of(load_config(DIGITS, job), 10)
    found = sent(job, {k: float(k + 1) for k in range(10)})
    assert (found[a], found[b]) == (-2.0 * (a + 1), -2.0 * (b + 1))


def test_liars_who_do_not_collude_each_take_themselves_for_the_only_one() -> None:
    job = {"attack.name": "alie", "attack.f": 3, "attack.colluding": False}
    values = {k: float(k) for k in range(10)}
    together, alone = sent({**job, "attack.colluding": True}, values), sent(job, values)
    liar = liars_of(load_config(DIGITS, job), 10)[0]
    assert together[liar] != alone[liar]


def test_a_lie_is_not_taken_for_the_output_of_a_mechanism() -> None:
    config = load_config(DIGITS, IPM)
    found = Liars.of(config, 10).lie(outcomes(dict.fromkeys(range(10), 1.0)), 0, "digest")
    private = {o.client: o.update.private for o in found if o.update is not None}
    assert {k for k, p in private.items() if not p} == set(liars_of(config, 10))


def test_a_cohort_of_liars_alone_still_sends_something() -> None:
    a, b = liars_of(load_config(DIGITS, IPM), 10)
    assert sent(IPM, {a: 1.0, b: 3.0}) == {a: -20.0, b: -20.0}


def test_clients_who_did_not_answer_do_not_lie_either() -> None:
    a, b = liars_of(load_config(DIGITS, IPM), 10)
    silent = [ClientOutcome(a, refusal="budget"), *outcomes({b: 1.0, 20: 1.0})]
    found = Liars.of(load_config(DIGITS, IPM), 10).lie(silent, 0, "digest")
    assert found[0].update is None


def test_an_optimal_attack_is_made_against_the_jobs_own_rule() -> None:
    job = {
        "attack.name": "optimal",
        "attack.options": {"attack": {"name": "alie"}},
        "attack.f": 2,
        "aggregator": ROBUST,
    }
    liars = Liars.of(load_config(DIGITS, job), 10)
    assert liars.attack.aggregator.rule.name == "geometric_median"


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"attack.name": "ipm"}, "attack.f counts the liars"),
        ({"attack.f": 2}, "need an attack"),
        ({"attack.f": 10, "attack.name": "ipm"}, "leaves nobody honest"),
        ({"attack.f": -1, "attack.name": "ipm"}, "attack.f counts"),
        ({**IPM, "attack.participation": 0.0}, "participation"),
        ({**IPM, "attack.name": "imp"}, "did you mean ipm"),
        ({**IPM, "attack.options": {"tua": 1.0}}, "did you mean tau"),
        ({"attack.f": 1, "attack.poison": "label_flip", "attack.options": {"tau": 1}}, "without attack.name"),
        ({"attack.f": 1, "attack.poison": "label_flap"}, "did you mean label_flip"),
        ({**IPM, "aggregator": {"name": "krum", "f": 1}}, r"told f=1, the attack has f=2.*declared_f=1"),
        ({**IPM, "attack.declared_f": 1}, "takes no f"),
        ({**IPM, "aggregator": {"name": "krum", "f": 2}, "attack.declared_f": 1}, "told f=2"),
    ],
)
def test_a_job_whose_liars_make_no_sense_is_refused(job: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(DIGITS, job)


class Hidden:
    """A protection that reveals only the sum; its sessions are never opened here."""

    name, reveals = "hidden", "sum"


@pytest.mark.parametrize(("name", "said"), [("alie", "hides from everyone"), ("nan", "not finite")])
def test_what_no_liar_could_do_under_a_protection_is_refused(name: str, said: str) -> None:
    hidden = {"protection": f"{__name__}:Hidden"}
    with pytest.raises(ConfigError, match=said):
        load_config(DIGITS, {"attack.name": name, "attack.f": 2, **hidden})
    load_config(DIGITS, {"attack.name": "sign_flip", "attack.f": 2, **hidden})


def test_a_poison_needs_labels() -> None:
    job = {"model": {"name": "smollm2", "task": "causal-lm"}, "train": {"steps": 1}, "data": {"clients": 4}}
    with pytest.raises(ConfigError, match="changes labels"):
        load_config(job, {"attack.poison": "label_flip", "attack.f": 1})


def test_a_job_with_liars_is_written_and_read_back_equal(tmp_path: Path) -> None:
    from securefed.config import to_toml

    config = load_config(DIGITS, BACKDOOR)
    (tmp_path / "job.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "job.toml") == config
    assert config.attack.poison == Component("badnets", {"size": 2})
