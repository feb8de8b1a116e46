"""The measures of membership: high where records were learned by heart, one half where nothing was learned."""

from __future__ import annotations

import numpy as np
import pytest

from securefed.assembly import assemble
from securefed.config import Config, load_config
from securefed.data.load import kept_rows
from securefed.errors import ConfigError
from securefed_benchmarks.bench.measures import Measured, Played, make_measure
from securefed_benchmarks.bench.membership import pairs
from securefed_benchmarks.bench.play import play
from securefed_benchmarks.bench.resident import Resident

JOB = {
    "rounds": 10,
    "data": {"name": "digits", "clients": 5, "partition": "iid", "limit": 200},
    "model": {"name": "mlp", "adapter": "full", "hidden": 64},
    "train": {"epochs": 8, "batch_size": 16, "learning_rate": 0.3},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
}


def untrained(config: Config) -> Played:
    resident = Resident()
    assembly = assemble(config, resident)
    model = assembly.model
    whole = resident.whole(config).train
    kept = kept_rows(len(whole), config.data)
    others = np.setdiff1d(np.arange(len(whole)), kept)
    return Played(config, assembly, model.read(model.layout), whole.take(kept), whole.take(others))


def test_a_net_that_learned_by_heart_is_told_and_lira_tells_more(tmp_path: object) -> None:
    found = play(JOB, ["loss", "gain", "lira"], Resident())
    # over seeds 0 to 9 LiRA's AUC lay between .57 and .68
    assert found.scores["lira_auc"] > 0.54
    assert found.scores["loss_auc"] > 0.5
    assert found.curves["roc lira"][-1] == [1.0, 1.0]


@pytest.mark.parametrize("name", ["loss", "lira"])
def test_an_untrained_net_is_guessing(name: str) -> None:
    played = untrained(load_config({**JOB, "train": {**JOB["train"], "epochs": 1}, "rounds": 1}))  # type: ignore[dict-item]
    found: Measured = make_measure(name).measure(played)
    # 200 against 200: the AUC of guessing has a deviation of .029
    assert abs(found.scores[f"{name}_auc"] - 0.5) < 0.12


def test_members_and_others_are_disjoint_and_all_there_is() -> None:
    played = untrained(load_config(JOB))
    assert len(played.members) == 200
    assert len(played.members) + len(played.others) == len(Resident().whole(played.config).train)


def test_shadows_have_each_record_in_half_of_them_and_equally_many() -> None:
    found = pairs(8, 60, np.random.default_rng(0))
    assert (found.sum(0) == 8).all()
    assert (found.sum(1) == 30).all()


@pytest.mark.parametrize(
    ("measure", "changed", "wanted"),
    [
        ("loss", {"data": {"name": "digits", "clients": 5}}, "set data.limit"),
        ("lira", {"model": {"name": "minilm"}, "data": {"name": "sentiment", "limit": 10}}, "small nets"),
    ],
)
def test_a_job_that_cannot_be_measured_is_refused(
    measure: str, changed: dict[str, object], wanted: str
) -> None:
    config = load_config({**JOB, **changed})
    with pytest.raises(ConfigError, match=wanted):
        make_measure(measure).check(config)
