"""Language models from a configuration alone: random weights that every machine draws alike, and no file to fetch.

`t5-bytes` has the shape of T5 (Raffel et al. 2020, arXiv 1910.10683) at the size of a laptop, and reads bytes, so
that no vocabulary is learned from anybody's text (Xue et al. 2022, arXiv 2105.13626, do the same at full size). It
knows nothing before it is trained: use `model.adapter = "full"`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from securefed.models.convert import made_once
from securefed.models.quiet import quiet

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
T5_BYTES: dict[str, Any] = {
    "vocab_size": 259,  # 256 bytes and three signs
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 128,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def t5_bytes() -> Path:
    """The model's folder, made once under the cache.

    Raises:
        ModelError: the cache cannot be written.
    """
    source = hashlib.sha256(json.dumps(T5_BYTES, sort_keys=True).encode()).hexdigest()
    return made_once("t5-bytes", source, _write)


def _write(folder: Path) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with quiet(), torch.random.fork_rng(devices=[]):
        model = T5ForConditionalGeneration(T5Config(**T5_BYTES))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.copy_(torch.from_numpy(_first(name, tuple(parameter.shape))))
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)


def _first(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """T5 does not scale its attention's products, so queries begin smaller by the root of their width.

    All else keeps the size of its input; the output layer, which is the table of bytes, is scaled by the model itself.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    inputs = 1 if "shared" in name or "relative" in name else shape[1]
    scale = inputs**-0.5 * (T5_BYTES["d_kv"] ** -0.5 if name.endswith(".q.weight") else 1.0)
    found: np.ndarray[Any, np.dtype[np.float32]] = (scale * normal).astype(np.float32)
    return found


def byte_tokenizer() -> Any:
    """UTF-8 bytes as tokens 3 to 258, and the end of the text behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = [PAD, END, UNKNOWN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {sign: i for i, sign in enumerate(signs)}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
