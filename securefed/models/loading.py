"""From a `ModelConfig` to a `TaskModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from securefed.config import ModelConfig
from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.errors import ModelError
from securefed.models.depth import cut_off
from securefed.models.digest import base_digest, file_digest
from securefed.models.small_nets import small_net
from securefed.models.soft import SOFT, VIRTUAL
from securefed.models.task_model import TaskModel
from securefed.models.text import TOKENIZER_FILES, load_encoder
from securefed.models.text_nets import text_model
from securefed.models.zoo import TEXT_NETS, is_small


def load(
    config: ModelConfig, *, classes: int, image_shape: tuple[int, int, int] | None, unit: str, max_length: int
) -> TaskModel:
    """See `securefed.models.load_model`."""
    if config.task == "classification" and classes < 2:
        raise ModelError(f"classification needs at least 2 classes, found {classes}")
    classes = classes if config.task == "classification" else 0
    device = find_device(config.device)
    with torch.random.fork_rng(devices=[]):  # libraries draw initial weights that we overwrite
        if is_small(config.name):
            return _small(config, classes, image_shape, device)
        return _pretrained(config, classes, unit, max_length, device)


def find_device(name: str) -> torch.device:
    """ "auto" is a GPU when there is one.

    Raises:
        ModelError: not a device, or not one of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ModelError(
            f'model.device={name!r} is not available on this machine; use "auto" or "cpu"'
        ) from None
    return device


# ----------------------------------------------------------------------------------------- pre-trained


def _pretrained(
    config: ModelConfig, classes: int, unit: str, max_length: int, device: torch.device
) -> TaskModel:
    from securefed.models.adapters import adapt
    from securefed.models.backbone import enable_checkpointing, load_backbone, positions
    from securefed.models.zoo import find_model

    source = find_model(config.name)
    base = load_backbone(
        source.folder,
        config.task,
        dtype=config.dtype,
        dropout=config.dropout,
        max_length=max_length,
        device=device,
    )
    reads = _reads(config, base.config.num_hidden_layers) if config.task == "classification" else ()
    cut = config.adapter != "full" and bool(reads) and cut_off(base, max(reads[-1], 1))
    vocabulary = base.get_input_embeddings().weight.shape[0]
    longest = _room(config, positions(base.config), max_length)
    text = load_encoder(source.folder, config.task, vocabulary=vocabulary, longest=longest)
    adapted = adapt(base, config, unit=unit, name=source.name)
    if config.gradient_checkpointing:
        enable_checkpointing(base)
    tangents = _tangents(config, reads[-1]) if config.adapter == "tangent" else ()
    module = _wrap(
        adapted.peft if adapted.virtual else base, config, classes, adapted.virtual, reads, cut, tangents
    )
    module.to(device).train()
    head = {n: p for n, p in module.named_parameters() if n.startswith(("head.", "centre.", "anchor."))}
    return TaskModel(
        module,
        config=config,
        device=device,
        parameters={**adapted.parameters, **head},
        part_of={**adapted.parts, **{n: n.partition(".")[0] for n in head}},
        base_digest=base_digest(
            _files(source.folder, ("config.json", "merges.txt", *TOKENIZER_FILES)),
            _settings(config, classes, module) | {"tokens": text.identity},
        ),
        encode=text.encode,
        name=source.name,
        classes=classes,
        max_length=max_length,
        peft=adapted.peft,
        frozen=adapted.frozen,
        tokenizer=text.tokenizer,
    )


def _room(config: ModelConfig, longest: int | None, max_length: int) -> int | None:
    """Positions left for a record's own tokens; virtual ones come before them.

    Raises:
        ModelError: too few.
    """
    if config.adapter not in VIRTUAL or longest is None:
        return longest
    if longest < config.virtual_tokens + max_length:
        raise ModelError(
            f"model.virtual_tokens={config.virtual_tokens} and data.max_length={max_length} need more than the {longest} "
            "positions of this model; lower one of them"
        )
    return longest - config.virtual_tokens


def _wrap(
    base: Any,
    config: ModelConfig,
    classes: int,
    virtual: int,
    reads: tuple[int, ...],
    cut: bool,
    tangents: tuple[int, ...],
) -> torch.nn.Module:
    from securefed.models.encoder import STAGED, TextClassifier
    from securefed.models.language import CausalLM, Seq2SeqLM

    if config.task == "causal-lm":
        decoder = CausalLM(
            base, virtual=bool(virtual)
        )  # takes the last positions where virtual ones come before
        decoder.checkpointing = config.gradient_checkpointing
        if config.vocabulary_sample:
            decoder.sample_vocabulary(config.vocabulary_sample, config.seed)
        return decoder
    if config.task == "seq2seq":
        return Seq2SeqLM(base)
    if tangents and (base.config.model_type not in STAGED or getattr(base.config, "is_decoder", False)):
        raise ModelError(
            f"adapter tangent knows the feed-forward layers of {', '.join(STAGED)}, and this model is of type "
            f'{base.config.model_type}; use model.adapter = "head" or a LoRA adapter'
        )
    module = TextClassifier(base, classes, reads, config.head_centre, tangents)
    module.staged = module.staged and not virtual
    module.cut = cut
    module.checkpointing = config.gradient_checkpointing
    return module


def _reads(config: ModelConfig, layers: int) -> tuple[int, ...]:
    """The layers that `config.head_layers` means: the last k, or a list of 0 (embeddings) to `layers`.

    Raises:
        ModelError: layers that do not exist, or weights to train above all that the head reads.
    """
    wanted = config.head_layers
    if isinstance(wanted, int):
        if wanted > layers:
            raise ModelError(f"model.head_layers={wanted} asks for more than the {layers} layers there are")
        return tuple(range(layers - wanted + 1, layers + 1))
    found = tuple(sorted(set(wanted)))
    if not found or found[0] < 0 or found[-1] > layers:
        raise ModelError(f"model.head_layers={list(wanted)} must be some of 0 (embeddings) to {layers}")
    if found[-1] < layers and config.adapter == "full":
        raise ModelError(
            f"model.head_layers={list(wanted)} leaves out the last layer, {layers}, whose weights would not train; "
            f"add {layers}, or choose another model.adapter"
        )
    return found


def _tangents(config: ModelConfig, top: int) -> tuple[int, ...]:
    """The layers that `config.layers` means, of those below the last output that the head reads.

    Raises:
        ModelError: none, or layers that nothing the head reads lies above.
    """
    wanted = config.layers
    if top == 0:
        raise ModelError(
            f"model.head_layers={config.head_layers} reads the embeddings alone, which no layer's biases move; add a layer"
        )
    if wanted == "all":
        found = tuple(range(top))
    elif isinstance(wanted, int):
        found = tuple(range(top - wanted, top)) if wanted > 0 else ()
    else:
        found = tuple(sorted(set(wanted)))
    if not found or found[0] < 0 or found[-1] >= top:
        asked = list(wanted) if isinstance(wanted, tuple) else wanted
        raise ModelError(
            f"model.layers={asked} must be layers 0 to {top - 1} for adapter tangent: the head reads nothing above layer {top}"
        )
    return found


def first_digest(model: TaskModel) -> str:
    """The base's digest as results named it that were written before it covered every tokenizer.

    Raises:
        ModelError: the base's files are gone.
    """
    from securefed.models.zoo import find_model

    files = _files(find_model(model.config.name).folder, ("config.json", "tokenizer.json", "vocab.txt"))
    return base_digest(files, _settings(model.config, model.classes, model.module))


def _files(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Digests of the weights and of these files, where there are any; names of nothing machine-specific."""
    wanted = [*folder.glob("*.safetensors"), *(folder / n for n in names)]
    return {path.name: file_digest(path) for path in sorted(wanted) if path.is_file()}


def _settings(config: ModelConfig, classes: int, module: Any) -> dict[str, Any]:
    """What else decides which function a vector of weights stands for."""
    lora = config.adapter not in ("head", "full", "tangent", *SOFT)
    shape: tuple[Any, ...] = (
        (config.rank, config.alpha, config.targets, config.layers, config.rslora) if lora else ()
    )
    if config.adapter in SOFT:
        shape = (config.adapter, config.targets if config.adapter == "ia3" else config.virtual_tokens)
    if config.adapter == "tangent":
        shape = (config.adapter, module.anchor.layers)
    seed = config.seed if config.adapter == "ffa" else None
    reads: tuple[int, ...] = getattr(module, "reads", ())
    whole = not getattr(module, "cut", False)
    plain = not reads or (
        whole and reads == (module.backbone.config.num_hidden_layers,)
    )  # as results always meant
    return {
        **({"pooled": module.pooled} if reads and module.pooled else {}),
        **({} if plain else {"head_layers": reads}),
        **({"head_centre": True} if config.head_centre else {}),
        "task": config.task,
        "dtype": config.dtype,
        "adapter": shape,
        "frozen_seed": seed,
        "classes": classes,
    }


# ------------------------------------------------------------------------------------------ small nets


def _small(
    config: ModelConfig, classes: int, image_shape: tuple[int, int, int] | None, device: torch.device
) -> TaskModel:
    if config.name in TEXT_NETS:
        return text_model(config, classes, device)
    if image_shape is None:
        raise ModelError(
            f"model {config.name} classifies images; use an image data set such as fashion-mnist or digits"
        )
    if config.adapter != "full" or config.task != "classification" or config.dtype != "float32":
        raise ModelError(
            f'model {config.name} takes adapter = "full", task = "classification" and dtype = "float32" only'
        )
    module = small_net(config, image_shape, classes)
    module.to(device).train()
    parameters = {n.removeprefix("net."): p for n, p in module.named_parameters()}

    def encode(examples: Examples, max_length: int) -> Encoded:
        if examples.images is None or examples.images.shape[1:] != image_shape:
            found = "none" if examples.images is None else f"shape {examples.images.shape[1:]}"
            raise ModelError(f"model {config.name} reads images of shape {image_shape}, found {found}")
        return Encoded(images=examples.images, labels=examples.labels)

    return TaskModel(
        module,
        config=config,
        device=device,
        parameters=parameters,
        part_of=dict.fromkeys(parameters, "base"),
        base_digest=base_digest(
            {}, {"net": config.name, "hidden": config.hidden, "shape": image_shape, "classes": classes}
        ),
        encode=encode,
        name=config.name,
        classes=classes,
        image_shape=image_shape,
    )
