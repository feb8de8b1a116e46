"""A server's view holds what its protection revealed, and nothing more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange, opened
from securefed.errors import ProtocolError
from securefed.protect.grouped import Grouped
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed.types import Collected, Protection, RoundParameters, Update, View
from securefed.views import server_view
from securefed_attacks.partition import regress

D, N = 5, 6
BASE = RoundParameters("run", 0, tuple(range(N)), D, bytes(32).hex(), bytes(32).hex(), (1.0,) * N)
SENT = {k: Update(k, 0, np.full(D, 0.1 * k, np.float32)) for k in range(N)}
BEFORE = np.zeros(D, np.float32)


def played(protection: Protection) -> tuple[View, Collected]:
    ready = opened(protection, "run", BASE.clients, SystemEntropy())
    collected = exchange(ready, BASE, SENT, SystemEntropy())
    return server_view(BASE, ready.reveals, collected, BEFORE), collected


def test_a_plain_round_shows_every_update() -> None:
    view, _ = played(Plain())
    assert sorted(view.updates) == list(range(N))
    assert view.groups is None


def test_a_masked_round_shows_one_sum() -> None:
    view, _ = played(Masking())
    assert view.updates == {}
    assert view.groups is None
    assert view.total is not None
    np.testing.assert_allclose(view.total, 1.5, atol=1e-6)


def test_a_grouped_round_shows_the_groups_sums_and_no_update() -> None:
    view, collected = played(Grouped(size=3))
    assert view.updates == {}
    assert view.groups is not None
    assert sorted(k for group in view.groups.values() for k in group.members) == list(range(N))
    for group in view.groups.values():
        np.testing.assert_allclose(group.total, sum(0.1 * k for k in group.members), atol=1e-6)
    found = regress([view, view])
    assert (found.rank, found.identified) == (2, ())
    assert regress([collected]).rank == 2
    assert "0.1" not in repr(view)


def test_more_than_the_protection_promises_is_refused() -> None:
    _, plain = played(Plain())
    with pytest.raises(ProtocolError, match="updates were collected under a protection that reveals sum"):
        server_view(BASE, "sum", plain, BEFORE)
    _, grouped = played(Grouped(size=3))
    with pytest.raises(ProtocolError, match="group sums were collected"):
        server_view(BASE, "sum", grouped, BEFORE)
    assert server_view(BASE, "group sums", replace(grouped, groups=None), BEFORE).groups is None
