"""Tiny random Hugging Face models with tokenizers, written as folders: seconds to none to load, no network.

`tiny_bert(folder)` and its siblings return the folder, ready for `ModelConfig(name=str(folder))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from securefed.data.records import Examples

TEXTS = (
    "a fine film",
    "a dull and very long film that never ends",
    "not bad",
    "the plot is thin but the actors are good",
    "good",
    "never again",
)
"""Six short records of different lengths; every word is known to the tiny tokenizer."""


def examples(n: int = 6, *, classes: int = 2, targets: bool = False) -> Examples:
    """The first `n` texts (repeated if need be), labels 0, 1, ... in turn, targets the texts reversed."""
    texts = tuple(TEXTS[i % len(TEXTS)] for i in range(n))
    answers = tuple(" ".join(reversed(t.split())) for t in texts) if targets else None
    return Examples(texts=texts, labels=np.arange(n, dtype=np.int64) % classes, targets=answers)


def three_clients(folder: Path, records: int) -> dict[str, Any]:
    """A job's `data`: a table in `folder` of so many short records, dealt to three named clients in turn."""
    rows = [f"{TEXTS[i % 6]} {'good' * (i % 5)},{i % 2},c{i % 3}" for i in range(records)]
    table = folder / "records.csv"
    table.write_text("text,label,client\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return {
        "name": str(table),
        "client_column": "client",
        "clients": 3,
        "max_length": 16,
        "min_examples": 4,
    }


def tiny_bert(folder: Path, *, layers: int = 2) -> Path:
    """BERT: 2 layers, hidden 16, 2 heads, 32 positions, dropout 0.1 in its config."""
    from transformers import BertConfig, BertModel

    return _save(
        folder,
        BertModel,
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
        ),
        template="[CLS] $A [SEP]",
    )


def tiny_llama(folder: Path, *, layers: int = 2) -> Path:
    """Llama with tied embeddings: 2 layers, hidden 16, 4 query and 2 key heads; its tokenizer has no padding token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _save(folder, LlamaForCausalLM, config, pad=False)


def tiny_gpt2(folder: Path, *, layers: int = 2) -> Path:
    """GPT-2: 2 layers, hidden 16, learned positions, transposed linear layers, no padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=layers, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3
    )
    return _save(folder, GPT2LMHeadModel, config, pad=False)


def tiny_mpt(folder: Path, *, layers: int = 2) -> Path:
    """MPT: its attention does not say that it is causal, and its final normalization is called `norm_f`."""
    from transformers import MptConfig, MptForCausalLM

    config = MptConfig(
        vocab_size=64, d_model=16, n_layers=layers, n_heads=2, max_seq_len=32, bos_token_id=2, eos_token_id=3
    )
    return _save(folder, MptForCausalLM, config, pad=False)


def tiny_phi(folder: Path, *, layers: int = 2) -> Path:
    """Phi: a decoder whose final normalization is called `final_layernorm`."""
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        bos_token_id=2,
        eos_token_id=3,
    )
    return _save(folder, PhiForCausalLM, config, pad=False)


def tiny_t5(folder: Path, *, layers: int = 2) -> Path:
    """T5: 2 + 2 layers, hidden 16, relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=layers,
        num_heads=2,
        relative_attention_num_buckets=8,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    return _save(folder, T5ForConditionalGeneration, config, template="$A [SEP]")


def tokenizer(*, pad: bool = True, template: str = "") -> Any:
    """A word tokenizer trained on `TEXTS`, with [PAD] 0, [UNK] 1, [CLS] 2 and [SEP] 3 (also end of text)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(TEXTS, trainers.WordLevelTrainer(vocab_size=64, special_tokens=special))
    if template:
        words.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"} | (
        {"pad_token": "[PAD]"} if pad else {}
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def _save(folder: Path, cls: Any, config: Any, *, pad: bool = True, template: str = "") -> Path:
    """Weights large enough that layers matter, from a fixed seed, torch's generator left as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = cls(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer(pad=pad, template=template).save_pretrained(folder)
    return folder
