"""Small text classifiers from scratch, without a file to download: a bag of embeddings, and a transformer.

Both read words by a hash: a word's id is a digest of it modulo the vocabulary, so nothing is learned from anybody's
text to make a vocabulary, and two clients agree on it without a word.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from securefed.config import ModelConfig
from securefed.data.batch import Batch, Encoded
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models.digest import base_digest
from securefed.models.task_model import TaskModel

VOCABULARY = 4096
"""Hash buckets, the filler (id 0) included."""
POSITIONS = 512
HEADS = 4
LAYERS = 2

_WORD = re.compile(r"\w+|[!?]+|[^\w\s]")


@lru_cache(maxsize=1 << 16)
def _bucket(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (VOCABULARY - 1)


def hash_tokens(text: str, max_length: int) -> NDArray[np.int64]:
    """Ids in 1 .. VOCABULARY - 1 of the text's first `max_length` words and signs, lower-cased; at least one.

    The same in every process and on every machine.

    >>> hash_tokens("Good, good!", 8).tolist() == hash_tokens("good , GOOD !", 8).tolist()
    True
    """
    ids = [_bucket(word) for word in _WORD.findall(text.lower())[:max_length]]
    return np.asarray(ids or [_bucket("")], np.int64)


class BagOfEmbeddings(nn.Module):
    """Mean of the words' embeddings, then one linear layer; logits (b, k)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.output = nn.Linear(width, classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k)."""
        ids, mask = _tokens(batch)
        logits: torch.Tensor = self.output(_mean(self.embedding(ids), mask))
        return logits


class SmallTransformer(nn.Module):
    """Embeddings with learned positions, two pre-norm encoder layers, mean pooling; logits (b, k).

    Vaswani et al. 2017 (arXiv 1706.03762), the encoder of section 3, with the norm before each part. No dropout.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(POSITIONS, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (b, k)."""
        ids, mask = _tokens(batch)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(
            ids
        )  # a row a record, for its own gradient
        hidden = self.embedding(ids) + self.position(places)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        logits: torch.Tensor = self.output(_mean(self.norm(hidden), mask))
        return logits


class _Layer(nn.Module):
    """Self-attention and two linear layers, each behind a norm and beside its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.between = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, width = hidden.shape
        x = self.before(hidden)

        def heads(part: nn.Linear) -> torch.Tensor:
            split: torch.Tensor = part(x).view(b, t, HEADS, width // HEADS).transpose(1, 2)
            return split

        seen = mask.bool()[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            heads(self.query), heads(self.key), heads(self.value), attn_mask=seen
        )
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(b, t, width))
        added: torch.Tensor = hidden + self.down(F.gelu(self.up(self.between(hidden))))
        return added


def text_model(config: ModelConfig, classes: int, device: torch.device) -> TaskModel:
    """`bag` or `transformer` of width `config.hidden`, drawn from `config.seed` alone.

    Raises:
        ModelError: options that these nets do not have, or a width that the attention heads do not divide.
    """
    if config.adapter != "full" or config.task != "classification" or config.dtype != "float32":
        raise ModelError(
            f'model {config.name} takes adapter = "full", task = "classification" and dtype = "float32" only'
        )
    if config.name == "transformer" and config.hidden % HEADS:
        raise ModelError(
            f"model transformer has {HEADS} attention heads, which hidden={config.hidden} must be a multiple of"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # not torch.manual_seed, which reseeds GPUs too
        net = {"bag": BagOfEmbeddings, "transformer": SmallTransformer}[config.name](config.hidden, classes)
    net.to(device).train()
    parameters = dict(net.named_parameters())
    shape = {"net": config.name, "hidden": config.hidden, "vocabulary": VOCABULARY, "classes": classes}
    return TaskModel(
        net,
        config=config,
        device=device,
        parameters=parameters,
        part_of=dict.fromkeys(parameters, "base"),
        base_digest=base_digest({}, shape),
        encode=_encode,
        name=config.name,
        classes=classes,
    )


def _encode(examples: Examples, max_length: int) -> Encoded:
    if examples.texts is None:
        raise ModelError(
            "models bag and transformer read texts, these records have none; use mlp, cnn or logistic"
        )
    if not 1 <= max_length <= POSITIONS:
        raise ModelError(f"max_length={max_length} must be between 1 and {POSITIONS} words")
    tokens = tuple(hash_tokens(text, max_length) for text in examples.texts)
    return Encoded(tokens=tokens, labels=examples.labels, pad_id=0)


def _tokens(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    return batch.input_ids, batch.attention_mask


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the tokens that the mask keeps, (b, h)."""
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * keep).sum(1) / keep.sum(1).clamp(min=1)
