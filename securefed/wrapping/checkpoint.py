"""A loop's checkpoint: trained tensors, optimizer, schedules, steps taken. JSON and safetensors, no pickle.

No noise state is in it: a resumed loop draws from new keys. What the run had reserved is in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from securefed.errors import CheckpointError

if TYPE_CHECKING:
    from securefed.wrapping.private import Private
    from securefed.wrapping.schedule import PrivateSchedule

VERSION = 1
KEEP = 2


def save(folder: Path, private: Private, schedules: Sequence[PrivateSchedule]) -> Path:
    """Writes `folder`/step-N whole or not at all, and drops all but the two newest."""
    from safetensors.torch import save as pack

    tensors = {f"model.{n}": p.detach().cpu().contiguous() for n, p in private.parameters.items()}
    state = private.optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    data = pack(tensors)
    facts = {
        **private.position(),
        "version": VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "groups": state["param_groups"],
        "numbers": numbers,
        "schedules": [s.state_dict() for s in schedules],
    }
    try:
        text = json.dumps(facts)
    except TypeError as error:
        raise CheckpointError(
            f"an optimizer or scheduler holds something that is not plain data: {error}"
        ) from None
    final = _write(folder, private.steps_taken, data, text)
    private.write_position(folder / "run.json")  # so that `securefed epsilon FOLDER` finds the run
    return final


def _write(folder: Path, step: int, data: bytes, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / f"step-{step:08d}", folder / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, content in (("state.safetensors", data), ("state.json", text.encode())):
        with (part / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load(folder: Path, private: Private, schedules: Sequence[PrivateSchedule]) -> None:
    """Puts the newest whole checkpoint into model, optimizer, schedules and account.

    Raises:
        CheckpointError: none is there or whole, it does not belong to this training, or steps were taken.
    """
    facts, tensors = _newest(folder)
    private.read_position(facts)
    if len(facts["schedules"]) != len(schedules):
        raise CheckpointError(
            f"the checkpoint has {len(facts['schedules'])} schedules, now {len(schedules)}; call private.schedule before private.resume"
        )
    with torch.no_grad():
        for name, p in private.parameters.items():
            p.copy_(tensors[f"model.{name}"])
    private.optimizer.load_state_dict(_optimizer_state(facts, tensors))
    for schedule, stored in zip(schedules, facts["schedules"], strict=True):
        schedule.load_state_dict(stored)


def _optimizer_state(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(e) for i, e in facts["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": facts["groups"]}


def _newest(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors.torch import load as unpack

    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
            data = (path / "state.safetensors").read_bytes()
        except (OSError, ValueError):
            continue
        if isinstance(facts, dict) and facts.get("sha256") == hashlib.sha256(data).hexdigest():
            if facts.get("version") != VERSION:
                raise CheckpointError(
                    f"{path.name} has checkpoint version {facts.get('version')}, this release reads {VERSION}"
                )
            return facts, unpack(data)
    raise CheckpointError(
        f"no whole checkpoint in {folder}; start without resume"
        if not found
        else f"every checkpoint in {folder} is damaged"
    )
