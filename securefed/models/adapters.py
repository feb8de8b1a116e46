"""Which tensors of a base model train: adapters through PEFT, all weights, or none. Only this file knows PEFT.

LoRA adds `alpha/rank x B A` to a linear layer (Hu et al. 2021, section 4.1). Variants differ in what trains
and travels: `lora` A and B, `rolora` A and B by turns, `fedsa` A travels and B stays, `ffa` B alone over a
public A. Adapters are float32 whatever the base's dtype, and so are their per-sample gradients.

Opacus' hooks, unwrapped, give the gradient of each record (tests/securefed/models/test_per_sample_gradients.py,
against autograd on one record at a time) for every variant and for `head`, on BERT, Llama, GPT-2 and T5, with
reentrant checkpointing and a bfloat16 base; for `full` once the embeddings that are looked up for the whole
batch at once are frozen. They give none for DoRA and for LoRA on embeddings, which are refused.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from securefed.config import ModelConfig
from securefed.errors import ModelError
from securefed.models.digest import read_json
from securefed.models.quiet import quiet
from securefed.models.soft import SOFT, attach_scale, first_prefix, first_prompt
from securefed.models.start import initialize

logger = logging.getLogger(__name__)

LORA = ("rolora", "ffa", "lora", "fedsa")
AUTO_TARGETS = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("c_attn",),
    ("query_key_value",),
)
"""Attention's query and value projections under the names the families give them; the first that is found is taken."""
PROMPT, IA3_END = "prompt_encoder", ".ia3_l"
"""Clean names of virtual tokens, and the end of a scale's."""
FEEDFORWARD = ("output.dense", "down_proj", "c_proj", "wo", "w2", "fc2", "lin2", "dense_4h_to_h")
"""Ends of the names of layers whose input IA3 scales; of all others it scales the output."""
TASK_TYPES = {"classification": "FEATURE_EXTRACTION", "causal-lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """A base model made trainable.

    Attributes:
        parameters: clean name -> what trains in the base. parts: clean name -> "A", "B" or "base".
        peft: PEFT's model around the base, None without an adapter. frozen: clean name -> frozen adapter tensors.
        virtual: tokens that PEFT's model puts before a record's own; then it must be called in the base's place.
    """

    parameters: dict[str, nn.Parameter]
    parts: dict[str, str]
    peft: Any = None
    frozen: dict[str, nn.Parameter] | None = None
    virtual: int = 0


def adapt(base: Any, config: ModelConfig, *, unit: str, name: str) -> Adapted:
    """Freezes the base and makes trainable what `config.adapter` says; the base is changed in place.

    Args:
        base: the loaded model. config: adapter, rank, alpha, targets, layers, seed.
        unit: the job's privacy unit. name: what the adapter's files call the base model.

    Raises:
        ModelError: no module matches, a target LoRA cannot follow, layers that do not exist.
    """
    base.requires_grad_(False)
    if config.adapter in ("head", "tangent"):
        return Adapted({}, {})
    if config.adapter == "full":
        return _full(base, config, unit)
    if config.adapter in SOFT:
        return _soft(base, config, name)
    peft = _inject(base, config, name)
    tensors = {clean(n): p for n, p in base.named_parameters() if ".lora_" in n}
    initialize(tensors, config)
    parts = {n: n[-1] for n in tensors}
    frozen = {n: p for n, p in tensors.items() if config.adapter == "ffa" and parts[n] == "A"}
    for n, p in tensors.items():
        p.requires_grad_(n not in frozen)
    trained = {n: p for n, p in tensors.items() if n not in frozen}
    parts = {n: parts[n] for n in trained}
    if config.merged:
        bases = _bases(base, config)
        trained, parts = trained | bases, parts | dict.fromkeys(bases, "merged")
    return Adapted(trained, parts, peft, frozen)


def clean(name: str) -> str:
    """`X.lora_A.default.weight` -> `X.lora_A`; other names as they are."""
    return name.replace(".default.weight", "") if ".lora_" in name else name


def state(adapted_peft: Any, folder: Path, name: str) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained` opens."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    with quiet():
        if adapted_peft.peft_config["default"].peft_type == "IA3":
            tensors = _scales(adapted_peft.get_base_model())
        else:
            tensors = get_peft_model_state_dict(adapted_peft, save_embedding_layers=False)
        settings = adapted_peft.peft_config["default"]
        settings.base_model_name_or_path = name
        settings.inference_mode, before = True, settings.inference_mode
        settings.save_pretrained(str(folder))
        settings.inference_mode = before
    save_file(
        {k: t.detach().cpu().contiguous() for k, t in tensors.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )


def file_name(name: str) -> str:
    """The key of a clean name in `adapter_model.safetensors`."""
    if name == PROMPT:
        return "prompt_embeddings"
    return f"base_model.model.{name}" + ("" if name.endswith(IA3_END) else ".weight")


def refuse_unsupported(folder: Path) -> None:
    """Raises ModelError if a PEFT folder holds a variant that cannot be trained here."""
    settings = read_json(folder / "adapter_config.json") or {}
    if settings.get("use_dora"):
        raise ModelError(
            f"{folder} is a DoRA adapter: its magnitude normalizes whole weight rows, so no per-sample gradient exists "
            "and DP training cannot bound one record; train it again with use_dora=False"
        )


# ----------------------------------------------------------------------------------------------- full


def _full(base: Any, config: ModelConfig, unit: str) -> Adapted:
    if config.dtype != "float32":
        raise ModelError(
            f'adapter "full" trains the base weights themselves; {config.dtype} would round small steps away, set model.dtype = "float32"'
        )
    frozen = _broadcast_embeddings(base) if unit == "example" else set()
    if frozen:
        logger.info(
            "kept frozen under example-level DP: %s (looked up once for the whole batch, or by encoder and decoder both, so "
            "they have no per-sample gradient)",
            ", ".join(sorted(frozen)),
        )
    wanted, _ = _layers(base, config, dict(base.named_modules()))
    trained = {
        n: p.requires_grad_()
        for n, p in base.named_parameters()
        if n not in frozen and (wanted is None or layer_index(n) in wanted)
    }
    return Adapted(trained, dict.fromkeys(trained, "base"))


def _broadcast_embeddings(base: Any) -> set[str]:
    """Position, token-type and relative-position tables: every embedding but the tokens' own, and that where two share it."""
    tokens = base.get_input_embeddings()
    tables = [m.weight for m in base.modules() if isinstance(m, nn.Embedding)]
    kept = {id(w) for w in tables if w is not tokens.weight}
    if sum(w is tokens.weight for w in tables) > 1:  # T5's encoder and decoder
        kept.add(id(tokens.weight))
    return {n for n, p in base.named_parameters() if id(p) in kept}


# ------------------------------------------------------------------------------- prompt, prefix, IA3


def _soft(base: Any, config: ModelConfig, name: str) -> Adapted:
    """Virtual tokens before the record's own, or vectors that scale activations."""
    from peft import get_peft_model

    settings = _soft_settings(base, config)
    try:
        with quiet():
            peft: Any = get_peft_model(base, settings, autocast_adapter_dtype=True)
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"adapter {config.adapter} does not fit {type(base).__name__}: {str(error).splitlines()[0]}; "
            "set model.targets, or use a LoRA adapter"
        ) from None
    peft.peft_config["default"].base_model_name_or_path = name
    if config.adapter == "ia3":
        scales = _as_lookups(base)
        return Adapted(scales, dict.fromkeys(scales, "adapter"), peft)
    table: nn.Parameter = peft.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        if config.adapter == "prompt":
            start = first_prompt(base.get_input_embeddings().weight, config.virtual_tokens, config.seed)
        else:
            start = first_prefix(tuple(table.shape), config.seed)
        table.copy_(start)
    table.requires_grad_(True)
    if config.adapter == "prompt":
        _look_up_for_each_record(peft, config.virtual_tokens)
    return Adapted({PROMPT: table}, {PROMPT: "adapter"}, peft, None, config.virtual_tokens)


def _look_up_for_each_record(peft: Any, tokens: int) -> None:
    """Makes every record look the prompt up for itself.

    PEFT looks it up once and repeats it, so a hook would see one gradient for the whole batch: nothing to clip
    record by record. (Of a prefix it makes one lookup a record already.)
    """
    encoder = peft.prompt_encoder["default"]

    def get_prompt(batch_size: int, *_: Any, **__: Any) -> torch.Tensor:
        indices = torch.arange(tokens, device=encoder.embedding.weight.device)
        prompt: torch.Tensor = encoder(indices.expand(batch_size, -1))
        return prompt

    peft.get_prompt = get_prompt


def _soft_settings(base: Any, config: ModelConfig) -> Any:
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig

    task = TASK_TYPES[config.task]
    if config.adapter == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=config.virtual_tokens)
    if config.adapter == "prefix":
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=config.virtual_tokens)
    if config.targets == "auto":
        return IA3Config(task_type=task)
    found = _matching(base, config.targets)
    inner = [t for t in config.targets if t.endswith(FEEDFORWARD)]
    fan = all(type(m).__name__ == "Conv1D" for m in found.values())
    return IA3Config(
        task_type=task, target_modules=list(config.targets), feedforward_modules=inner, fan_in_fan_out=fan
    )


def _as_lookups(base: Any) -> dict[str, nn.Parameter]:
    """Clean name -> scale, of every layer that PEFT gave one; each becomes a lookup that every record makes itself."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in _ia3_layers(base):
        layer.ia3_l.pop("default")
        width = layer.in_features if layer.is_feedforward else layer.out_features
        attach_scale(layer, width, layer.is_feedforward)
        (found[name + IA3_END],) = layer.scale.parameters()
    return found


def _scales(base: Any) -> dict[str, torch.Tensor]:
    """The scales as PEFT writes them: (1, in) before a layer, (out, 1) behind it."""
    return {
        file_name(name + IA3_END): layer.scale.rows.weight.view((1, -1) if layer.is_feedforward else (-1, 1))
        for name, layer in _ia3_layers(base)
    }


def _ia3_layers(base: Any) -> list[tuple[str, Any]]:
    from peft.tuners.ia3 import IA3Layer

    return [(n, m) for n, m in base.named_modules() if isinstance(m, IA3Layer)]


# ----------------------------------------------------------------------------------------------- LoRA


def _inject(base: Any, config: ModelConfig, name: str) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = _targets(base, config)
    found = _matching(base, targets)
    _check_rank(config.rank, found)
    indices, pattern = _layers(base, config, found)
    expected = {n for n in found if indices is None or layer_index(n) in indices}
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(targets),
        layers_to_transform=indices,
        layers_pattern=pattern,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        fan_in_fan_out=all(type(found[n]).__name__ == "Conv1D" for n in found),
        task_type=TASK_TYPES[config.task],
    )
    with quiet():
        peft = get_peft_model(base, settings, autocast_adapter_dtype=True)
    peft.peft_config["default"].base_model_name_or_path = name
    adapted = {clean(n).removesuffix(".lora_A") for n, _ in base.named_parameters() if ".lora_A." in n}
    if adapted != expected:
        raise ModelError(
            f"PEFT adapted {len(adapted)} modules where {len(expected)} match; name the modules in full in model.targets"
        )
    return peft


def _bases(base: Any, config: ModelConfig) -> dict[str, nn.Parameter]:
    """Clean name -> base weight of each adapted layer, which no client trains and the server may add to."""
    end = ".base_layer.weight"
    found = {n.removesuffix(end) + ".base": p for n, p in base.named_parameters() if n.endswith(end)}
    if config.dtype != "float32":
        raise ModelError(
            f'model.merged adds small numbers to base weights; {config.dtype} would round them away, set dtype = "float32"'
        )
    for name, p in found.items():
        if type(base.get_submodule(name.removesuffix(".base")).base_layer).__name__ == "Conv1D":
            raise ModelError(
                f"model.merged: {name} is stored transposed ({tuple(p.shape)}); use another model"
            )
    return found


def _check_rank(rank: int, found: dict[str, nn.Module]) -> None:
    """Beyond its layer's smaller side a factor pair has more numbers than the layer and no more freedom."""
    for name, module in found.items():
        width = min(module.weight.shape)  # type: ignore[arg-type]  # linear layers have one, two-dimensional
        if rank > width:
            raise ModelError(f"model.rank={rank} is above the width of {name}, {width}; lower model.rank")


def _targets(base: Any, config: ModelConfig) -> tuple[str, ...]:
    if config.targets != "auto":
        return config.targets
    for names in AUTO_TARGETS:
        if all(_matching(base, (n,), strict=False) for n in names):
            return names
    raise ModelError(
        f"no query and value projections known in {type(base).__name__}; set model.targets to some of {_linears(base)}"
    )


def _matching(base: Any, targets: tuple[str, ...], strict: bool = True) -> dict[str, nn.Module]:
    """The modules that these names mean, by full name or by its end, each fit for LoRA."""
    found = {n: m for n, m in base.named_modules() if any(n == t or n.endswith(f".{t}") for t in targets)}
    if not strict:
        return {n: m for n, m in found.items() if _is_linear(m)}
    for target in targets:
        if not any(n == target or n.endswith(f".{target}") for n in found):
            raise ModelError(
                f"no module named {target!r} in {type(base).__name__}; model.targets can be some of {_linears(base)}"
            )
    for n, module in found.items():
        if isinstance(module, nn.Embedding):
            raise ModelError(
                f"LoRA on the embedding {n!r} has no per-sample gradient (its factors are bare tensors that no hook sees), "
                "so DP cannot bound one record; target linear projections such as " + _linears(base)
            )
        if not _is_linear(module):
            raise ModelError(
                f"module {n!r} is a {type(module).__name__}, LoRA needs a linear layer: some of {_linears(base)}"
            )
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear


def _linears(base: Any) -> str:
    names = sorted({n.rpartition(".")[2] for n, m in base.named_modules() if _is_linear(m)})
    return ", ".join(names) or "none (it has no linear layer)"


def layer_index(name: str) -> int | None:
    """The layer a tensor or module belongs to: the first number in its dotted name."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found.group(1)) if found else None


def _layers(
    base: Any, config: ModelConfig, found: dict[str, nn.Module]
) -> tuple[list[int] | None, str | None]:
    """Which layers `config.layers` means, and what PEFT must call them. For T5: of each of the two stacks."""
    if config.layers == "all":
        return None, None
    numbered = [n for n in found if layer_index(n) is not None]
    count = 1 + max((layer_index(n) or 0 for n in numbered), default=-1)
    if count == 0:
        raise ModelError('what is trained lies in no numbered layer; set model.layers = "all"')
    if isinstance(config.layers, int):
        if config.layers > count:
            raise ModelError(f"model.layers={config.layers} asks for more than the {count} layers there are")
        wanted = list(range(count - config.layers, count))
    else:
        wanted = sorted(set(config.layers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= count:
            raise ModelError(f"model.layers={wanted} must be some of 0 to {count - 1}")
    first = re.search(r"([^.]+)\.\d+\.", numbered[0])
    return wanted, first.group(1) if first else None
