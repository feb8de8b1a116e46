"""What an update gives away: texts by span, images and labels by division, imprint; the published claims, measured.

    python -m securefed_benchmarks.reconstruction                 # all, a few minutes on one core
    python -m securefed_benchmarks.reconstruction minilm imprint

Seconds are CPU seconds of the attack alone, on one thread; computing the gradient is the client's work.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from securefed_benchmarks.timing import report

if TYPE_CHECKING:
    import torch

CLASSIFIED = (
    "my social security number is 123 45 6789",
    "please wire the money to account 8845 before friday",
    "the patient was diagnosed with stage two diabetes",
    "call me back at the office tomorrow morning",
    "the quarterly results will be announced on tuesday",
    "she moved from london to paris with her children",
    "free offer click the link now to win a prize",
    "the meeting with legal has been postponed again",
)
CONTINUED = (
    "My social security number is 123-45-6789, keep it secret.",
    "Please wire the money to account 8845 before Friday noon.",
    "The patient was diagnosed with stage two diabetes in March.",
    "Call me back at the office tomorrow morning around nine.",
)
LORA_LAYERS = 6
"""Layers of SmolLM2 that the LoRA rows keep: the attack reads the first two, and local steps get five times cheaper."""
LORA = (
    ("sgd, 10 steps, r=8", 8, (0,), "sgd", 10, 0.05),
    ("sgd, 10 steps, r=64, 4 texts", 64, (0, 1, 2, 3), "sgd", 10, 0.05),
    ("first gradient, r=8", 8, (0,), "sgd", 1, 1.0),
    ("first gradient, r=64", 64, (0,), "sgd", 1, 1.0),
    ("first gradient, r=256, 4 texts", 256, (0, 1, 2, 3), "sgd", 1, 1.0),
)
"""(name, rank, texts, optimizer, local steps, rate)"""


def main() -> None:
    """Prints one JSON line per row."""
    import torch

    sections: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "minilm": minilm,
        "smollm2": smollm2,
        "lora": lora,
        "adamw": adamw,
        "linear": linear,
        "imprint": imprint,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections))
    wanted = parser.parse_args().sections or list(sections)
    if unknown := sorted(set(wanted) - set(sections)):
        parser.error(f"no section {', '.join(unknown)}; known: {', '.join(sections)}")
    torch.set_num_threads(1)
    for name in wanted:
        for row in sections[name]():
            report(f"reconstruction: {name}", row)


# -------------------------------------------------------------------------------------------------- text


def minilm(batches: Sequence[int] = (1, 2, 8)) -> Iterator[dict[str, Any]]:
    """An encoder's full gradient, a random head: tokens with positions, then texts."""
    import torch

    from securefed_attacks.span_order import order_tokens
    from securefed_attacks.span_tokens import token_bag
    from securefed_attacks.transformer_reader import open_reader

    model, tokenizer = _loaded("minilm", "AutoModel")
    torch.manual_seed(0)
    head = torch.nn.Linear(384, 2)
    torch.nn.init.normal_(head.weight, std=1e-2)
    for rows in batches:
        batch = tokenizer(list(CLASSIFIED[:rows]), return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden = model(**batch).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(head(pooled), torch.arange(rows) % 2)
        update = _gradient(model, loss)
        texts = {tuple(r[m == 1].tolist()) for r, m in zip(ids, mask, strict=True)}
        pairs = {pair for text in texts for pair in enumerate(text)}
        began = time.process_time()
        reader = open_reader(model)
        bag = token_bag(reader, update)
        token_seconds = time.process_time() - began
        order = order_tokens(reader, update, bag, ends=(tokenizer.sep_token_id,), seconds=120)
        yield {
            "batch": rows,
            "pairs_true": len(pairs),
            "pairs_recall": round(len(pairs & bag.pairs) / len(pairs), 3),
            "pairs_precision": round(len(pairs & bag.pairs) / max(1, len(bag.pairs)), 3),
            "bag_exact": set(bag.tokens) == {t for _, t in pairs},
            "texts_exact": f"{len(texts & set(order.texts))}/{len(texts)}",
            "texts_false": len(set(order.texts) - texts),
            "tokens_s": round(token_seconds, 1),
            "whole_s": round(time.process_time() - began, 1),
        }


def smollm2(batches: Sequence[int] = (1, 4)) -> Iterator[dict[str, Any]]:
    """A decoder's full gradient: the bag, then texts but for their last token."""
    from securefed_attacks.span_order import order_tokens
    from securefed_attacks.span_tokens import token_bag
    from securefed_attacks.transformer_reader import open_reader

    model, tokenizer = _loaded("smollm2", "AutoModelForCausalLM")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".layers.{i}.self_attn" in name for i in (0, 1)))
    for rows in batches:
        batch, labels, texts = _continued(tokenizer, range(rows))
        update = _gradient(model, model(**batch, labels=labels).loss)
        true = {t for text in texts for t in text}
        began = time.process_time()
        reader = open_reader(model)
        bag = token_bag(reader, update)
        token_seconds = time.process_time() - began
        order = order_tokens(reader, update, bag)
        wanted = {text[:-1] for text in texts}
        yield {
            "batch": rows,
            **_bag_facts(bag.tokens, true),
            "texts_exact_but_last_token": f"{len(wanted & set(order.texts))}/{rows}",
            "texts_false": len(set(order.texts) - wanted),
            "tokens_s": round(token_seconds, 1),
            "whole_s": round(time.process_time() - began, 1),
        }


def lora() -> Iterator[dict[str, Any]]:
    """Rounds of LoRA on q, k, v: what the budget says, and what the update gives."""
    from securefed_attacks.budget_proof import prove_budget
    from securefed_attacks.leakage_budget import lora_budget

    base, tokenizer = _short_smollm2()
    for name, rank, chosen, optimizer, steps, rate in LORA:
        bag, texts, order, _ = _lora_round(base, tokenizer, rank, chosen, optimizer, steps, rate)
        true = {t for text in texts for t in text}
        control = {t for i in range(4) if i not in chosen for t in tokenizer(CONTINUED[i])["input_ids"]}
        if not control - true:
            control = set(tokenizer(" ".join(CLASSIFIED))["input_ids"])
        budget = lora_budget(
            rank=rank, modules=3, tokens=len(true), observed="delta", optimizer=optimizer, steps=steps
        )
        proof = prove_budget(budget, bag, true, control, texts=len(chosen))
        wanted = {text[:-1] for text in texts}
        yield {
            "round": name,
            **_bag_facts(bag.tokens, true),
            "rank": bag.rank,
            "predicted": budget.verdict,
            "measured": proof.leaks,
            "texts_exact_but_last_token": f"{len(wanted & set(order))}/{len(texts)}",
        }


def adamw() -> Iterator[dict[str, Any]]:
    """What survives AdamW, each text's update against every text's tokens: the plain ranking, and the one that undoes it."""
    from securefed_attacks.adam_span import adam_tokens
    from securefed_attacks.transformer_reader import open_reader

    base, tokenizer = _short_smollm2()
    bags = [set(tokenizer(text)["input_ids"]) for text in CONTINUED]
    ways: dict[str, list[Any]] = {"ranking": [], "second moments estimated": []}
    exact, seconds = 0, 0.0
    for i in range(4):
        bag, _, _, update = _lora_round(base, tokenizer, 8, (i,), "adamw", 10, 1e-3)
        exact += len(bag.tokens)
        began = time.process_time()
        found = adam_tokens(open_reader(base), update)
        seconds += time.process_time() - began
        for way, ranked in zip(ways, (bag, found), strict=True):
            ways[way].append([len(set(ranked.nearest(len(tokens))) & tokens) for tokens in bags])
    sizes = [len(tokens) for tokens in bags]
    for way, hits in ways.items():
        own, wrong = (
            sum(hits[i][i] for i in range(4)),
            sum(map(sum, hits)) - sum(hits[i][i] for i in range(4)),
        )
        yield {
            "way": way,
            "exact_test": exact,
            "own_text": f"{own}/{sum(sizes)}",
            "own_share": round(own / sum(sizes), 3),
            "wrong_updates": f"{wrong}/{3 * sum(sizes)}",
            "wrong_share": round(wrong / (3 * sum(sizes)), 3),
            "estimate_s": round(seconds / 4, 1),
        }


def _lora_round(
    base: Any, tokenizer: Any, rank: int, chosen: Sequence[int], optimizer: str, steps: int, rate: float
) -> tuple[Any, list[tuple[int, ...]], tuple[tuple[int, ...], ...], dict[str, torch.Tensor]]:
    """(bag, true texts, texts read, the update) of one round from a fresh adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    from securefed_attacks.span_order import order_tokens
    from securefed_attacks.span_tokens import token_bag
    from securefed_attacks.transformer_reader import open_reader

    torch.manual_seed(1)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj"],
        layers_to_transform=[0, 1],
    )
    model: Any = get_peft_model(base, settings)
    batch, labels, texts = _continued(tokenizer, chosen)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in named.items()}
    step: torch.optim.Optimizer = (
        torch.optim.SGD(named.values(), rate)
        if optimizer == "sgd"
        else torch.optim.AdamW(named.values(), rate, weight_decay=0.0)
    )
    for _ in range(steps):
        step.zero_grad()
        model(**batch, labels=labels).loss.backward()
        step.step()
    update = {n: p.detach() - start[n] for n, p in named.items()}
    with torch.no_grad():
        for n, p in named.items():
            p.copy_(start[n])
    reader = open_reader(model)
    bag = token_bag(reader, update)
    order = order_tokens(reader, update, bag)
    model.unload()
    return bag, texts, order.texts, update


def _bag_facts(found: Sequence[int], true: set[int]) -> dict[str, Any]:
    return {"tokens": f"{len(true & set(found))}/{len(true)}", "false_tokens": len(set(found) - true)}


def _continued(tokenizer: Any, chosen: Sequence[int]) -> tuple[Any, torch.Tensor, list[tuple[int, ...]]]:
    batch = tokenizer([CONTINUED[i] for i in chosen], return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    texts = [tuple(r[m == 1].tolist()) for r, m in zip(ids, mask, strict=True)]
    return batch, ids.masked_fill(mask == 0, -100), texts


def _loaded(name: str, kind: str) -> tuple[Any, Any]:
    import torch
    import transformers

    from securefed.models.quiet import quiet
    from securefed.models.zoo import find_model

    folder = find_model(name).folder
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = getattr(transformers, kind).from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return model.eval(), tokenizer


def _short_smollm2() -> tuple[Any, Any]:
    model, tokenizer = _loaded("smollm2", "AutoModelForCausalLM")
    model.model.layers = model.model.layers[:LORA_LAYERS]
    model.config.num_hidden_layers = LORA_LAYERS
    return model, tokenizer


def _gradient(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    got = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, got, strict=True) if g is not None}


# ------------------------------------------------------------------------------------------------ images


def linear(records: int = 200) -> Iterator[dict[str, Any]]:
    """Batch 1 through the first layer and the last of an MLP on Fashion-MNIST; label counts of batches."""
    import torch
    from torch.nn import functional as F

    from securefed_attacks.labels import count_error, label_counts, label_of_one
    from securefed_attacks.linear_inversion import invert_linear, psnr

    x, y = _pixels()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    decibels, right = [], 0
    for i in range(records):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        w, b, _, b2 = torch.autograd.grad(loss, list(model.parameters()))
        decibels.append(psnr(invert_linear(w, b), x[i]))
        right += label_of_one(b2) == int(y[i])
    worst = min(decibels)
    yield {
        "batch": 1,
        "psnr_min_db": worst if math.isfinite(worst) else "exact",
        "labels_right": f"{right}/{records}",
    }
    own = model(x[-1000:]).softmax(1).mean(0).detach()
    for n in (8, 64, 256):
        (b2,) = torch.autograd.grad(F.cross_entropy(model(x[:n]), y[:n]), list(model.parameters())[3:])
        counts = label_counts(b2, n, own)
        yield {"batch": n, "labels_wrong_share": count_error(counts, torch.bincount(y[:n], minlength=10))}


def imprint(seeds: int = 5) -> Iterator[dict[str, Any]]:
    """A malicious server's layer: share of records above 40 dB, alone, under secure sums, behind noise."""
    for each, bins, clients, sigma in (
        (8, 128, 1, 0.0),
        (64, 256, 1, 0.0),
        (64, 1024, 1, 0.0),
        (256, 1024, 1, 0.0),
        (16, 256, 1, 0.0),
        (16, 256, 10, 0.0),
        (16, 1024, 10, 0.0),
        (16, 256, 1, 0.01),
    ):
        shares = [imprint_share(each, bins, clients, sigma, seed) for seed in range(seeds)]
        yield {
            "images": each,
            "bins": bins,
            "clients_in_sum": clients,
            "noise_over_norm": sigma,
            "above_40_db": round(sum(shares) / seeds, 3),
            "least_most": [round(min(shares), 3), round(max(shares), 3)],
        }


def imprint_share(each: int, bins: int, clients: int, sigma: float, seed: int) -> float:
    """Share of the records of all clients that come back above 40 dB.

    Args:
        each: images of one client, in one gradient. bins: neurons. clients: gradients that are added up.
        sigma: length of Gaussian noise over the sum's norm. seed: of images and noise.
    """
    import torch
    from torch.nn import functional as F

    from securefed_attacks.imprint import Imprint, Imprinted
    from securefed_attacks.linear_inversion import best_psnr

    x, y = _pixels()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(40_000, generator=generator)[: each * clients]
    layer = Imprint.fitted(x[50_000:], bins)  # other images than the victims'
    model = Imprinted(layer, 10)
    w, b = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    for mine in torch.split(chosen, each):
        loss = F.cross_entropy(model(x[mine]), y[mine])
        dw, db = torch.autograd.grad(loss, [model.layer.weight, model.layer.bias])
        w, b = w + dw, b + db
    scale = sigma * float(torch.cat([w.flatten(), b]).norm()) / (w.numel() + b.numel()) ** 0.5
    w = w + scale * torch.randn(w.shape, generator=generator)
    b = b + scale * torch.randn(b.shape, generator=generator)
    return float((best_psnr(layer.recover(w, b), x[chosen]) > 40).double().mean())


@cache
def _pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Fashion-MNIST's training images in [0, 1], (60000, 784), and labels."""
    from securefed_benchmarks.fashion import MEAN, STD, whole

    (x, y), _ = whole()
    return x * STD + MEAN, y


if __name__ == "__main__":
    main()
