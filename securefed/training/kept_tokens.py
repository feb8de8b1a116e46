"""Records as token ids, taken from the site's store where an earlier run has left them: ids are the text in other words.

So they are kept by the same rules as states (`training.kept_states`), in the same files. Tokenising twenty thousand sentences
costs as much as loading the model.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.models.task_model import check_labels
from securefed.training.kept_states import code_digest, library_version
from securefed.training.state_file import Body, cut_by

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel
    from securefed.training.state_store import StateStore

_WAYS = ("truncation_side", "split_special_tokens")
"""What shapes ids and is kept beside a tokenizer's rules."""


def encode(model: TaskModel, examples: Examples, max_length: int, store: StateStore | None) -> Encoded:
    """What `model.encode` gives, and its errors; for classified texts, from the store where they are in it.

    Raises:
        ModelError: records of another kind, or labels missing or outside [0, k).
    """
    name = None if store is None else _description(model, examples, max_length)
    if store is None or name is None:
        return model.encode(examples, max_length)
    check_labels(examples, model.classes)
    kept = store.arrays(name)
    if kept is not None and len(kept.arrays["lengths"]) == len(examples):
        ids = cut_by(kept.arrays["ids"].long(), kept.arrays["lengths"].tolist())
        return Encoded(tokens=tuple(t.numpy() for t in ids), labels=examples.labels, pad_id=kept.facts["pad"])
    found = model.encode(examples, max_length)
    if found.tokens is not None and len(found):
        parts = [torch.from_numpy(np.asarray(t, np.int32)) for t in found.tokens]
        lengths = torch.tensor([len(t) for t in found.tokens], dtype=torch.int32)
        store.keep(name, Body({"ids": parts, "lengths": [lengths]}, {"pad": found.pad_id}))
    return found


def _description(model: TaskModel, examples: Examples, max_length: int) -> str | None:
    """All that the ids depend on; None where that cannot be told, and so nothing is kept."""
    backend: Any = getattr(model.tokenizer, "backend_tokenizer", None)
    if model.task != "classification" or backend is None or not examples.texts:
        return None
    total = hashlib.sha256()
    for text in examples.texts:
        data = text.encode("utf-8", "surrogatepass")
        total.update(b"%d:" % len(data) + data)
    rules = json.loads(backend.to_str())
    for kept in ("truncation", "padding"):  # of its last call, where each call sets its own
        rules.pop(kept, None)
    whole = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    libraries = (code_digest(), library_version("transformers"), library_version("tokenizers"))
    ids = (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    ways = (type(model.tokenizer).__name__, *(getattr(model.tokenizer, way, None) for way in _WAYS))
    return f"tokens:{libraries}:{ways}:{whole}:{ids}:{max_length}:{total.hexdigest()}"
