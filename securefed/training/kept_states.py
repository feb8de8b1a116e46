"""Whether and how a job's frozen states may lie on this site's disk, and what names them there."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from securefed.config import Config
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.crypto.site_key import SiteKey
from securefed.data.batch import Encoded
from securefed.data.catalogue import SOURCES
from securefed.errors import ProtocolError
from securefed.paths import states_dir, states_key_path
from securefed.privacy.policy import Policy, load_policy
from securefed.training.state_folder import drop, is_sealed, stored_files
from securefed.training.state_store import MIB, StateStore

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

logger = logging.getLogger(__name__)
_ROOM = Path(__file__).resolve().parents[1]
_CODE = ("models/*.py", "training/frozen_cache.py", "training/feed.py", "data/batch.py")


def allowed_form(
    config: Config, policy: Policy, own_records: bool = False
) -> Literal["encrypted", "plain"] | None:
    """How the states of this job's records may be kept on disk; None: not at all.

    Records of a named data set lie in the download cache in the clear anyway; everybody else's are encrypted unless the
    site's policy says plain.

    Args:
        own_records: the shards are not of the data set that the job names.

    Raises:
        PolicyRefusal: the job asks for it (`always`), and the policy says never.
    """
    asked = config.train.cache_on_disk if config.train.cache_frozen else "never"
    if asked == "always":
        policy.check_states()
    public = is_public(config) and not own_records
    if asked == "never" or policy.states_on_disk == "never" or (asked == "public" and not public):
        return None
    if policy.states_on_disk is None:
        return "plain" if public else "encrypted"
    return "plain" if policy.states_on_disk == "plain" else "encrypted"


def is_public(config: Config) -> bool:
    """Whether all that the job reads is one of the named public data sets."""
    names = [config.data.name]
    if config.distills and config.distill.public != "held-out":
        names.append(config.distill.public)
    return all(name in SOURCES for name in names)


def open_store(
    config: Config, entropy: Entropy | None = None, policy: Policy | None = None, *, own_records: bool = False
) -> StateStore | None:
    """The site's store, as this job may use it; None where it may not or cannot (told in one line).

    What the policy no longer allows on this disk is deleted: all of it under never, what is in the clear under encrypted.

    Raises:
        PolicyRefusal: as `allowed_form`.
    """
    policy = policy or load_policy()
    form = allowed_form(config, policy, own_records)
    if policy.states_on_disk in ("never", "encrypted"):
        _forget(states_dir(), sealed_too=policy.states_on_disk == "never")
    limit = config.train.cache_disk_mib * MIB
    if form is None or limit == 0:
        return None
    entropy = entropy or SystemEntropy()
    try:
        key = SiteKey.at(states_key_path(), entropy)
        return StateStore(states_dir(), key, sealed=form == "encrypted", limit_bytes=limit, entropy=entropy)
    except (OSError, ProtocolError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        logger.warning("frozen states are not kept on disk (%s): %s", states_dir(), reason)
        return None


def _forget(folder: Path, *, sealed_too: bool) -> None:
    """Deletes what the policy no longer allows; what cannot be deleted now is told in one line."""
    try:
        drop(folder, sealed_too=sealed_too)
        left = sum(sealed_too or not is_sealed(path) for path in stored_files(folder))
    except OSError as error:
        logger.warning(
            "frozen states that this site's policy no longer allows cannot be deleted (%s): %s",
            folder,
            error.strerror or error,
        )
        return
    if left:
        logger.warning(
            "%d %s of frozen states that this site's policy no longer allows: in use, or not ours to delete (%s); the next job "
            "tries again",
            left,
            "file" if left == 1 else "files",
            folder,
        )


def records_digest(data: Encoded) -> str:
    """SHA-256 over the records' token ids and lengths in their order, hex: what the model reads, whoever tokenised it."""
    assert data.tokens is not None
    lengths = np.array([len(t) for t in data.tokens], "<i8")
    total = hashlib.sha256(b"%d:%d:" % (len(lengths), data.pad_id) + lengths.tobytes())
    total.update(np.concatenate(data.tokens).astype("<i8", copy=False).tobytes())
    return total.hexdigest()


def model_digest(model: TaskModel) -> str:
    """SHA-256 over the values of everything that does not train, hex, and how this process computes with them.

    Of the values themselves and not of the files that they were read from, so that a base changed in memory is another
    one. Sums depend in the last bit on processor, threads and library, and a stored state must be the same bits.
    """
    total = hashlib.sha256("\n".join(_how(model)).encode())
    trains = {id(p) for p in model.parameters.values()}
    for name, value in (*model.module.named_parameters(), *model.module.named_buffers()):
        if id(value) not in trains:
            total.update(f"{name}:{tuple(value.shape)}:{value.dtype};".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _how(model: TaskModel) -> list[str]:
    config = getattr(getattr(model.module, "backbone", None), "config", None)
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    return [
        code_digest(),
        torch.__version__,
        library_version("transformers"),
        device,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        torch.get_float32_matmul_precision(),
        str(getattr(config, "_attn_implementation", "")),
        str(getattr(model.module, "reads", "")),
    ]


def library_version(package: str) -> str:
    """Of an installed package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@functools.cache
def code_digest() -> str:
    """SHA-256 over the source of what computes states, hex: after a change of it the old ones are not asked for."""
    total = hashlib.sha256()
    for path in sorted(p for pattern in _CODE for p in _ROOM.glob(pattern)):
        total.update(os.fsencode(path.name) + b":" + path.read_bytes())
    return total.hexdigest()
