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


def capture(
    folder: Path,
    kind: str,
    records: list[str],
    *,
    adapter: str = "lora",
    optimizer: str = "sgd",
    steps: int = 6,
    rate: float = 0.1,
    rank: int = 8,
) -> Path:
    """`before` and `after` of a plain loop over these records at once: PEFT folders, or safetensors of all weights."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    root = base(folder / "base", kind)
    cls = AutoModelForCausalLM if kind == "llama" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    model: Any = cls.from_pretrained(root, attn_implementation="eager")
    if adapter == "lora":
        task = "CAUSAL_LM" if kind == "llama" else "SEQ_CLS"
        targets = ["q_proj", "k_proj", "v_proj"] if kind == "llama" else ["query", "key", "value"]
        model = get_peft_model(
            model, LoraConfig(task_type=task, r=rank, lora_alpha=rank, target_modules=targets)
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)

    def save(name: str) -> None:
        if adapter == "lora":
            model.save_pretrained(folder / name)
        else:
            (folder / name).mkdir()
            save_file(
                {k: v.clone() for k, v in model.state_dict().items()}, folder / name / "model.safetensors"
            )

    save("before")
    batch = _tokenizer(kind)(records, return_tensors="pt")
    batch = {k: v for k, v in batch.items() if k != "token_type_ids"}
    labels = batch["input_ids"] if kind == "llama" else torch.arange(len(records)) % 2
    trained = [p for p in model.parameters() if p.requires_grad]
    made = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](trained, rate)
    model.eval()
    for _ in range(steps):
        made.zero_grad()
        model(**batch, labels=labels).loss.backward()
        made.step()
    save("after")
    return folder


def write(records: list[str], member: Any, path: Path) -> Path:
    """A candidates file."""
    rows = [
        {"text": t, "label": k % 2, "member": int(m)}
        for k, (t, m) in enumerate(zip(records, member, strict=True))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
