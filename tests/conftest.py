"""What every test runs under: fixed threads, no network, no writing into the user's own folders.

`model` and `dataset` tests skip, with the reason, where the model or the data is not on the machine;
under `SECUREFED_REQUIRE_DATA=1` (CI) such a skip is a failure, so that a green run means they ran.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))  # before torch: it reads this when imported
REQUIRE_DATA = os.environ.get("SECUREFED_REQUIRE_DATA") == "1"
LOOPBACK = ("localhost", "::1", "")


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


def _stays_here(host: object) -> bool:
    return host is None or host in LOOPBACK or (isinstance(host, str) and host.startswith("127."))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback and Unix sockets; programs that a test starts are told to stay offline."""
    lookup = socket.getaddrinfo

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _stays_here(address[0]):
                raise NetworkBlocked(f"tests use no network; tried to reach {address[0]}")
            return real(self, address)

        return connect

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _stays_here(host):
            raise NetworkBlocked(f"tests use no network; tried to look up {host}")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Sums depend on the number of threads in the last bit."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `SECUREFED_HOME`: ledger, caches and data of this test alone."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SECUREFED_HOME", str(folder))
    return folder


def missing(what: str) -> None:
    """Skips, or fails where CI has promised that everything is there."""
    if REQUIRE_DATA:
        pytest.fail(f"{what} (and SECUREFED_REQUIRE_DATA=1 promises it)", pytrace=False)
    pytest.skip(what)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Under SECUREFED_REQUIRE_DATA=1 no `model` or `dataset` test may skip, whoever decided it."""
    outcome = yield
    report = outcome.get_result()
    marked = any(item.get_closest_marker(name) for name in ("model", "dataset"))
    if REQUIRE_DATA and marked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped, and SECUREFED_REQUIRE_DATA=1 forbids it: {report.longrepr}"
