"""`protection = "ckks"` in a job and in a secure sum: one code path, the same model, costs said beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import load_config
from securefed.errors import ConfigError, ProtocolError
from securefed.federation import resume, run
from securefed.sums import secure_sum
from securefed.tracking.progress import ProgressTracker
from tests.results import model_of, rounds_of
from tests.securefed.test_masking_job import JOB, PRIVATE

pytest.importorskip("tenseal", reason="the extra ckks is not installed")

VECTORS = np.random.default_rng(0).uniform(-1, 1, (5, 300)).astype(np.float32)


def test_a_job_ends_with_the_model_of_the_plain_one(home: Path, tmp_path: Path) -> None:
    for protection in ("plain", "ckks"):
        run(JOB, {"protection": protection}, folder=tmp_path / protection)
    plain, encrypted = model_of(tmp_path / "plain"), model_of(tmp_path / "ckks")
    np.testing.assert_allclose(encrypted, plain, atol=1e-5)
    assert not np.array_equal(encrypted, plain)


def test_the_start_of_a_run_says_cost_error_and_trust_and_the_folder_keeps_the_trust(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = io.StringIO()
    job = {"protection": {"name": "ckks", "trust": "verified", "encrypted_share": 0.5}}
    run({**JOB, **job}, folder=tmp_path / "a", trackers=[ProgressTracker(said)])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("  sealed")]
    assert "1 ciphertexts, 0.05 MiB a client, expected error of the mean" in lines[0]
    assert "trust verified: the key holder adds the signed ciphertexts itself" in lines[1]
    assert "IN CLEAR after the first round: 325 of 650 coordinates (50.0%)" in lines[2]
    facts = json.loads((tmp_path / "a" / "facts.json").read_text())["protection"]
    assert facts["reveals"] == "updates"
    assert facts["facts"]["Trust"].startswith("verified: ")
    assert "50.0%" in facts["facts"]["In clear"]
    assert all("WARNING" not in text for text in capfd.readouterr())


def test_no_key_is_left_in_the_folder_and_a_resumed_run_makes_new_ones(home: Path, tmp_path: Path) -> None:
    class Once:
        def is_set(self) -> bool:
            return True

    stopped = run(JOB, {"protection": "ckks"}, folder=tmp_path / "a", stop_flag=Once())
    assert stopped.stopped == "interrupted"
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert not any(b"secret" in p.read_bytes().lower() and p.suffix != ".html" for p in files)
    assert resume(tmp_path / "a").rounds == 2
    assert rounds_of(tmp_path / "a")[1]["survivors"] == [0, 1, 2, 3, 4]


def test_under_dp_updates_carry_their_noise_into_the_ciphertext(home: Path, tmp_path: Path) -> None:
    result = run(PRIVATE, {"protection": "ckks"}, folder=tmp_path / "a")
    assert result.ledger is not None
    assert rounds_of(tmp_path / "a")[0]["survivors"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy.unit": "client", "privacy.noise_multiplier": 1.0}, "client-level noise at the server"),
        ({"protection.parameters": "tiny"}, "parameters must be auto, compact"),
        ({"protection.error": 1e-12}, "above error=1e-12"),
        (
            {"protection.encrypted_share": 0.5, "privacy.unit": "client", "privacy.noise_multiplier": 1.0},
            "shows updates in part",
        ),
        ({"protection.trusts": "all"}, "did you mean trust"),
        ({"data.clients": 1}, "min_survivors=2"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_data_is_read(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config({**JOB, "protection": {"name": "ckks"}}, changes)


@pytest.mark.parametrize("trust", ["key_holder", "verified", "shared_key"])
def test_a_secure_sum_takes_it_by_name_or_as_an_object(trust: str) -> None:
    from securefed.protect.ckks import CKKS

    weights = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = secure_sum(
        VECTORS, weights=weights, protection=CKKS(trust=trust, value_range=1.0, max_weight=5.0)
    )  # type: ignore[arg-type]  # a Literal
    np.testing.assert_allclose(found.value, np.array(weights) @ VECTORS, atol=1e-5)
    assert found.weight == pytest.approx(15)
    by_name = secure_sum(VECTORS, protection="ckks")
    np.testing.assert_allclose(by_name.mean, VECTORS.mean(0), atol=1e-6)


def test_a_drop_lowers_a_secure_sum_and_is_reported() -> None:
    found = secure_sum(VECTORS, protection="ckks", drop={1: "submit", 4: "request"})
    assert found.survivors == (0, 2, 3)
    assert found.dropped == {1: "submit", 4: "submit"}
    np.testing.assert_allclose(found.value, VECTORS[[0, 2, 3]].sum(0), atol=1e-6)


def test_a_secure_sum_of_one_is_refused() -> None:
    with pytest.raises(ProtocolError, match="min_survivors"):
        secure_sum(VECTORS[:1], protection="ckks")
    with pytest.raises(ProtocolError, match="min_survivors"):
        secure_sum(VECTORS[:2], protection="ckks", drop={0: "submit"})
