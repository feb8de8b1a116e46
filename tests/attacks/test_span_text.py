"""Texts are read out of updates of encoders and decoders, full and LoRA, where they must be and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from securefed_attacks.budget_proof import prove_budget
from securefed_attacks.leakage_budget import lora_budget
from securefed_attacks.span_order import NOTHING, order_tokens
from securefed_attacks.span_tokens import TokenBag, token_bag
from securefed_attacks.transformer_reader import Reader, open_reader
from tests.securefed.models import tiny

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def loaded(kind: str, folder: Path) -> Any:
    """A tiny model wide enough (32) that a dozen inputs do not fill it."""
    import transformers

    make: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=200,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                max_position_embeddings=32,
                attn_implementation="eager",
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=200, n_embd=32, n_layer=3, n_head=2, n_positions=32)
        ),
        "bert": lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=200,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=32,
                attn_implementation="eager",
            )
        ),
        "roberta": lambda: transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                vocab_size=200,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=34,
                pad_token_id=1,
            )
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
    return model.eval()


def drawn(rows: int, length: int, seed: int) -> torch.Tensor:
    return 5 + torch.randperm(190, generator=torch.Generator().manual_seed(seed))[: rows * length].reshape(
        rows, length
    )


def gradient(model: Any, ids: torch.Tensor, trained: Callable[[str], bool] = lambda _: True) -> Tensors:
    labels = ids if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__ else None
    if labels is None:
        labels = torch.arange(len(ids)) % 2
    named = {n: p for n, p in model.named_parameters() if trained(n)}
    loss = model(input_ids=ids, labels=labels).loss
    got = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, got, strict=True) if g is not None}


def texts_of(ids: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()) for row in ids}


def read(model: Any, update: Tensors, **kwargs: Any) -> tuple[Reader, TokenBag, set[tuple[int, ...]]]:
    reader = open_reader(model)
    bag = token_bag(reader, update, longest=12, **kwargs)
    return reader, bag, set(order_tokens(reader, update, bag, longest=12, **kwargs).texts)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_decoders_texts_are_read_in_order_but_for_their_last_token(
    kind: str, rows: int, folder: Path
) -> None:
    model, ids = loaded(kind, folder), drawn(rows, 7, 1)
    reader, bag, texts = read(model, gradient(model, ids))
    assert reader.causal
    assert reader.positional == (kind == "gpt2")
    assert set(bag.tokens) == set(ids[:, :-1].flatten().tolist())
    assert texts == texts_of(ids[:, :-1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_encoders_tokens_positions_and_texts_are_exact(kind: str, rows: int, folder: Path) -> None:
    model, ids = loaded(kind, folder), drawn(rows, 6, 2)
    reader, bag, texts = read(model, gradient(model, ids))
    assert not reader.causal
    assert bag.pairs == {(p, int(t)) for row in ids for p, t in enumerate(row)}
    assert texts == texts_of(ids)


def test_a_one_step_delta_of_full_training_reads_like_its_gradient(folder: Path) -> None:
    model, ids = loaded("llama", folder), drawn(2, 6, 3)
    update = {n: -0.1 * g for n, g in gradient(model, ids).items()}
    assert read(model, update)[2] == texts_of(ids[:, :-1])


def test_several_local_steps_of_full_training_still_give_the_bag(folder: Path) -> None:
    """Embeddings stay, as in most fine-tuning; then the first layer's inputs do not move."""
    model, ids = loaded("llama", folder), drawn(1, 8, 4)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.get_input_embeddings().weight.requires_grad_(False)
    model.model.layers[0].input_layernorm.weight.requires_grad_(False)
    step = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.02)
    for _ in range(5):
        step.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        step.step()
    update = {n: p.detach() - start[n] for n, p in model.named_parameters()}
    model.load_state_dict(start, strict=False)
    bag = token_bag(open_reader(model), update)
    assert set(bag.tokens) == set(ids[0, :-1].tolist())


def test_a_relative_encoder_gives_its_bag_without_an_order(tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration.from_pretrained(tiny.tiny_t5(tmp_path)).eval()
    ids = 4 + torch.randperm(58, generator=torch.Generator().manual_seed(0))[:5][None]
    named = dict(model.named_parameters())
    loss = model(input_ids=ids, labels=ids.flip(1)).loss
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    update = {n: g for n, g in zip(named, grads, strict=True) if g is not None}
    reader = open_reader(model)
    bag = token_bag(reader, update)
    assert not reader.positional
    assert set(bag.tokens) == set(ids[0].tolist())
    assert order_tokens(reader, update, bag).texts == ()


# ------------------------------------------------------------------------------------------------ LoRA


def adapted(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                target_modules=["q_proj", "k_proj", "v_proj"],
                init_lora_weights=True,
            ),
        )


def trained(model: Any, ids: torch.Tensor, optimizer: str, steps: int) -> Tensors:
    """The change of an adapter over local steps; the model is left as it began."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in named.items()}
    step: torch.optim.Optimizer = (
        torch.optim.SGD(named.values(), 0.2)
        if optimizer == "sgd"
        else torch.optim.AdamW(named.values(), 1e-3, weight_decay=0.0)
    )
    for _ in range(steps):
        step.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        step.step()
    update = {n: p.detach() - start[n] for n, p in named.items()}
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(start[n])
    return update


@pytest.mark.parametrize(
    ("rank", "optimizer", "steps", "observed"),
    [
        (4, "sgd", 10, "delta"),
        (4, "adamw", 10, "delta"),
        (4, "sgd", 1, "gradient"),
        (12, "sgd", 1, "gradient"),
    ],
)
def test_the_budget_is_proved_on_the_update_itself(
    rank: int, optimizer: str, steps: int, observed: Any, folder: Path
) -> None:
    model = adapted(loaded("llama", folder), rank)
    ids, other = drawn(1, 8, 6), set(drawn(3, 40, 7).flatten().tolist())
    update = trained(model, ids, optimizer, steps)
    bag = token_bag(open_reader(model), update)
    budget = lora_budget(rank=rank, modules=3, tokens=8, observed=observed, optimizer=optimizer, steps=steps)
    proof = prove_budget(budget, bag, ids[0].tolist(), other)
    assert proof.holds, proof
    assert proof.false == 0


def test_a_first_round_of_enough_rank_gives_whole_texts_through_b(folder: Path) -> None:
    model, ids = adapted(loaded("llama", folder), 16), drawn(1, 7, 8)
    update = trained(model, ids, "sgd", 1)
    assert not any(bool(v.any()) for n, v in update.items() if "lora_A" in n), "A cannot move while B is zero"
    assert read(model, update)[2] == texts_of(ids[:, :-1])


def test_names_as_an_adapter_file_has_them_are_understood(folder: Path) -> None:
    model, ids = adapted(loaded("llama", folder), 8), drawn(1, 6, 9)
    start = {n.replace(".default", ""): p.detach().clone() for n, p in model.named_parameters()}
    update = {n.replace(".default", ""): v for n, v in trained(model, ids, "sgd", 1).items()}
    bare = loaded("llama", folder)
    bag = token_bag(open_reader(bare), update, before=start)
    assert set(bag.tokens) == set(ids[0, :-1].tolist())


def test_a_wrong_prediction_is_refuted(folder: Path) -> None:
    model, ids = adapted(loaded("llama", folder), 4), drawn(1, 8, 6)
    bag = token_bag(open_reader(model), trained(model, ids, "sgd", 10))
    hopeful = lora_budget(rank=4, modules=1, tokens=8, observed="delta", optimizer="sgd", steps=10)
    assert hopeful.verdict == "nothing"
    assert not prove_budget(hopeful, bag, ids[0].tolist(), range(100, 199)).holds
    with pytest.raises(ValueError, match="control"):
        prove_budget(hopeful, bag, [1, 2], [2])


# -------------------------------------------------------------------------------------- where it must fail


def test_noise_of_a_mechanism_ends_it(folder: Path) -> None:
    model, ids = loaded("bert", folder), drawn(2, 6, 2)
    generator = torch.Generator().manual_seed(1)
    update = gradient(model, ids)
    norm = torch.cat([g.flatten() for g in update.values()]).norm()
    noisy = {n: g + norm * torch.randn(g.shape, generator=generator) for n, g in update.items()}
    _, bag, texts = read(model, noisy)
    assert (bag.tokens, texts) == ((), set())
    true = set(ids.flatten().tolist())
    assert len(set(bag.nearest(len(true))) & true) < len(true) / 2


def test_a_secure_sum_of_many_fills_the_span(folder: Path) -> None:
    """Forty inputs in 32 dimensions; with wider models it takes more clients, and it never hides few."""
    model = loaded("llama", folder)
    total: Tensors = {}
    for seed in range(8):
        for name, g in gradient(model, drawn(1, 6, 20 + seed)).items():
            total[name] = total.get(name, torch.zeros_like(g)) + g
    _, bag, texts = read(model, total)
    assert bag.saturated
    assert (bag.tokens, texts) == ((), set())


def test_an_update_without_attention_says_so(folder: Path) -> None:
    model = loaded("llama", folder)
    with pytest.raises(ValueError, match="holds no change"):
        token_bag(open_reader(model), {"lm_head.weight": torch.ones(200, 32)})
    with pytest.raises(ValueError, match="no attention projections"):
        open_reader(nn.Sequential(nn.Linear(3, 3)))


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    model, ids = loaded("bert", folder), drawn(1, 6, 2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    read(model, gradient(model.eval(), ids))
    model.train()
    read(model, gradient(model, ids))
    assert model.training
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_bag_without_a_token_at_the_first_position_gives_no_text(folder: Path) -> None:
    model, ids = loaded("bert", folder), drawn(1, 6, 2)
    update, reader = gradient(model, ids), open_reader(model)
    bag = token_bag(reader, update, longest=12)
    assert order_tokens(reader, update, bag, longest=12).texts
    headless = replace(bag, pairs=frozenset((p, t) for p, t in bag.pairs if p))
    assert order_tokens(reader, update, headless, longest=12) == NOTHING


def test_time_that_runs_out_is_said(folder: Path) -> None:
    model, ids = loaded("llama", folder), drawn(2, 7, 1)
    update, reader = gradient(model, ids), open_reader(model)
    bag = token_bag(reader, update)
    heard: list[str] = []
    cut = order_tokens(reader, update, bag, seconds=0.0, progress=heard.append)
    assert not cut.complete
    assert heard
    assert order_tokens(reader, update, bag).complete
