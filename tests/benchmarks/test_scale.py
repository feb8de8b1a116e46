"""The figures of many clients on one machine: how a start is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from securefed_benchmarks import scale

DIGITS = scale.QUIET | {
    "name": "digits",
    "rounds": 50,
    "data": {"name": "digits", "clients": 4, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 1},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a figure starts find what this one has found."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_a_job_that_is_asked_for_one_round_ends_there_and_tells_what_it_took() -> None:
    found = scale.played(DIGITS, 1)
    assert len(found["seconds"]) == len(found["cpu"]) == 1
    assert 0 < found["start_cpu_s"] <= found["cpu"][0][0]
    assert found["start_s"] > 0


def test_a_job_without_privacy_loads_neither_opacus_nor_a_language_library() -> None:
    code = (
        "import sys, json, tempfile, pathlib; import securefed as sf\n"
        "with tempfile.TemporaryDirectory() as d: sf.run(json.loads(sys.argv[1]), folder=pathlib.Path(d) / 'a')\n"
        "print([m for m in ('opacus', 'transformers', 'peft', 'matplotlib') if m in sys.modules])"
    )
    job = json.dumps(DIGITS | {"rounds": 1})
    done = subprocess.run(
        [sys.executable, "-c", code, job],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
