"""A run's own folder: a new one that nobody has, and whose run an old one is."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from securefed.config import Config
from securefed.errors import CheckpointError


def id_of(folder: Path) -> str:
    """The run that a folder belongs to.

    Raises:
        CheckpointError: no run's folder, or a damaged one.
    """
    try:
        text = (folder / "run.json").read_text(encoding="utf-8")
    except OSError:
        raise CheckpointError(
            f"{folder} is not the folder of a run; give the folder that `securefed run` printed"
        ) from None
    try:
        return str(json.loads(text)["run"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / 'run.json'} is damaged; start a new run") from None


def new_folder(config: Config, folder: Path | None) -> Path:
    """The result folder's path, checked to be free.

    Raises:
        CheckpointError: it exists; a run never writes over another.
    """
    if folder is None:
        return _unused(Path(config.output) / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    path = Path(folder)
    if path.exists():
        raise CheckpointError(
            f"{path} exists; choose another --folder, or go on with it: securefed resume {path}"
        )
    return path


def note_run(folder: Path, run: str, facts: Mapping[str, object]) -> None:
    """Writes run.json: from then on the folder is one that can be resumed, so the ledger knows the run by then."""
    text = json.dumps({"run": run, "version": 1, **facts})
    (folder / "run.json").write_text(text, encoding="utf-8")


@contextmanager
def made(path: Path, files: Mapping[str, str]) -> Iterator[None]:
    """The folder, made before anything is charged; gone again where the job fails before there is a run.json.

    Args:
        files: name -> text of what is in it from the start.

    Raises:
        CheckpointError: it cannot be made or written.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True)
        for name, text in files.items():
            (path / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"the run's folder {path} cannot be made: {error.strerror or error}; choose another --folder"
        ) from None
    try:
        yield
    except BaseException:
        if not (path / "run.json").exists():
            shutil.rmtree(path)
            for folder in new[1:]:
                with suppress(OSError):  # another run has put its own folder there
                    folder.rmdir()
        raise


def _unused(path: Path) -> Path:
    """The path, or with a number behind it where a run of the same second has taken it."""
    names = itertools.chain([path.name], (f"{path.name}-{k}" for k in itertools.count(2)))
    return next(found for name in names if not (found := path.with_name(name)).exists())
