"""A site's policy: what it forbids is refused with its line, whichever way a job comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import securefed as sf
from securefed.errors import BudgetExceeded, PolicyRefusal, PrivacyError
from securefed.privacy.budget import Budget
from securefed.privacy.policy import Asked, Policy, load_policy

TEXT = """# limits of this hospital
max_epsilon = 3.0
max_delta = 1e-4

min_noise_multiplier = 0.5   # agreed in March
allowed_protections = ["masking"]
min_cohort = 10
max_rounds = 20
"""
FINE: dict[str, Any] = {
    "epsilon": 2.0,
    "delta": 1e-5,
    "noise_multiplier": 1.0,
    "protection": "masking",
    "cohort": 10,
    "rounds": 20,
}


@pytest.fixture
def policy(_site: Path) -> Path:
    path = _site / "policy.toml"
    path.write_text(TEXT)
    return path


def test_a_site_without_a_file_allows_everything() -> None:
    assert load_policy() == Policy()
    load_policy().check(Asked(float("inf"), 0.5, 0.0, "plain", 1, 10**6))


def test_a_job_within_all_limits_passes(policy: Path) -> None:
    load_policy().check(Asked(**FINE))
    load_policy().check(Asked(**{**FINE, "protection": None, "cohort": None, "rounds": None}))


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        ({"epsilon": 3.01}, 2, "epsilon = 3.01"),
        ({"noise_multiplier": 0.0}, 2, "a job without noise"),
        ({"delta": 1e-3}, 3, "delta = 0.001"),
        ({"noise_multiplier": 0.49}, 5, "agreed in March"),
        ({"protection": "plain"}, 6, "plain"),
        ({"cohort": 9}, 7, "a cohort of 9"),
        ({"rounds": 21}, 8, "rounds = 21"),
    ],
)
def test_each_limit_refuses_and_names_its_line(policy: Path, change: Any, line: int, words: str) -> None:
    with pytest.raises(PolicyRefusal, match=f":{line}: ") as found:
        load_policy().check(Asked(**{**FINE, **change}))
    assert words in str(found.value)
    assert str(policy) in str(found.value)


def test_noise_without_a_target_is_held_to_the_cap_by_the_ledger(policy: Path) -> None:
    load_policy().check(Asked(**{**FINE, "epsilon": float("inf")}))
    assert load_policy().tighten(Budget(float("inf"), 1e-5)).site_epsilon == 3.0
    assert load_policy().tighten(Budget(1.0, 1e-5, site_epsilon=2.0)).site_epsilon == 2.0
    assert Policy().tighten(Budget(1.0, 1e-5)).site_epsilon == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "max_epsilon = ",
        "maximum = 3",
        'max_epsilon = "3"',
        "max_epsilon = -1",
        "max_epsilon = nan",
        "max_rounds = 2.5",
        "allowed_protections = 'plain'",
        "min_cohort = true",
    ],
)
def test_a_file_that_cannot_be_understood_lets_nothing_run(policy: Path, text: str) -> None:
    policy.write_text(text)
    with pytest.raises(PrivacyError, match=r"policy"):
        load_policy()


JOB: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "digits", "clients": 4, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 1},
    "privacy": {"unit": "example", "noise_multiplier": 1.0, "delta": 1e-4},
    "evaluate": {"baselines": False},
}


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("max_rounds = 1", {}),
        ("min_cohort = 5", {}),
        ('allowed_protections = ["masking"]', {}),
        ("min_noise_multiplier = 1.5", {}),
        ("max_epsilon = 1.0", {"privacy.epsilon": 2.0, "privacy.noise_multiplier": None}),
        ("max_epsilon = 1.0", {"privacy.unit": "none", "privacy.noise_multiplier": None}),
    ],
)
def test_a_federation_is_refused_before_it_leaves_a_trace(
    home: Path, tmp_path: Path, text: str, change: Any
) -> None:
    (home / "policy.toml").write_text(text)
    job = {**JOB, "privacy": dict(JOB["privacy"])}
    for key, value in change.items():
        name = key.split(".")[1]
        job["privacy"].pop(name, None)
        if value is not None:
            job["privacy"][name] = value
    with pytest.raises(PolicyRefusal, match=r"policy.toml:1: "):
        sf.run(job, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_cap_holds_over_all_runs_of_a_site_on_its_data(home: Path, tmp_path: Path) -> None:
    first = sf.run(JOB, folder=tmp_path / "a")
    assert first.ledger is not None
    (home / "policy.toml").write_text(f"max_epsilon = {first.ledger.epsilon(1e-4) * 1.01}")
    with pytest.raises(BudgetExceeded, match="site"):
        sf.run(JOB, folder=tmp_path / "b")


def test_a_private_loop_is_held_to_the_policy_too(policy: Path) -> None:
    data = TensorDataset(torch.zeros(40, 3), torch.zeros(40, dtype=torch.long))
    model = torch.nn.Linear(3, 2)
    for asked in ({"epsilon": 4.0}, {"noise_multiplier": 0.4}):
        with pytest.raises(PolicyRefusal):
            sf.make_private(
                model,
                torch.optim.SGD(model.parameters(), lr=1.0),
                DataLoader(data, batch_size=8, shuffle=True),
                delta=1e-5,
                max_grad_norm=1.0,
                steps=2,
                data_id="loop",
                **asked,  # type: ignore[arg-type]  # one of two floats
            )
