"""A server that climbs the loss finds who brings it down: alone it does, behind a secure sum of many it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from securefed.types import View
from securefed_attacks.active_membership import ActiveMembership
from securefed_attacks.statistics import auc, auc_interval
from securefed_attacks.views import update_seen, updates_seen

CLIENTS, EACH, ASKED = 12, 20, 60


class World:
    """Twelve clients with records of their own and labels that are half noise; a net that all begin from."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(CLIENTS * EACH + ASKED, 30, generator=generator)
        noise = torch.randn(len(self.x), generator=generator)
        self.y = (self.x[:, 0] + noise > 0).long()
        self.net = nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 2))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        self.begin = nn.utils.parameters_to_vector(self.net.parameters()).detach().numpy().copy()
        self.asked = torch.cat([torch.arange(EACH), torch.arange(CLIENTS * EACH, len(self.x))])
        self.members = np.arange(EACH + ASKED) < EACH

    def loss(self, model: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
        nn.utils.vector_to_parameters(torch.from_numpy(np.array(model)), self.net.parameters())
        return F.cross_entropy(self.net(self.x[rows]), self.y[rows], reduction="none")

    def losses(self, model: np.ndarray) -> np.ndarray:
        return self.loss(model, self.asked).detach().double().numpy()

    def slope(self, model: np.ndarray) -> np.ndarray:
        got = torch.autograd.grad(self.loss(model, self.asked).mean(), list(self.net.parameters()))
        return torch.cat([g.flatten() for g in got]).numpy()

    def first(self) -> np.ndarray:
        return self.begin.copy()

    def update(self, model: np.ndarray, client: int, steps: int = 10) -> np.ndarray:
        rows, here = torch.arange(client * EACH, (client + 1) * EACH), np.array(model)
        for _ in range(steps):
            got = torch.autograd.grad(self.loss(here, rows).mean(), list(self.net.parameters()))
            here = here - 0.5 * torch.cat([g.flatten() for g in got]).numpy()
        change: np.ndarray = here - model
        return change

    def views(self, model: np.ndarray, noise: float = 0.0) -> tuple[View, View]:
        """The same round as a server sees it without protection, and under a secure sum."""
        rng = np.random.default_rng(0)
        updates = {c: self.update(model, c) for c in range(CLIENTS)}
        updates = {c: (u + noise * rng.normal(size=u.shape)).astype(np.float32) for c, u in updates.items()}
        total = np.stack(list(updates.values())).astype(np.float64).sum(0)
        ids = tuple(range(CLIENTS))
        open_ = View("server", 0, "updates", ids, "", model, None, updates, total, CLIENTS)
        return open_, View("server", 0, "sum", ids, "", model, None, {}, total, CLIENTS)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_members_bring_down_what_the_server_raised(world: World) -> None:
    attack, first = ActiveMembership(step=0.1, steps=5), world.first()
    raised = attack.ascend(first, world.slope)
    assert world.losses(raised).mean() > 1.2 * world.losses(first).mean()
    seen, _ = world.views(raised)
    active = attack(seen, 0, world.losses)
    assert auc_interval(active, world.members).low > 0.75


def test_another_clients_update_does_not_name_these_records(world: World) -> None:
    attack = ActiveMembership(step=0.1, steps=5)
    seen, _ = world.views(attack.ascend(world.first(), world.slope))
    found = auc_interval(attack(seen, 5, world.losses), world.members)
    assert found.low < 0.5 < found.high


def test_under_a_secure_sum_the_attack_cannot_say_whose_records_they_are(world: World) -> None:
    attack = ActiveMembership(step=0.1, steps=5)
    seen, summed = world.views(attack.ascend(world.first(), world.slope))
    hidden = attack(summed, 0, world.losses)
    assert np.array_equal(hidden, attack(summed, 7, world.losses)), "all clients look the same"
    assert auc(hidden, world.members) < auc(attack(seen, 0, world.losses), world.members) - 0.1


def test_noise_on_the_update_ends_it(world: World) -> None:
    attack = ActiveMembership(step=0.1, steps=5)
    seen, _ = world.views(attack.ascend(world.first(), world.slope), noise=1.0)
    found = auc_interval(attack(seen, 0, world.losses), world.members)
    assert found.low < 0.5 < found.high


def test_rounds_add_up_and_nothing_is_changed_in_place(world: World) -> None:
    attack, first = ActiveMembership(), world.first()
    kept = first.copy()
    raised = attack.ascend(first, world.slope)
    assert np.array_equal(first, kept)
    assert raised.dtype == np.float32
    seen, _ = world.views(raised)
    assert np.allclose(attack([seen, seen], 0, world.losses), 2 * attack(seen, 0, world.losses))


def test_what_has_no_direction_or_no_view_is_refused(world: World) -> None:
    attack = ActiveMembership()
    with pytest.raises(ValueError, match="no direction"):
        attack.ascend(np.ones(3, np.float32), lambda m: np.zeros_like(m))
    with pytest.raises(ValueError, match="at least one round"):
        attack([], 0, world.losses)
    with pytest.raises(ValueError, match="step > 0"):
        ActiveMembership(step=0)
    seen, _ = world.views(world.first())
    with pytest.raises(ValueError, match="not finite"):
        attack(seen, 0, lambda m: np.full(4, np.nan))


def test_a_view_gives_the_most_that_it_knows_of_a_client() -> None:
    from securefed.types import GroupSum

    before, total = np.zeros(2, np.float32), np.array([6.0, 9.0])
    own = {1: np.array([1.0, 2.0], np.float32)}
    open_ = View("server", 0, "updates", (0, 1, 2), "", before, None, own, total, 3.0)
    assert update_seen(open_, 1).tolist() == [1, 2]
    assert update_seen(open_, 0).tolist() == [2, 3]
    group = {0: GroupSum((0, 2), np.array([4.0, 8.0]), 2.0)}
    grouped = View("server", 0, "group sums", (0, 1, 2), "", before, None, {}, total, 3.0, group)
    assert updates_seen(grouped).tolist() == [[2, 4], [2, 3], [2, 4]]
    outside = View("client", 0, "sum", (0,), "", before, np.ones(2, np.float32))
    assert update_seen(outside, 0).tolist() == [1, 1]
    with pytest.raises(ValueError, match="not in this view"):
        update_seen(open_, 7)
    with pytest.raises(ValueError, match="neither updates nor a sum"):
        update_seen(View("outsider", 0, "sum", (0,), "", before), 0)
