"""The ground rules themselves: a test that leaves the machine, or skips where CI forbids it, is stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_reaching_out_is_stopped_before_anything_is_sent() -> None:
    with socket.socket() as outward, pytest.raises(RuntimeError, match="no network"):
        outward.connect(("192.0.2.1", 80))  # TEST-NET-1: documentation only, nobody lives there
    with pytest.raises(RuntimeError, match="no network"):
        urllib.request.urlopen("http://example.invalid/")


def test_a_server_on_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        client.close()


@pytest.mark.parametrize(("require", "passes"), [("0", True), ("1", False)])
def test_a_skipped_model_test_fails_the_run_that_promises_models(
    tmp_path: Path, require: str, passes: bool
) -> None:
    (tmp_path / "conftest.py").write_text(
        (HERE / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  model: needs a model\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.model\ndef test_it():\n    pytest.skip('no model here')\n\ndef test_other():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "SECUREFED_REQUIRE_DATA": require, "PYTHONPATH": paths}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (ran.returncode == 0) is passes, ran.stdout
    if not passes:
        assert "forbids it" in ran.stdout
