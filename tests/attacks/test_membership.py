"""RMIA, FedMIA and the language models' attacks find members where they were learnt, and nobody where they were not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from securefed_attacks.fedmia import alignment, fedmia
from securefed_attacks.language_membership import (
    loss_score,
    min_k,
    min_k_plus_plus,
    reference,
    token_scores,
)
from securefed_attacks.lira import halves
from securefed_attacks.rmia import log_to_probability, rmia
from securefed_attacks.statistics import auc, auc_interval

# ------------------------------------------------------------------------------------------------- RMIA


def world(gain: float, n: int = 2000, s: int = 4) -> tuple[np.ndarray, ...]:
    """Models whose confidence in a record is its own difficulty, noise, and `gain` where they were trained on it.

    (target, references, which reference had which, members, population under target, under references)
    """
    rng = np.random.default_rng(0)
    difficulty, beside = rng.normal(1, 2, n), rng.normal(1, 2, 1000)
    included, members = halves(s, n, rng), rng.random(n) < 0.5
    refs = difficulty + 0.7 * rng.normal(size=(s, n)) + gain * included
    target = difficulty + 0.7 * rng.normal(size=n) + gain * members
    z, zs = beside + 0.7 * rng.normal(size=1000), beside + 0.7 * rng.normal(size=(s, 1000))
    p = log_to_probability
    return p(target), p(refs), included, members, p(z), p(zs)


def test_rmia_beats_one_threshold_with_four_references() -> None:
    target, refs, included, members, z, zs = world(1.5)
    online = auc(rmia(target, refs, z, zs, included=included), members)
    assert auc_interval(rmia(target, refs, z, zs, included=included), members).low > 0.65
    assert online > auc(target, members) + 0.05


def test_rmia_needs_no_reference_that_saw_the_record() -> None:
    target, refs, included, members, z, zs = world(1.5)
    outside = np.where(included, np.nan, refs)
    refs_out = np.sort(outside, 0)[:2]  # those that never saw it
    assert auc(rmia(target, refs_out, z, zs[:2]), members) > auc(target, members) + 0.03


def test_rmia_finds_nobody_where_nothing_was_memorized() -> None:
    target, refs, included, members, z, zs = world(0.0)
    found = auc_interval(rmia(target, refs, z, zs, included=included), members)
    assert found.low < 0.5 < found.high


def test_rmia_is_a_share_of_the_population() -> None:
    target, refs, included, _, z, zs = world(1.0, n=200)
    scores = rmia(target, refs, z, zs, included=included)
    average = np.array([(r[i].mean() + r[~i].mean()) / 2 for r, i in zip(refs.T, included.T, strict=True)])
    by_hand = [
        np.mean([t / a >= y / b for y, b in zip(z, zs.mean(0), strict=True)])
        for t, a in zip(target, average, strict=True)
    ]
    assert np.allclose(scores, by_hand)
    assert (rmia(target, refs, z, zs, included=included, gamma=2.0) <= scores).all()


def test_rmia_refuses_what_it_cannot_compare() -> None:
    target, refs, included, _, z, zs = world(1.0, n=20)
    with pytest.raises(ValueError, match="in some reference"):
        rmia(target, refs, z, zs, included=np.ones_like(included))
    with pytest.raises(ValueError, match="probabilities"):
        rmia(target * 9, refs, z, zs)
    with pytest.raises(ValueError, match="needs target"):
        rmia(target[1:], refs, z, zs)
    with pytest.raises(ValueError, match="gamma"):
        rmia(target, refs, z, zs, gamma=0.5)


# ----------------------------------------------------------------------------------------------- FedMIA


def rounds(summed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(alignments of 5 rounds of 6 clients with 200 records, members): client 0 trained on the first hundred.

    A record's gradient is a direction of its own and a common one; an update is minus the mean over the shard.
    """
    generator = torch.Generator().manual_seed(0)
    shards, found = 600, []
    for _ in range(5):
        own = torch.randn(shards + 100, 400, generator=generator)
        gradients = own + torch.randn(1, 400, generator=generator)
        updates = torch.stack([-gradients[c * 100 : (c + 1) * 100].mean(0) for c in range(6)])
        updates = updates + 0.02 * torch.randn(updates.shape, generator=generator)
        if summed:
            updates = updates.sum(0, keepdim=True).repeat(6, 1)
        asked = torch.cat([gradients[:100], gradients[600:]])
        found.append(alignment(asked, updates))
    return np.stack(found), np.arange(200) < 100


def test_fedmia_tells_whose_records_they_are() -> None:
    aligned, members = rounds()
    mine = auc_interval(fedmia(aligned, 0), members)
    assert mine.low > 0.8
    assert auc(fedmia(aligned[:1], 0), members) < mine.value, "rounds add up"
    assert auc(fedmia(aligned, 3), members) < 0.6, "another client's updates do not name these records"


def test_fedmia_is_chance_under_a_secure_sum() -> None:
    aligned, members = rounds(summed=True)
    found = auc_interval(fedmia(aligned, 0), members)
    assert found.low <= 0.5 <= found.high, "all clients look the same; what is left is rounding, or nothing"


def test_alignment_is_the_cosine_with_descent() -> None:
    g, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 0.0], [0.0, 3.0]])
    assert np.allclose(alignment(g, u), [[1.0], [0.0]])


def test_fedmia_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        fedmia(np.zeros((2, 3, 4)), 0)
    with pytest.raises(ValueError, match="one of its clients"):
        fedmia(np.zeros((2, 5, 4)), 7)
    with pytest.raises(ValueError, match="not finite"):
        alignment(torch.full((1, 2), torch.nan), torch.ones(1, 2))
    with pytest.raises(ValueError, match="needs gradients"):
        alignment(torch.ones(1, 2), torch.ones(1, 3))


# ------------------------------------------------------------------------------------------ language models


class Bigram(nn.Module):
    """The smallest language model: a table of next-token logits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 40)
        nn.init.normal_(self.table.weight, std=0.5, generator=torch.Generator().manual_seed(0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.table(ids)
        return logits


def texts(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 40, (n, 12), generator=torch.Generator().manual_seed(seed))


def scored(steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    model, train, held = Bigram(), texts(30, 1), texts(30, 2)
    both, mask = torch.cat([train, held]), torch.ones(60, 12)
    with torch.no_grad():
        before = token_scores(model(both), both, mask)
    step = torch.optim.SGD(model.parameters(), 20.0)
    for _ in range(steps):
        step.zero_grad()
        F.cross_entropy(model(train)[:, :-1].flatten(0, 1), train[:, 1:].flatten()).backward()
        step.step()
    with torch.no_grad():
        after = token_scores(model(both), both, mask)
    scores = {
        "loss": loss_score(after),
        "min_k": min_k(after, 0.4),
        "min_k++": min_k_plus_plus(after, 0.4),
        "reference": reference(after, before),
    }
    return {k: v.numpy() for k, v in scores.items()}, np.arange(60) < 30


@pytest.mark.parametrize("attack", ["loss", "min_k", "min_k++", "reference"])
def test_texts_that_were_learnt_are_found_and_others_not(attack: str) -> None:
    scores, members = scored(30)
    assert auc(scores[attack], members) > 0.85
    if attack != "reference":  # nothing has changed before the first step
        fresh, _ = scored(0)
        found = auc_interval(fresh[attack], members)
        assert found.low < 0.5 < found.high


def test_the_reference_beats_the_loss_where_texts_differ_in_difficulty() -> None:
    scores, members = scored(3)
    assert auc(scores["reference"], members) >= auc(scores["loss"], members)


def test_min_k_takes_the_least_likely_and_plus_plus_standardizes() -> None:
    ids = torch.tensor([[0, 1, 2, 0]])
    logits = torch.tensor([[[0.0, 2.0, 1.0], [1.0, 0.0, 3.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    scores = token_scores(logits, ids, torch.ones(1, 4))
    logs = logits.double().log_softmax(-1)[0]
    own = torch.stack([logs[0, 1], logs[1, 2], logs[2, 0]])
    assert torch.allclose(min_k(scores, 0.5), own.sort().values[:2].mean()[None])
    p = logs.exp()
    mean = (p * logs).sum(-1)[:3]
    spread = ((p * (logs - (p * logs).sum(-1, keepdim=True)).square()).sum(-1)).sqrt()[:3]
    standard = ((own - mean) / spread).sort().values
    assert torch.allclose(min_k_plus_plus(scores, 0.3), standard[:1].mean()[None])


def test_padding_does_not_count() -> None:
    model, ids = Bigram(), texts(2, 3)
    with torch.no_grad():
        whole = token_scores(model(ids[:, :6]), ids[:, :6], torch.ones(2, 6))
        padded = token_scores(model(ids), ids, (torch.arange(12) < 6).expand(2, 12))
    for attack in (loss_score, min_k, min_k_plus_plus):
        assert torch.allclose(attack(whole), attack(padded))


def test_texts_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="one token"):
        token_scores(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, 0, 0]]))
    with pytest.raises(ValueError, match="needs logits"):
        token_scores(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))
    scores = token_scores(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))
    with pytest.raises(ValueError, match="share"):
        min_k(scores, 0.0)
    shorter = token_scores(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))
    with pytest.raises(ValueError, match="same texts"):
        reference(scores, shorter)
