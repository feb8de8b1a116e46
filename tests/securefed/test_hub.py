"""Whether the hub can be asked is found out at once, not after half a minute of retries."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from securefed.hub import hub_is_offline

PROXIES = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)


@pytest.fixture(autouse=True)
def _plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def resolve(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    def lookup(*args: Any, **kwargs: Any) -> list[Any]:
        if not works:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_a_name_that_resolves_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, True)
    assert not hub_is_offline()


def test_a_name_that_does_not_resolve_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, False)
    assert hub_is_offline()


def test_the_user_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_is_offline()


def test_behind_a_proxy_names_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert not hub_is_offline()
