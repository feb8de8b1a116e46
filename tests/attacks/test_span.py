"""Updates give their tokens away where the budget says so, and not where it says not; on four architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from securefed_attacks.leakage_budget import lora_budget
from securefed_attacks.span import first_inputs, span_check
from tests.securefed.models import tiny


def test_inputs_of_a_linear_layer_are_found_among_thousands() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(5000, 64, generator=generator)
    true = torch.tensor([3, 77, 4000, 4999])
    gradient = torch.randn(32, 4, generator=generator) @ candidates[true]
    found = span_check([gradient], candidates)
    assert set(found.found.tolist()) == set(true.tolist())
    assert found.rank == 4
    assert not found.saturated


def test_rounding_to_float32_and_noise_below_it_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randn(2000, 48, generator=generator)
    true = list(range(0, 2000, 200))
    gradient = (torch.randn(64, 10, generator=generator) @ candidates[true]).float()
    noisy = gradient + 1e-6 * gradient.norm() / gradient.numel() ** 0.5 * torch.randn(
        64, 48, generator=generator
    )
    assert set(span_check([noisy], candidates).found.tolist()) == set(true)


def test_more_inputs_than_dimensions_give_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    candidates = torch.randn(500, 16, generator=generator)
    gradient = torch.randn(64, 40, generator=generator) @ candidates[:40]
    found = span_check([gradient], candidates)
    assert found.saturated
    assert len(found.found) == 0


@pytest.mark.parametrize(("scale", "found"), [(0.01, 6), (3.0, 0), (30.0, 0)])
def test_noise_ends_the_finding_only_where_it_is_as_large_as_a_mechanisms(scale: float, found: int) -> None:
    generator = torch.Generator().manual_seed(3)
    candidates = torch.randn(2000, 48, generator=generator)
    gradient = torch.randn(64, 6, generator=generator) @ candidates[:6]
    noise = scale * gradient.norm() / gradient.numel() ** 0.5 * torch.randn(64, 48, generator=generator)
    assert len(span_check([gradient + noise], candidates).found) == found


def test_another_batchs_update_does_not_name_these_tokens() -> None:
    """The wrong-update control: what is found must come from the update, not from the candidates."""
    generator = torch.Generator().manual_seed(4)
    candidates = torch.randn(1000, 32, generator=generator)
    gradient = torch.randn(16, 5, generator=generator) @ candidates[100:105]
    assert not set(span_check([gradient], candidates).found.tolist()) & set(range(100))


def test_an_update_of_zeros_says_nothing() -> None:
    found = span_check([torch.zeros(4, 8)], torch.randn(10, 8))
    assert (len(found.found), found.rank) == (0, 0)


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="needs matrices"):
        span_check([torch.zeros(4, 8)], torch.randn(10, 9))
    with pytest.raises(ValueError, match="needs matrices"):
        span_check([], torch.randn(10, 9))
    with pytest.raises(ValueError, match="not finite"):
        span_check([torch.full((4, 8), torch.nan)], torch.randn(10, 8))


# -------------------------------------------------------------------------------------------- real layers


def causal(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def ids_of(vocabulary: int, n: int, seed: int) -> torch.Tensor:
    return torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))[:n][None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return causal(tiny.tiny_llama(tmp_path_factory.mktemp("llama")))


def projections(model: Any) -> list[nn.Linear]:
    attention = model.model.layers[0].self_attn
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def test_a_decoders_full_gradient_gives_its_bag_of_tokens(llama: Any) -> None:
    vocabulary = llama.config.vocab_size
    ids = ids_of(vocabulary, 5, 1)
    layers = projections(llama)
    loss = llama(input_ids=ids, labels=ids).loss
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
    candidates = first_inputs(llama, layers[0], torch.arange(vocabulary))
    found = set(span_check(gradients, candidates).found.tolist())
    true = set(ids[0].tolist())
    assert found <= true, "no false token"
    assert len(found & true) >= len(true) - 1, "the last token has no loss on it"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_lora_delta_gives_tokens_away_as_the_budget_predicts(llama: Any, optimizer: str) -> None:
    vocabulary, rank = llama.config.vocab_size, 3
    ids = ids_of(vocabulary, 6, 2)
    layers = projections(llama)
    torch.manual_seed(1)
    factors = [
        nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5) for layer in layers
    ]
    others = [nn.Parameter(torch.zeros(layer.out_features, rank)) for layer in layers]
    handles = [
        layer.register_forward_hook(lambda m, x, y, a=a, b=b: y + x[0] @ a.T @ b.T)
        for layer, a, b in zip(layers, factors, others, strict=True)
    ]
    before = [a.detach().clone() for a in factors]
    step: torch.optim.Optimizer = (
        torch.optim.SGD([*factors, *others], 0.05)
        if optimizer == "sgd"
        else torch.optim.AdamW([*factors, *others], 1e-3, weight_decay=0.0)
    )
    for _ in range(10):
        step.zero_grad()
        llama(input_ids=ids, labels=ids).loss.backward()
        step.step()
    for handle in handles:
        handle.remove()
    llama.zero_grad()
    delta = [a.detach() - b for a, b in zip(factors, before, strict=True)]
    candidates = first_inputs(llama, layers[0], torch.arange(vocabulary))
    finding = span_check(delta, candidates)
    true = set(ids[0].tolist())
    budget = lora_budget(rank=rank, modules=3, tokens=6, observed="delta", optimizer=optimizer, steps=10)
    if budget.verdict == "exact":
        assert set(finding.found.tolist()) <= true
        assert len(finding.found) >= 5
    else:
        assert not set(finding.found.tolist()) >= true, "the exact test is blocked"
        nearest = set(finding.ranking[:6].tolist())
        assert len(nearest & true) > 6 * 6 / vocabulary * 3, "but true tokens still come first"


def test_the_first_gradient_of_a_fresh_adapter_shows_nothing_when_tokens_fill_the_rank(llama: Any) -> None:
    vocabulary, rank = llama.config.vocab_size, 4
    ids = ids_of(vocabulary, 8, 3)
    layer = projections(llama)[0]
    torch.manual_seed(2)
    a = torch.randn(rank, layer.in_features) / layer.in_features**0.5
    b = nn.Parameter(torch.zeros(layer.out_features, rank))
    handle = layer.register_forward_hook(lambda m, x, y: y + x[0] @ a.T @ b.T)
    (gradient,) = torch.autograd.grad(llama(input_ids=ids, labels=ids).loss, [b])
    handle.remove()
    seen_through_a = first_inputs(llama, layer, torch.arange(vocabulary)) @ a.T
    assert len(span_check([gradient], seen_through_a).found) == 0
    budget = lora_budget(rank=rank, modules=1, tokens=8, observed="gradient", optimizer="sgd")
    assert budget.verdict == "nothing"


def test_an_encoders_gradient_gives_tokens_and_positions(tmp_path: Path) -> None:
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(tiny.tiny_bert(tmp_path), attn_implementation="eager").eval()
    vocabulary = model.config.vocab_size
    ids = ids_of(vocabulary, 4, 5)
    query = model.encoder.layer[0].attention.self.query
    loss = model(input_ids=ids).last_hidden_state.square().sum()
    (gradient,) = torch.autograd.grad(loss, [query.weight])
    pairs = {
        (int(t), p)
        for p in range(4)
        for t in _near(gradient, first_inputs(model, query, torch.arange(vocabulary), p))
    }
    assert {(int(t), p) for p, t in enumerate(ids[0])} <= pairs
    assert len(pairs) <= 8


def _near(gradient: torch.Tensor, candidates: torch.Tensor) -> list[int]:
    finding = span_check([gradient], candidates)
    return [int(t) for t in finding.found if finding.residual[t] < 1e-2]


def test_a_layer_that_is_not_reached_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="first block"):
        first_inputs(llama, nn.Linear(4, 4), torch.arange(3))


# ---------------------------------------------------------------------------------------------- budgets


def test_the_budget_counts() -> None:
    exact = lora_budget(rank=8, modules=3, tokens=22, observed="delta", optimizer="sgd", steps=3)
    assert (exact.verdict, exact.equations, exact.unknowns) == ("exact", 24, 22)
    assert (
        lora_budget(rank=8, modules=3, tokens=59, observed="delta", optimizer="sgd", steps=3).verdict
        == "nothing"
    )
    assert lora_budget(rank=64, modules=1, tokens=22, observed="gradient", optimizer="sgd").verdict == "exact"
    assert (
        lora_budget(rank=8, modules=1, tokens=22, observed="gradient", optimizer="sgd").verdict == "nothing"
    )
    assert (
        lora_budget(rank=8, modules=3, tokens=5, observed="delta", optimizer="AdamW", steps=9).verdict
        == "ranking"
    )
    with pytest.raises(ValueError, match="not known"):
        lora_budget(rank=8, modules=3, tokens=5, observed="delta", optimizer="lion")
    with pytest.raises(ValueError, match="at least 1"):
        lora_budget(rank=0, modules=3, tokens=5, observed="delta", optimizer="sgd")


@pytest.mark.parametrize("seed", range(12))
def test_directions_of_rounding_are_not_counted_as_inputs(seed: int) -> None:
    """In float32 a larger span than the inputs' own now and then separates by a hair more."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randn(500, 64, generator=generator, dtype=torch.float64)
    gradient = torch.randn(32, 4, generator=generator, dtype=torch.float64) @ candidates[:4]
    found = span_check([gradient.float()], candidates.float())
    assert set(found.found.tolist()) == set(range(4))
    assert found.rank == 4
