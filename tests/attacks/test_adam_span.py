"""Signs of combinations give away what was combined, better than their span does; signs of nothing do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from securefed_attacks.adam_span import AdamSpan, adam_tokens
from securefed_attacks.span import span_check
from securefed_attacks.span_tokens import token_bag
from securefed_attacks.transformer_reader import open_reader
from tests.attacks.test_span_text import Tensors, drawn, loaded

TRUE = 20
LIGHT = AdamSpan(kept=200, choices=2, iterations=5)


def world(seed: int) -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    """(candidates (500, 96) whose columns differ in size, what Adam makes of 10 combinations, which were combined)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 96, generator=generator) * torch.rand(96, generator=generator).add(0.1)
    chosen = torch.randperm(500, generator=generator)[:TRUE]
    gradient = torch.randn(10, TRUE, generator=generator) @ x[chosen]
    change = -1e-3 * gradient.sign() * (1 - 0.1 * torch.rand(gradient.shape, generator=generator))
    return x, change, set(chosen.tolist())


def hits(ranking: torch.Tensor, true: set[int]) -> int:
    return len(set(ranking[: len(true)].tolist()) & true)


def test_it_names_more_than_the_plain_ranking_from_the_same_update() -> None:
    found = [(LIGHT([c[:5], c[5:]], x), span_check([c], x), true) for x, c, true in map(world, range(5))]
    ours, plain = (
        sum(hits(f.ranking, true) for f, _, true in found),
        sum(hits(p.ranking, true) for _, p, true in found),
    )
    assert not any(len(p.found) for _, p, _ in found), "the exact test finds nothing behind Adam"
    assert ours >= 0.8 * 5 * TRUE
    assert ours >= plain + 10


def test_random_signs_name_nobody() -> None:
    x, change, true = world(0)
    signs = torch.randn(change.shape, generator=torch.Generator().manual_seed(9)).sign()
    assert hits(LIGHT([signs], x).ranking, true) <= 4  # chance: 20 of 500, so 0.8 on average


def test_another_clients_update_does_not_name_these() -> None:
    x, _, true = world(0)
    generator = torch.Generator().manual_seed(3)
    others = torch.tensor([i for i in range(500) if i not in true])[
        torch.randperm(500 - TRUE, generator=generator)[:TRUE]
    ]
    change = (torch.randn(10, TRUE, generator=generator) @ x[others]).sign()
    finding = LIGHT([change], x)
    assert hits(finding.ranking, set(others.tolist())) >= TRUE - 6
    assert hits(finding.ranking, true) <= 4


def test_every_candidate_has_its_place() -> None:
    x, change, true = world(1)
    finding = LIGHT([change], x)
    assert sorted(finding.ranking.tolist()) == list(range(500))
    assert finding.nearest(3) == tuple(finding.ranking[:3].tolist())
    assert float(finding.strength[list(true)].sum()) > 0.8 * float(finding.strength.sum())


def adamw(model: Any, ids: torch.Tensor, steps: int = 5) -> Tensors:
    named = {
        n: p for n, p in model.named_parameters() if "layers.0.self_attn" in n or "layer.0.attention" in n
    }
    start = {n: p.detach().clone() for n, p in named.items()}
    step = torch.optim.AdamW(named.values(), 1e-3, weight_decay=0.0)
    labels = ids if hasattr(model, "lm_head") else torch.arange(len(ids)) % 2
    for _ in range(steps):
        step.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        step.step()
    change = {n: p.detach() - start[n] for n, p in named.items()}
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(start[n])
    return change


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_tokens_of_a_transformer_trained_by_adamw_come_first(kind: str, tmp_path: object) -> None:
    model = loaded(kind, tmp_path)  # type: ignore[arg-type]  # the folder is not read
    reader, ours, plain, wrong = open_reader(model), 0, 0, 0
    for seed in range(3):
        ids = drawn(1, 6, seed)
        update = adamw(model, ids)
        true, other = set(ids[0].tolist()), set(drawn(1, 6, seed + 50)[0].tolist())
        finding = adam_tokens(reader, update, longest=8, attack=AdamSpan(kept=400, choices=2, iterations=8))
        ours += len(set(finding.nearest(6)) & true)
        wrong += len(set(finding.nearest(6)) & other - true)
        plain += len(set(token_bag(reader, update, longest=8).nearest(6)) & true)
    assert ours >= max(plain, 10)
    assert wrong <= 2


def test_what_cannot_be_ranked_is_refused() -> None:
    x, change, _ = world(0)
    with pytest.raises(ValueError, match="all zeros"):
        LIGHT([torch.zeros(3, 96)], x)
    with pytest.raises(ValueError, match="not finite"):
        LIGHT([change * torch.nan], x)
    with pytest.raises(ValueError, match="needs matrices"):
        LIGHT([change[:, 1:]], x)
    with pytest.raises(ValueError, match="kept, choices"):
        AdamSpan(kept=0)
