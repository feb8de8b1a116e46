"""Gradient matching reads words where no span can, and reads nothing from a gradient of another text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from securefed_attacks.span_tokens import token_bag
from securefed_attacks.text_matching import TextMatching
from securefed_attacks.transformer_reader import open_reader
from tests.attacks.test_span_text import Tensors, drawn, gradient

LABELS = torch.tensor([1])
LIGHT = TextMatching(iterations=150, restarts=5, rate=0.04, swap_every=50, swaps=10)


@pytest.fixture(scope="module")
def bert() -> Any:
    """Two blocks with weights as small as trained ones: the gradient changes smoothly with the embeddings."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3 if "word_embeddings" in name else 0.05)
    return model.eval()


def trained(name: str) -> bool:
    """No embedding, and nothing that the first block's inputs are fed to."""
    return "embeddings" not in name and "layer.0.attention.self" not in name


def of_text(model: Any, ids: torch.Tensor) -> Tensors:
    named = {n: p for n, p in model.named_parameters() if trained(n)}
    got = torch.autograd.grad(model(input_ids=ids, labels=LABELS).loss, list(named.values()))
    return dict(zip(named, got, strict=True))


def words(found: torch.Tensor, true: torch.Tensor) -> int:
    return len(set(found.flatten().tolist()) & set(true.flatten().tolist()))


@pytest.mark.parametrize("distance", ["cosine", "tag"])
def test_words_are_read_from_gradients_that_hold_no_span(bert: Any, distance: str) -> None:
    ids = drawn(1, 4, 0)
    with pytest.raises(ValueError, match="nothing to check"):
        token_bag(open_reader(bert), of_text(bert, ids))
    attack = replace(LIGHT, distance=distance)  # type: ignore[arg-type]  # strings of the parametrization
    found = attack(bert, of_text(bert, ids), LABELS, 4, among=range(5, 195))
    assert words(found.ids, ids) >= 3  # chance: 4 draws of 4 in 190


def test_another_texts_gradient_does_not_give_these_words(bert: Any) -> None:
    ids, other = drawn(1, 4, 0), drawn(1, 4, 7)
    assert not set(ids.flatten().tolist()) & set(other.flatten().tolist())
    assert words(LIGHT(bert, of_text(bert, other), LABELS, 4, among=range(5, 195)).ids, ids) <= 1


def test_noise_ends_it(bert: Any) -> None:
    ids, generator = drawn(1, 4, 0), torch.Generator().manual_seed(0)
    noisy = {
        n: g + 30 * g.norm() / g.numel() ** 0.5 * torch.randn(g.shape, generator=generator)
        for n, g in of_text(bert, ids).items()
    }
    assert words(LIGHT(bert, noisy, LABELS, 4, among=range(5, 195)).ids, ids) <= 1


def test_known_places_stay_and_a_prior_breaks_ties(bert: Any) -> None:
    ids = drawn(1, 4, 0)
    asked: list[int] = []

    def prior(texts: torch.Tensor) -> torch.Tensor:
        asked.append(len(texts))
        return torch.zeros(len(texts))

    first = int(ids[0, 0])
    attack = replace(LIGHT, iterations=20, swap_every=5)
    found = attack(bert, of_text(bert, ids), LABELS, 4, known={0: first}, prior=prior)
    assert int(found.ids[0, 0]) == first
    assert asked
    assert found.iterations == 20


def test_a_budget_of_seconds_is_kept_and_progress_told(bert: Any) -> None:
    told: list[int] = []
    found = replace(LIGHT, iterations=10_000, seconds=3.0)(
        bert, of_text(bert, drawn(1, 4, 0)), LABELS, 4, progress=lambda i, _: told.append(i)
    )
    assert found.iterations < 10_000
    assert told


def test_gradients_of_something_else_are_refused(bert: Any) -> None:
    right = gradient(bert, drawn(1, 4, 0))
    with pytest.raises(ValueError, match="names and shapes"):
        LIGHT(bert, {"nobody": torch.ones(2)}, LABELS, 4)
    with pytest.raises(ValueError, match="nothing to match"):
        LIGHT(bert, {n: torch.zeros_like(g) for n, g in right.items()}, LABELS, 4)
    with pytest.raises(ValueError, match="restarts >= 1"):
        TextMatching(restarts=0)
    with pytest.raises(ValueError, match="not negative"):
        TextMatching(lengths=-1)
