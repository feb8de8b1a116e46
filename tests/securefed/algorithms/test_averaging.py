"""The averaged model: its recursion, where it starts again, and that it is what a run hands out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from securefed.algorithms.averaging import averaged
from securefed.algorithms.plan import RoundPlan
from securefed.checkpoint import load_state
from securefed.federation import resume, run

FIRST, LATER = RoundPlan("AB", ("w",), ("w",), 0.0), RoundPlan("AB", ("w",), ("w",), 0.5)


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_nothing_is_averaged_unless_asked() -> None:
    assert averaged(None, vector(1), FIRST, 0.0) is None


def test_it_is_the_exponential_average_of_the_stages_models() -> None:
    models = [vector(1, 0), vector(2, 4), vector(5, -4)]
    average = None
    for plan, model in zip((FIRST, LATER, LATER), models, strict=True):
        average = averaged(average, model, plan, 0.75)
    assert average is not None
    np.testing.assert_allclose(average, 0.75**2 * models[0] + 0.75 * 0.25 * models[1] + 0.25 * models[2])
    assert average.dtype == np.float32


def test_a_new_stage_starts_from_its_own_first_model() -> None:
    average = averaged(vector(100), vector(3), FIRST, 0.9)
    assert average is not None
    assert average.tolist() == [3.0]


JOB = {
    "name": "digits",
    "rounds": 3,
    "data": {"name": "digits", "clients": 3, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 2, "learning_rate": 0.3},
    "evaluate": {"baselines": False, "every": 0},
    "engine": {"threads": 1, "checkpoint_every": 1},
}


def saved(folder: Path) -> np.ndarray:
    from securefed.models import load_result

    model = load_result(folder / "adapter")
    found: np.ndarray = model.read(model.layout)
    return found


def test_a_run_trains_as_without_and_saves_the_average(home: Path, tmp_path: Path) -> None:
    plain = run(JOB, folder=tmp_path / "plain")
    mean = run(JOB, {"server.average": 0.5}, folder=tmp_path / "mean")
    models = [
        saved(run(JOB, {"rounds": r}, folder=tmp_path / f"to-{r}").folder) for r in range(1, 4)
    ]  # round r does not depend on how many follow: the schedule is constant
    expected = models[0]
    for model in models[1:]:
        expected = 0.5 * expected + 0.5 * model
    np.testing.assert_allclose(saved(mean.folder), expected, atol=1e-6)
    assert not np.allclose(saved(plain.folder), expected, atol=1e-4)
    assert mean.metrics != plain.metrics


def test_an_interrupted_average_is_taken_up_again(home: Path, tmp_path: Path) -> None:
    class AfterOne:
        def __init__(self) -> None:
            self.asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked >= 1

    whole = run(JOB, {"server.average": 0.5}, folder=tmp_path / "whole")
    part = run(JOB, {"server.average": 0.5}, folder=tmp_path / "part", stop_flag=AfterOne())
    assert part.stopped == "interrupted"
    resume(tmp_path / "part")
    assert saved(tmp_path / "part").tobytes() == saved(whole.folder).tobytes()
    assert load_state(tmp_path / "part", {}).average is not None  # type: ignore[union-attr]  # a state is there
