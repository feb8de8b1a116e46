"""The bench of one federation under several protections: its hand-written gradients, and what each way trains and shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed_benchmarks import federation_leaks as bench
from securefed_benchmarks import side_by_side
from securefed_benchmarks.side_by_side import ALL, HEAD, NET

SIZES = {
    "EACH": 6,
    "ROUNDS": 2,
    "PASSES": 1,
    "BATCH": 3,
    "POOL": 120,
    "POPULATION": 20,
    "STEPS": 2,
    "ASKED": 2,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The bench at ten clients of six images, drawn; the images are noise."""
    for module in (bench, side_by_side):
        for name, value in {**SIZES, "OUTSIDE": 12}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(140, 784, generator=generator)
    return x, torch.randint(0, 10, (140,), generator=generator)


@pytest.mark.parametrize("part", [ALL, HEAD], ids=["all", "head"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_gradients_written_out_are_autograds_each_clipped_in_what_trains(
    part: slice, clip: float | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 4, 784, generator=generator), torch.tensor([[1, 0, 9, 3]])
    model, taken = NET.first(3), torch.tensor([[True, True, False, True]])
    wanted = torch.zeros(NET.size)[part]
    for k in (0, 1, 3):
        leaf = model.clone().requires_grad_()
        F.cross_entropy(NET.logits(leaf, x[0, k : k + 1]), y[0, k : k + 1]).backward()  # type: ignore[no-untyped-call]  # torch's stub
        assert leaf.grad is not None
        own = leaf.grad[part]
        wanted += own * (1.0 if clip is None else min(1.0, clip / float(own.norm())))
    found = bench.summed_gradients(model[None], x, y, taken, clip, part)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_last_layer_alone_leaves_the_first_as_drawn(small: tuple[torch.Tensor, torch.Tensor]) -> None:
    played = bench.play(*small, 0.0, 5, HEAD, federations=5)
    rest = slice(0, HEAD.start)
    assert torch.equal(played.final[:, rest], NET.first(5).expand(5, -1)[:, rest])
    assert not bool(played.updates[..., rest].any())
    assert bool(played.updates[..., HEAD].any(-1).all())


def test_a_federations_shards_are_its_members_and_its_rounds_add_up(
    small: tuple[torch.Tensor, torch.Tensor],
) -> None:
    played = bench.play(*small, 0.0, 5, ALL, federations=5)
    assert played.included.sum(1).tolist() == [60] * 5
    assert (played.included[1:].sum(0) == 2).all(), "each record in half of the shadows"
    assert set(played.shards.flatten().tolist()) == set(np.flatnonzero(played.included[0]).tolist())
    last = played.models[-1] + played.updates[-1].mean(0)
    torch.testing.assert_close(last, played.final[0])


def test_shadows_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="odd number, got 6"):
        side_by_side.halves_of_pool(6, torch.Generator())


def test_a_sum_shows_no_single_update(small: tuple[torch.Tensor, torch.Tensor]) -> None:
    played = bench.play(*small, 1.0, 5, ALL, federations=5)
    summed, seen = bench.views(played, "sum"), bench.views(played, "updates")
    assert not any(v.updates for v in summed)
    assert [len(v.updates) for v in seen] == [10, 10]
    for one, other in zip(summed, seen, strict=True):
        total = np.sum(list(other.updates.values()), 0)
        np.testing.assert_allclose(np.asarray(one.total), total, rtol=1e-4, atol=1e-4)


def test_the_last_layer_gives_the_shortest_image_with_the_same_hidden_units() -> None:
    torch.manual_seed(0)
    layer, image = torch.nn.Linear(784, 32), torch.rand(784)
    active = layer(image).relu().detach()
    found = bench.shortest_image(layer, active)
    torch.testing.assert_close(layer(found).relu()[active > 0], active[active > 0], rtol=1e-3, atol=1e-4)
    assert float(found.norm()) < float(image.norm())


def test_every_way_is_judged_by_every_attack(
    small: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "whole", lambda: (small, (small[0][:20], small[1][:20])))
    monkeypatch.setattr(bench, "imprinted", lambda *a: float(a[2]))  # has tests of its own, and costs seconds
    *ways, last = bench.rows(0, federations=7)
    assert last["federations"] == 7
    names = [w["way"] for w in ways]
    assert names == [
        "plain",
        "secure sum of 10",
        "last layer alone",
        "DP epsilon 8",
        "DP epsilon 8, secure sum of 10",
    ]
    found: dict[str, dict[str, Any]] = dict(zip(names, ways, strict=True))
    for way in ways:
        assert {"loss", "LiRA", "RMIA", "update cosine", "FedMIA", "active"} <= way.keys()
        assert all(0 <= way[a][0] <= 1 for a in ("loss", "LiRA", "update cosine", "active"))
    assert found["plain"]["LiRA"] == found["secure sum of 10"]["LiRA"], "the model is the same"
    assert found["plain"]["accuracy"] == found["secure sum of 10"]["accuracy"]
    assert found["plain"]["linear_inversion_db"] > 100 > found["last layer alone"]["linear_inversion_db"]
    assert found["secure sum of 10"]["linear_inversion_db"] is None
    assert [found[n].get("imprint") for n in names] == [1.0, 10.0, None, 1.0, 10.0]
