"""Records -> token ids, each encoded once; padding is left to the batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models.quiet import quiet

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)

SAMPLE = "The Café's 2 FILMS\n  weren't bad -- 电影 😀, <b>10.5 %</b>!"
"""What tokenizers of one vocabulary read differently: case, accents, spaces, signs, other scripts."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A tokenizer bound to its task.

    Attributes:
        tokenizer: the model's own. task: what the token ids are for.
        pad_id: fills short records of a batch; end-of-text where the tokenizer has no padding token. It
            may be a real token, which is why losses and pooling look at the attention mask, never at it.
        longest: bound on `max_length`, None for none.
    """

    tokenizer: Any = field(repr=False)
    task: str
    pad_id: int
    longest: int | None

    def encode(self, examples: Examples, max_length: int) -> Encoded:
        """One int64 array of 1 to `max_length` ids per record; longer records are cut.

        Causal language models: an end-of-text token is appended where it fits, so that they learn to stop.

        Raises:
            ModelError: records without text (or targets, for seq2seq), or `max_length` beyond the model.
        """
        if examples.texts is None:
            raise ModelError(
                f"task {self.task} reads texts, these records have none; use a text data set or a small net"
            )
        if max_length < 1 or (self.longest is not None and max_length > self.longest):
            raise ModelError(
                f"max_length={max_length} must be between 1 and the model's {self.longest or 'unbounded'} tokens"
            )
        if self.task == "causal-lm":
            return Encoded(tokens=self._ids(examples.texts, max_length, end=True), pad_id=self.pad_id)
        tokens = self._ids(examples.texts, max_length)
        if self.task == "classification":
            return Encoded(tokens=tokens, labels=examples.labels, pad_id=self.pad_id)
        if examples.targets is None:
            raise ModelError("seq2seq needs a target for each record; name its column in data.target_column")
        return Encoded(
            tokens=tokens, targets=self._ids(examples.targets, max_length, target=True), pad_id=self.pad_id
        )

    @property
    def identity(self) -> list[list[int]]:
        """What it makes of a sample, whole and cut: settings that shape tokens lie in no one file."""
        cut: dict[str, Any] = {"truncation": True, "max_length": 8}
        return [list(self.tokenizer(SAMPLE, **more)["input_ids"]) for more in ({}, cut)]

    def _ids(
        self, texts: tuple[str, ...], max_length: int, *, target: bool = False, end: bool = False
    ) -> tuple[NDArray[np.int64], ...]:
        if not texts:
            return ()
        argument = {"text_target": list(texts)} if target else {"text": list(texts)}
        found = self.tokenizer(
            **argument, truncation=True, max_length=max_length, return_attention_mask=False
        )["input_ids"]
        stop = [self.tokenizer.eos_token_id] if end and self.tokenizer.eos_token_id is not None else []
        return tuple(self._finished(ids, stop, max_length) for ids in found)

    def _finished(self, ids: list[int], stop: list[int], max_length: int) -> NDArray[np.int64]:
        if len(ids) < max_length and ids[-1:] != stop:
            ids = ids + stop
        return np.asarray(ids or [self.pad_id], np.int64)  # an empty text still needs one position


def load_encoder(folder: Path, task: str, *, vocabulary: int, longest: int | None) -> TextEncoder:
    """The tokenizer of a model folder.

    Args:
        folder: where its files are.
        task: what the ids are for.
        vocabulary: rows of the model's token embedding.
        longest: bound on the length of a record.

    Raises:
        ModelError: no tokenizer files, unreadable ones, or more tokens than the model has embeddings.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder.name} has no tokenizer (tokenizer.json or similar); copy it beside config.json"
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # parsers of half a dozen formats, each with its own exceptions
        line = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"cannot read the tokenizer of {folder.name}: {type(error).__name__}: {line[:200]}"
        ) from None
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"tokenizer of {folder.name} has {len(tokenizer)} tokens, the model {vocabulary} embeddings; they do not belong together"
        )
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return TextEncoder(tokenizer, task, next(int(p) for p in pads if p is not None), longest)
