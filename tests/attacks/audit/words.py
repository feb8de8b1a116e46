"""Small real transformers with a vocabulary of 400 words, and captures and runs of them: wide enough to be read."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = tuple(f"w{k:03d}" for k in range(396))
KINDS = ("bert", "llama")


def texts(n: int, length: int, seed: int) -> list[str]:
    """n records of different words, drawn without regard to anything."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length, replace=False)) for _ in range(n)]


def base(folder: Path, kind: str, width: int = 96) -> Path:
    """A model folder with its tokenizer; weights from a fixed seed, large enough that layers matter."""
    import transformers

    common = {
        "vocab_size": 400,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 24,
    }
    made: dict[str, Any] = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**common)),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**common, num_key_value_heads=2, bos_token_id=2, eos_token_id=3)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        model = made[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _tokenizer(kind).save_pretrained(folder)
    return folder


@functools.cache
def _tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordLevel({w: k for k, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    if kind == "bert":
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {**names, "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def job(folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    """A job of four clients, one SGD step of four records a round, whose server views are all kept."""
    model = base(folder / "base", kind)
    with (folder / "records.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label", "client"])
        rows.writerows([t, k % 2, f"c{k % 4}"] for k, t in enumerate(texts(24, 7, 3)))
    task = "causal-lm" if kind == "llama" else "classification"
    return {
        "name": "words",
        "rounds": 3,
        "data": {
            "name": str(folder / "records.csv"),
            "clients": 4,
            "client_column": "client",
            "min_examples": 2,
            "max_length": 16,
        },
        "model": {
            "name": str(model),
            "task": task,
            "adapter": "lora",
            "rank": 12,
            "alpha": 12.0,
            "device": "cpu",
        },
        "train": {"steps": 1, "learning_rate": 0.5, "batch_size": 8},
        "evaluate": {"baselines": False, "every": 0},
        "tracking": {"keep_views": 9, "report": False},
        **more,
    }


def write(records: list[str], member: Any, path: Path) -> Path:
    """A candidates file."""
    rows = [
        {"text": t, "label": k % 2, "member": int(m)}
        for k, (t, m) in enumerate(zip(records, member, strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
