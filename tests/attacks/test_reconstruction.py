"""Inputs and labels come back exactly where theory says so, and not behind noise, sums or a closed layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from securefed.models.inspection import inspect_model
from securefed_attacks.embedding_rows import embedding_tokens
from securefed_attacks.imprint import Imprint, Imprinted
from securefed_attacks.labels import count_error, label_counts, label_of_one
from securefed_attacks.linear_inversion import best_psnr, distinct, inputs_by_neuron, invert_linear, psnr

Pair = tuple[torch.Tensor, torch.Tensor]


def perceptron(seed: int = 0, d: int = 64, classes: int = 10) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, classes))


def images(n: int, d: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed))


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


def noisy(tensors: tuple[torch.Tensor, ...], multiplier: float) -> tuple[torch.Tensor, ...]:
    """What a Gaussian mechanism releases of a gradient that is clipped to its own norm."""
    generator = torch.Generator().manual_seed(3)
    norm = torch.cat([t.flatten() for t in tensors]).norm()
    return tuple(t + multiplier * norm * torch.randn(t.shape, generator=generator) for t in tensors)


# -------------------------------------------------------------------------------------- linear with bias


@given(st.integers(0, 10_000), st.integers(0, 9))
def test_one_record_comes_back_beyond_100_db_with_its_label(seed: int, label: int) -> None:
    x, model = images(1, seed=seed), perceptron(seed % 7)
    w, b, w2, b2 = gradient(model, x, torch.tensor([label]))
    assert psnr(invert_linear(w, b), x[0]) > 100
    assert label_of_one(b2) == label
    assert label_of_one(w2) == label


def test_a_batch_gives_those_records_that_had_a_neuron_alone() -> None:
    """A layer whose neuron i is open for record i only, and one that is open for all."""
    x = torch.eye(4, 6)
    delta = torch.cat([torch.eye(4), torch.ones(1, 4)])
    weight, bias = delta @ x, delta.sum(1)
    back = inputs_by_neuron(weight, bias)
    assert torch.allclose(back[:4], x)
    assert torch.allclose(back[4], x.mean(0)), "a shared neuron gives the average"
    assert len(distinct(torch.cat([back, back[:2] * (1 + 1e-5)]))) == 5


@pytest.mark.parametrize("clients", [2, 10])
def test_an_honest_layers_sum_hides_the_record(clients: int) -> None:
    model, x = perceptron(), images(clients)
    w, b, *_ = gradient(model, x, torch.arange(clients) % 10)
    assert float(best_psnr(invert_linear(w, b)[None], x).max()) < 40


def test_noise_of_a_mechanism_hides_the_record() -> None:
    x = images(1)
    w, b, *_ = noisy(gradient(perceptron(), x, torch.tensor([3])), 1.0)
    assert psnr(invert_linear(w, b).clamp(0, 1), x[0]) < 10


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="did not move"):
        invert_linear(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="needs weight"):
        invert_linear(torch.zeros(3, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        invert_linear(torch.full((3, 4), math.nan), torch.ones(3))
    assert psnr(torch.ones(3), torch.ones(3)) == math.inf
    assert bool((best_psnr(torch.empty(0, 3), torch.ones(2, 3)) == -math.inf).all())


# ------------------------------------------------------------------------------------------------ labels


@given(st.integers(0, 1000), st.integers(1, 64))
def test_labels_of_a_batch_are_counted_right_where_the_average_output_is_known(seed: int, n: int) -> None:
    x, model = images(n, seed=seed), perceptron(seed % 5)
    y = torch.randint(0, 10, (n,), generator=torch.Generator().manual_seed(seed))
    *_, b2 = gradient(model, x, y)
    known = model(x).softmax(1).mean(0).detach()
    assert torch.equal(label_counts(b2, n, known), torch.bincount(y, minlength=10))


def test_labels_are_counted_from_data_of_the_servers_own() -> None:
    x, model = images(64, seed=1), perceptron(1)
    y = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(1))
    *_, b2 = gradient(model, x, y)
    guessed = model(images(200, seed=2)).softmax(1).mean(0).detach()
    assert count_error(label_counts(b2, 64, guessed), torch.bincount(y, minlength=10)) <= 1 / 64


def test_labels_behind_noise_are_guesses() -> None:
    right = 0
    for seed in range(40):
        *_, b2 = noisy(gradient(perceptron(seed), images(1, seed=seed), torch.tensor([seed % 10])), 1.0)
        counts = label_counts(b2, 1, torch.full((10,), 0.1))
        right += int(counts.argmax()) == seed % 10
    assert right < 20, "of 40; chance is 4, and clipped noise is the same in every draw here"


def test_labels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one class"):
        label_of_one(torch.tensor([0.1, 0.2, -0.1, -0.2]))
    with pytest.raises(ValueError, match="no class opposes"):
        label_of_one(torch.rand(4, 3))
    with pytest.raises(ValueError, match="needs bias"):
        label_counts(torch.zeros(4), 0, torch.zeros(4))


# ----------------------------------------------------------------------------------------------- imprint


def printed(clients: int, each: int, bins: int, sigma: float = 0.0) -> tuple[float, Imprint]:
    """Share of all records that a malicious server gets above 40 dB from the sum of the clients' gradients."""
    imprint = Imprint.fitted(images(4000, seed=9), bins)
    model, x = Imprinted(imprint, 10), images(clients * each, seed=4)
    y = torch.arange(len(x)) % 10
    total: Any = None
    for part in range(clients):
        rows = slice(part * each, (part + 1) * each)
        mine = gradient(model, x[rows], y[rows])[:2]
        total = mine if total is None else tuple(a + b for a, b in zip(total, mine, strict=True))
    w, b = noisy(total, sigma) if sigma else total
    return float((best_psnr(imprint.recover(w, b), x) > 40).double().mean()), imprint


def test_an_imprint_reads_records_from_one_gradient_and_from_a_secure_sum_of_ten() -> None:
    alone, _ = printed(1, 16, 256)
    summed, _ = printed(10, 16, 1024)
    assert alone > 0.6
    assert summed > 0.5


def test_noise_of_a_mechanism_ends_an_imprint() -> None:
    assert printed(1, 16, 256, sigma=0.1)[0] == 0


def test_fewer_bins_than_records_read_few() -> None:
    assert printed(10, 16, 16)[0] < 0.1


def test_a_client_that_looks_sees_an_imprint() -> None:
    _, imprint = printed(1, 4, 64)
    assert inspect_model({"layer.weight": imprint.weight}).suspicious
    assert not inspect_model({"layer.weight": perceptron()[0].weight.detach()}).suspicious


def test_an_imprint_refuses_what_is_not_its_own() -> None:
    _, imprint = printed(1, 4, 64)
    with pytest.raises(ValueError, match="this layer's gradients"):
        imprint.recover(torch.zeros(3, 64), torch.zeros(3))
    with pytest.raises(ValueError, match="bins >= 2"):
        Imprint.fitted(images(3), 8)


# ----------------------------------------------------------------------------------------- embedding rows


def language(tied: bool) -> nn.Module:
    """Embedding, a mixing layer over the sequence so far, and an output over 400 tokens."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(400, 48)
            self.mix = nn.Linear(48, 48)
            self.out = nn.Linear(48, 400, bias=False)
            if tied:
                self.out.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)
            seen = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
            logits: torch.Tensor = self.out(torch.tanh(self.mix(seen)))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Model()


@pytest.mark.parametrize("tied", [False, True])
def test_the_rows_of_a_fully_trained_embedding_name_the_tokens(tied: bool) -> None:
    model = language(tied)
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:12].reshape(2, 6)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    (rows,) = torch.autograd.grad(loss, [model.get_parameter("table.weight")])
    leak = embedding_tokens(rows)
    assert leak.tied == tied
    assert set(leak.tokens) == set(ids[:, :-1].flatten().tolist())
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    assert embedding_tokens(rows + rows.norm() * noise).tokens == ()


def test_a_sum_of_clients_still_gives_the_union_of_their_tokens() -> None:
    model, total, true = language(False), torch.zeros(400, 48), set()
    for seed in range(10):
        ids = torch.randint(0, 400, (1, 6), generator=torch.Generator().manual_seed(seed))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        total += torch.autograd.grad(loss, [model.get_parameter("table.weight")])[0]
        true |= set(ids[:, :-1].flatten().tolist())
    assert set(embedding_tokens(total).tokens) == true


def test_a_table_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="finite table"):
        embedding_tokens(torch.zeros(3))
