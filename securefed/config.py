"""The job: frozen dataclasses loaded from TOML, changed by dotted overrides, checked together.

Every check that joins two fields lives in `_check_*` below, so that a job that cannot run is refused
before data is read. Checks that need the data (delta against the smallest shard, more clients than
records) are in `check_against_shards`, called once the shards are known.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from securefed.errors import ConfigError

Adapter = Literal["rolora", "ffa", "lora", "fedsa", "full", "head"]
Task = Literal["classification", "causal-lm", "seq2seq"]
PartitionName = Literal["natural", "iid", "dirichlet", "quantity"]
Schedule = Literal["constant", "linear", "cosine"]
Unit = Literal["none", "example", "client"]
ServerOptimizerName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]


@dataclass(frozen=True)
class Component:
    """A part chosen by name with its options: `"krum"` or `{name = "krum", f = 2}` in TOML."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Which records, and who holds them.

    `name`: `sentiment`, `spam`, `fashion-mnist`, `digits`, `hub:NAME` or the path of a csv, jsonl or
    parquet file (with its columns). `clients = 0` takes one client per natural group.
    """

    name: str = "sentiment"
    clients: int = 12
    partition: PartitionName = "natural"
    alpha: float = 0.5
    min_examples: int = 20
    test_fraction: float = 0.2
    max_length: int = 64
    limit: int = 0
    text_column: str = "text"
    label_column: str = "label"
    target_column: str = "target"
    client_column: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The base model and what of it is trained. `layers`: "all", the top k as a number, or a list."""

    name: str = "minilm"
    task: Task = "classification"
    adapter: Adapter = "rolora"
    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] | Literal["auto"] = "auto"
    layers: Literal["all"] | int | tuple[int, ...] = "all"
    rslora: bool = False
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    gradient_checkpointing: bool = False
    hidden: int = 128
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """One client's local work in one round. Give `steps` or `epochs`, not both (0 = not given).

    `batch_size` is the batch of a step without DP; under DP the expected batch is
    sample_rate x records. `physical_tokens` bounds padded tokens (`physical_batch` images) per pass.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    head_learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 0
    epochs: int = 0
    batch_size: int = 32
    accumulate: int = 1
    physical_tokens: int = 2048
    physical_batch: int = 256
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    label_smoothing: float = 0.0
    proximal_mu: float = 0.0
    client_learning_rate: Mapping[str, float] = field(default_factory=dict)
    cache_frozen: bool = True
    cache_mib: int = 4096


@dataclass(frozen=True)
class PrivacyConfig:
    """The guarantee asked for. `epsilon` calibrates the noise for the whole schedule; or give
    `noise_multiplier` (standard deviation of the noise over `max_grad_norm`) and learn epsilon.

    `site_epsilon` caps everything ever spent on a shard at this site, over all runs (0 = no cap).
    `grad_sample_mode`: Opacus' formulas per layer type, or vmap for every layer. Ghost clipping is left
    out: it needs a second backward pass, 1.64 times the step without privacy on LoRA against 1.05 for hooks.
    """

    unit: Unit = "none"
    epsilon: float | None = None
    delta: float = 1e-5
    noise_multiplier: float | None = None
    max_grad_norm: float = 1.0
    sample_rate: float = 0.1
    accountant: Literal["pld", "prv", "rdp"] = "pld"
    site_epsilon: float = 0.0
    grad_sample_mode: Literal["hooks", "functorch"] = "hooks"


@dataclass(frozen=True)
class ServerConfig:
    """How the aggregate changes the global model (Reddi et al. 2021). The head may have its own rule."""

    optimizer: ServerOptimizerName = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    schedule: Schedule = "constant"
    head_optimizer: ServerOptimizerName | None = None
    head_learning_rate: float = 1.0
    head_momentum: float = 0.9


@dataclass(frozen=True)
class EvaluateConfig:
    """When to measure: every k rounds (0 = at the end only), per client, with baselines at the start."""

    every: int = 1
    clients: bool = True
    baselines: bool = True


@dataclass(frozen=True)
class StopConfig:
    """Stop before `rounds`: when `metric` has not improved by `min_delta` for `patience` evaluations."""

    patience: int = 0
    min_delta: float = 1e-3
    metric: str = "accuracy"


@dataclass(frozen=True)
class EngineConfig:
    """Where clients run: in this process (`workers = 0`) or in a pool of processes."""

    name: str = "inprocess"
    workers: int = 0
    threads: int = 0
    checkpoint_every: int = 1


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers beside the result folder, which is always written."""

    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "securefed"


@dataclass(frozen=True)
class Config:
    """One job, whole. `clients_per_round = 0` takes every client in every round.

    `weights`: how updates are weighted: by shard size, equally, or "auto": by size without DP, equally
    under DP, where "size" declares the shard sizes to be public constants.
    """

    name: str = "run"
    seed: int = 0
    rounds: int = 10
    clients_per_round: int = 0
    output: str = "runs"
    weights: Literal["auto", "equal", "size"] = "auto"
    algorithm: Component = Component("fedavg")
    protection: Component = Component("plain")
    aggregator: Component = Component("mean")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def private(self) -> bool:
        """Whether any differential privacy is asked for."""
        return self.privacy.unit != "none"


# ------------------------------------------------------------------------------------------- loading


def load_config(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Config:
    """The job in a TOML file (or mapping), with dotted overrides applied, checked.

    Args:
        source: path of a TOML file, a nested mapping, or a `Config`.
        overrides: `{"privacy.epsilon": 3.0}` or `["privacy.epsilon=3", "rounds=10"]`; a value in text
            is read as TOML and, failing that, as a plain string.

    Raises:
        ConfigError: unreadable file, unknown key (names the nearest), wrong type, value out of range,
            or fields that do not fit together.

    >>> load_config({"rounds": 3}, ["privacy.delta=1e-6"]).privacy.delta
    1e-06
    """
    if isinstance(source, Config):
        tree = to_tree(source)
    elif isinstance(source, Mapping):
        tree = _copy_tree(source)
    else:
        tree = _read_toml(Path(source))
    pairs = overrides.items() if isinstance(overrides, Mapping) else (_split_override(o) for o in overrides)
    for key, value in pairs:
        _set_dotted(tree, key, value)
    config: Config = _build(Config, tree, "")
    check(config)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; see configs/ for ready ones") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give its config.toml") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _copy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy_tree(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _split_override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {text!r} is not key=value; write e.g. privacy.epsilon=3")
    return key.strip(), parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is not one.

    >>> parse_value("3"), parse_value("[1, 2]"), parse_value("krum")
    (3, [1, 2], 'krum')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_COMPONENTS = ("algorithm", "protection", "aggregator")


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node = tree
    for name in path:
        child = node.get(name)
        if isinstance(child, str) and name in _COMPONENTS:
            child = {"name": child}  # so that protection.threshold=7 works on protection = "masking"
        elif child is None:
            default = getattr(Config(), name, None) if node is tree else None
            child = {"name": default.name} if isinstance(default, Component) else {}
        elif not isinstance(child, dict):
            raise ConfigError(f"override {key}: {name} is a value, not a table")
        node[name] = child
        node = child
    node[last] = value


def _build(cls: type[Any], tree: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown_key(where, key, known))
    return cls(**{key: _convert(hints[key], value, where + key) for key, value in tree.items()})


def _unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    for name, hint in typing.get_type_hints(Config).items():  # the right name in the wrong table comes first
        if dataclasses.is_dataclass(hint) and hint is not Component and key in [f.name for f in fields(hint)]:
            return f"unknown key {where}{key}; did you mean {name}.{key}?"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    if near:
        return f"unknown key {where}{key}; did you mean {where}{near[0]}?"
    return f"unknown key {where}{key}; known here: {', '.join(known)}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of its field, or a ConfigError that names the field and what it takes."""
    if hint is Component:
        return _component(value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, found {value!r}; write [{where}]")
        return _build(typing.cast("type[Any]", hint), value, where + ".")
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where} is one of {', '.join(map(repr, args))}, found {value!r}{hint_text}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} is a list, found {value!r}")
        return tuple(_convert(args[0], v, where) for v in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, found {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_KINDS[hint]}, found {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, found {value!r}")
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return _convert(arg, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0] if len(errors) == 1 else " or ".join(errors))


def _component(value: Any, where: str) -> Component:
    if isinstance(value, str):
        return Component(value)
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return Component(value["name"], {k: v for k, v in value.items() if k != "name"})
    raise ConfigError(f'{where} is a name or a table with a name, found {value!r}; write {where} = "..."')


# ------------------------------------------------------------------------------------------- writing


def to_tree(config: Config) -> dict[str, Any]:
    """The config as nested plain values, fields that are None left out; `load_config` reads it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Component):
            return {"name": value.name, **{k: plain(v) for k, v in value.options.items()}}
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return value

    tree: dict[str, Any] = plain(config)
    return tree


def to_toml(config: Config) -> str:
    """The resolved job as TOML text that `load_config` reads back to an equal config."""
    tree = to_tree(config)
    scalars = {k: v for k, v in tree.items() if not isinstance(v, dict) or k in _COMPONENTS}
    lines = [f"{k} = {_toml_value(v)}" for k, v in scalars.items()]
    for section, values in tree.items():
        if section not in scalars:
            lines += ["", f"[{section}]", *(f"{k} = {_toml_value(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_toml_character(c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    raise ConfigError(f"cannot write a {type(value).__name__} to TOML")


def _toml_character(c: str) -> str:
    """A character inside a basic string; TOML 1.0 forbids quote, backslash and control characters there."""
    if c in '"\\':
        return "\\" + c
    return f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c


# ------------------------------------------------------------------------------------------ checking


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def check(config: Config) -> None:
    """Raises ConfigError where a value is out of range or two fields do not fit."""
    _check_ranges(config)
    _check_training(config)
    _check_privacy(config)
    _check_adapter(config)
    _check_pairs(config)


def _check_ranges(c: Config) -> None:
    _require(bool(c.name) and "/" not in c.name and c.name not in (".", ".."), f"name must be a plain word, found {c.name!r}")
    _require(c.rounds >= 1, f"rounds must be at least 1, found {c.rounds}")
    _require(c.clients_per_round >= 0, f"clients_per_round must be 0 (all) or more, found {c.clients_per_round}")
    _require(0 <= c.seed < 2**63, f"seed must be in [0, 2**63), found {c.seed}")
    d, m = c.data, c.model
    _require(d.clients >= 0, f"data.clients must be 0 (one per natural group) or more, found {d.clients}")
    _require(
        d.clients == 0 or c.clients_per_round <= d.clients,
        f"clients_per_round={c.clients_per_round} is more than data.clients={d.clients}",
    )
    _require(d.alpha > 0, f"data.alpha must be above 0, found {d.alpha}")
    _require(d.min_examples >= 1, f"data.min_examples must be at least 1, found {d.min_examples}")
    _require(0 < d.test_fraction < 1, f"data.test_fraction must be in (0, 1), found {d.test_fraction}")
    _require(d.max_length >= 2, f"data.max_length must be at least 2 tokens, found {d.max_length}")
    _require(d.limit >= 0, f"data.limit must be 0 (everything) or more, found {d.limit}")
    _require(m.rank >= 1, f"model.rank must be at least 1, found {m.rank}")
    _require(m.alpha > 0, f"model.alpha must be above 0, found {m.alpha}")
    _require(0 <= m.dropout < 1, f"model.dropout must be in [0, 1), found {m.dropout}")
    _require(m.hidden >= 1, f"model.hidden must be at least 1, found {m.hidden}")
    if isinstance(m.layers, int):
        _require(m.layers >= 1, f"model.layers as a number is the top k >= 1, found {m.layers}")
    _require(c.engine.workers >= 0, f"engine.workers must be 0 (this process) or more, found {c.engine.workers}")
    _require(c.engine.threads >= 0, f"engine.threads must be 0 (automatic) or more, found {c.engine.threads}")
    _require(c.engine.checkpoint_every >= 1, f"engine.checkpoint_every must be at least 1, found {c.engine.checkpoint_every}")
    _require(c.evaluate.every >= 0, f"evaluate.every must be 0 (end only) or more, found {c.evaluate.every}")
    _require(c.stop.patience >= 0, f"stop.patience must be 0 (never) or more, found {c.stop.patience}")


def _check_training(c: Config) -> None:
    t, s = c.train, c.server
    _require((t.steps > 0) != (t.epochs > 0), f"give train.steps or train.epochs, one of them above 0; found steps={t.steps}, epochs={t.epochs}")
    _require(t.learning_rate > 0, f"train.learning_rate must be above 0, found {t.learning_rate}")
    _require(t.head_learning_rate is None or t.head_learning_rate > 0, f"train.head_learning_rate must be above 0, found {t.head_learning_rate}")
    _require(0 <= t.momentum < 1, f"train.momentum must be in [0, 1), found {t.momentum}")
    _require(t.weight_decay >= 0, f"train.weight_decay must be 0 or more, found {t.weight_decay}")
    _require(t.batch_size >= 1, f"train.batch_size must be at least 1, found {t.batch_size}")
    _require(t.accumulate >= 1, f"train.accumulate must be at least 1, found {t.accumulate}")
    _require(t.physical_tokens >= c.data.max_length, f"train.physical_tokens={t.physical_tokens} must hold one record of data.max_length={c.data.max_length}")
    _require(t.physical_batch >= 1, f"train.physical_batch must be at least 1, found {t.physical_batch}")
    _require(t.warmup_steps >= 0, f"train.warmup_steps must be 0 or more, found {t.warmup_steps}")
    _require(0 <= t.label_smoothing < 1, f"train.label_smoothing must be in [0, 1), found {t.label_smoothing}")
    _require(t.proximal_mu >= 0, f"train.proximal_mu must be 0 or more, found {t.proximal_mu}")
    _require(t.cache_mib >= 0, f"train.cache_mib must be 0 or more, found {t.cache_mib}")
    for client, rate in t.client_learning_rate.items():
        _require(client.isdigit(), f"train.client_learning_rate takes client numbers, found {client!r}")
        _require(rate > 0, f"train.client_learning_rate.{client} must be above 0, found {rate}")
    _require(s.learning_rate > 0 and s.head_learning_rate > 0, "server learning rates must be above 0")
    _require(0 <= s.momentum < 1 and 0 <= s.head_momentum < 1, "server momenta must be in [0, 1)")
    _require(0 <= s.beta2 < 1, f"server.beta2 must be in [0, 1), found {s.beta2}")
    _require(s.tau > 0, f"server.tau must be above 0, found {s.tau}")


def _check_privacy(c: Config) -> None:
    p = c.privacy
    _require(p.epsilon is None or p.epsilon > 0, f"privacy.epsilon must be above 0, found {p.epsilon}")
    _require(0 < p.delta < 1, f"privacy.delta must be in (0, 1), found {p.delta}")
    _require(p.max_grad_norm > 0, f"privacy.max_grad_norm must be above 0, found {p.max_grad_norm}")
    _require(0 < p.sample_rate <= 1, f"privacy.sample_rate must be in (0, 1], found {p.sample_rate}")
    _require(p.site_epsilon >= 0, f"privacy.site_epsilon must be 0 (no cap) or more, found {p.site_epsilon}")
    _require(p.noise_multiplier is None or p.noise_multiplier >= 0, f"privacy.noise_multiplier must be 0 or more, found {p.noise_multiplier}")
    if p.unit == "none":
        _require(p.epsilon is None and p.noise_multiplier is None, 'privacy.epsilon or noise_multiplier is given but privacy.unit is "none"; set privacy.unit = "example"')
        return
    _require(p.epsilon is not None or p.noise_multiplier is not None, "DP needs privacy.epsilon (noise is calibrated) or privacy.noise_multiplier (epsilon is computed)")
    _require(p.noise_multiplier != 0 or p.epsilon is None, "privacy.noise_multiplier = 0 adds no noise, so no finite epsilon holds; raise it or leave it out")
    _require(c.stop.patience == 0, "stop.patience reads a metric of private data, which DP does not cover; stop on rounds or on the budget")
    _require(c.train.weight_decay == 0 or c.train.optimizer == "adamw", "weight decay under DP goes through adamw, where it is decoupled from the noised gradient")
    if p.unit == "example":
        _require(c.train.steps > 0, "DP counts steps: give train.steps instead of train.epochs (an epoch is 1/sample_rate steps)")
        _require(c.train.accumulate == 1, "under DP the logical batch is drawn by sample_rate and split into physical batches already; set train.accumulate = 1")
        _require(c.train.proximal_mu == 0 or c.train.steps > 1, "FedProx with one local step does nothing: the proximal term is zero at the global model; raise train.steps")


def _check_adapter(c: Config) -> None:
    m = c.model
    small = m.name in ("mlp", "cnn", "logistic")
    _require(not small or m.adapter == "full", f'model {m.name} has no adapters; set model.adapter = "full"')
    _require(not small or m.task == "classification", f"model {m.name} classifies; set model.task = \"classification\"")
    _require(m.task == "classification" or m.adapter != "head", "model.adapter = \"head\" trains a classification head; choose task = \"classification\" or a LoRA adapter")
    _require(not (m.adapter == "fedsa" and c.privacy.unit == "client"), "fedsa keeps B on the client, outside a client-level guarantee; use rolora, ffa or lora")


def _check_pairs(c: Config) -> None:
    """A rule and a protection must fit; what each reveals or needs is read from the classes themselves."""
    from securefed.registry import make_aggregator, make_protection

    protection, rule = make_protection(c.protection), make_aggregator(c.aggregator)
    if rule.needs == "updates" and protection.reveals == "sum":
        raise ConfigError(
            f"aggregator {c.aggregator.name} must see single updates, protection {c.protection.name} reveals only their sum; "
            'use protection = "grouped" (a robust rule over sums of groups) or aggregator = "mean"'
        )
    _require(
        not (c.privacy.unit == "client" and c.weights == "size"),
        'client-level DP bounds what one client adds, so all weigh the same; set weights = "equal"',
    )
    _require(
        not (c.privacy.unit == "client" and rule.needs != "sum"),
        f"client-level noise is scaled for a sum; the sensitivity of {c.aggregator.name} is not proved, use aggregator = \"mean\"",
    )


def check_against_shards(config: Config, sizes: Sequence[int]) -> None:
    """Checks that need the data: `sizes` are the shards' record counts, in client order.

    Raises:
        ConfigError: an empty shard, fewer shards than `clients_per_round`, or a delta that allows the
            release of a whole record: delta must be below 1/records of the smallest shard (example
            level) or 1/clients (client level).
    """
    _require(len(sizes) >= 1, "no client has data")
    for client, size in enumerate(sizes):
        _require(size > 0, f"client {client} has no records; lower data.clients or raise data.min_examples")
    _require(config.clients_per_round <= len(sizes), f"clients_per_round={config.clients_per_round} but only {len(sizes)} clients have data")
    for named in config.train.client_learning_rate:
        _require(int(named) < len(sizes), f"train.client_learning_rate names client {named}, there are {len(sizes)}")
    p = config.privacy
    if p.unit == "example":
        _require(p.delta < 1 / min(sizes), f"privacy.delta={p.delta:g} must be below 1/records of the smallest shard = 1/{min(sizes)}; lower delta")
    if p.unit == "client":
        _require(p.delta < 1 / len(sizes), f"privacy.delta={p.delta:g} must be below 1/clients = 1/{len(sizes)}; lower delta")
