"""The job's fields: frozen dataclasses with their defaults. What is allowed is in `check.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Adapter = Literal["rolora", "ffa", "lora", "fedsa", "full", "head", "prompt", "prefix", "ia3", "tangent"]
Task = Literal["classification", "causal-lm", "seq2seq"]
PartitionName = Literal["natural", "iid", "dirichlet", "quantity"]
Schedule = Literal["constant", "linear", "cosine"]
CacheOnDisk = Literal["public", "always", "never"]
Unit = Literal["none", "example", "client"]
Noise = Literal["central", "skellam", "discrete-gaussian", "gaussian", "local", "correlated"]
ServerOptimizerName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]


@dataclass(frozen=True)
class Component:
    """A part chosen by name with its options: `"krum"` or `{name = "krum", f = 2}` in TOML."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """Which records, and who holds them.

    `ledger_name` names own records in the site's privacy ledger, so that a file that grows stays one
    account; by default they are known by a digest of all their rows.

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
    ledger_name: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """The base model and what of it is trained. `layers`: "all", the top k as a number, or a list; for `full` all
    weights of these and no embedding, for `tangent` whose biases.

    `head_layers`: the layers whose outputs a classification head reads, the last k as a number or a list
    of 0 (embeddings) to the number of layers; what lies above the highest is left out of the model, and
    `layers` counts what is left. `head_centre`: the first round measures the mean of these
    features, as one more release of the job's mechanism, and the head reads them less their mean.
    `ranks`: of the clients' own LoRA adapters, client k taking ranks[k mod length] of `rank`, for the algorithms
    that join unlike ranks. `merged`: the base weights under the adapters travel too, for a server that
    adds to them (`flora`, `fedex`). `virtual_tokens`: that `prompt` and `prefix` train (docs/adapters.md).
    `vocabulary_sample`: how many public tokens a causal language model's training loss is normalized over; 0 takes
    all. Perplexity is always exact.
    """

    name: str = "minilm"
    task: Task = "classification"
    adapter: Adapter = "rolora"
    rank: int = 8
    ranks: tuple[int, ...] = ()
    merged: bool = False
    virtual_tokens: int = 16
    vocabulary_sample: int = 0
    alpha: float = 8.0
    targets: tuple[str, ...] | Literal["auto"] = "auto"
    layers: Literal["all"] | int | tuple[int, ...] = "all"
    head_layers: int | tuple[int, ...] = 1
    head_centre: bool = False
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
    sample_rate x records. `inspect_model`: a client refuses a global model that looks made to extract
    data (`models.inspection`) before it trains on it. `class_weights`: what a record's loss is multiplied with
    by its label: public constants in the order of the classes, or "balanced", from a client's own label counts,
    which are private. `physical_tokens` bounds padded tokens (`physical_batch` images) per pass.
    `cache_frozen`: keep what frozen layers say of each record in memory, up to `cache_mib`; and, where `cache_on_disk` says
    so, on disk up to `cache_disk_mib`, for later runs: "public" for the named data sets alone, "always" also for your own
    records (encrypted, unless the site's policy says otherwise), "never".
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
    physical_tokens: int = 1024
    physical_batch: int = 256
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | Literal["none", "balanced"] = "none"
    proximal_mu: float = 0.0
    client_learning_rate: Mapping[str, float] = field(default_factory=dict)
    inspect_model: bool = False
    cache_frozen: bool = True
    cache_mib: int = 4096
    cache_on_disk: CacheOnDisk = "public"
    cache_disk_mib: int = 4096


@dataclass(frozen=True)
class PrivacyConfig:
    """The guarantee asked for. `epsilon` calibrates the noise for the whole schedule; or give
    `noise_multiplier` (standard deviation of the noise over `max_grad_norm`) and learn epsilon.

    `noise`, at client level and under the algorithm fedsgd: "central" is added by the server, which sees updates
    before; "skellam" and "discrete-gaussian" are added by the clients inside a masked sum, "gaussian" by the
    clients before they encrypt (ckks), so that nobody sees a sum without noise. "local", under the algorithm distill:
    each client adds all of it to its own table, so that nobody sees any less noised. "correlated": by the server, for
    cohorts that are dealt out in turn; a round's noise takes back a part of earlier rounds' (docs/correlated-noise.md).
    `min_separation`: then, how many rounds lie between two of one client (0: clients // clients_per_round).

    `clip = "adaptive"`, at client level: `max_grad_norm` is the first round's clip only; then it follows
    `clip_quantile` of the clients' norms at `clip_learning_rate`, by one noised bit a client. `clip_count_std`: of the
    noise on the count of these bits; 0 takes a twentieth of the cohort, and twice the noise multiplier where that is more.

    `site_epsilon` caps everything ever spent on a shard at this site, over all runs (0 = no cap).
    `grad_sample_mode`: Opacus' formulas per layer type; vmap for every layer; or "ghost": clipped sums from one
    backward pass without a row for each record, several times faster where whole matrices are trained (`training.ghost`).
    """

    unit: Unit = "none"
    noise: Noise = "central"
    min_separation: int = 0
    epsilon: float | None = None
    delta: float = 1e-5
    noise_multiplier: float | None = None
    max_grad_norm: float = 1.0
    clip: Literal["fixed", "adaptive"] = "fixed"
    clip_quantile: float = 0.5
    clip_learning_rate: float = 0.2
    clip_count_std: float = 0.0
    sample_rate: float = 0.1
    accountant: Literal["pld", "prv", "rdp"] = "pld"
    site_epsilon: float = 0.0
    grad_sample_mode: Literal["hooks", "functorch", "ghost"] = "hooks"


@dataclass(frozen=True)
class AttackConfig:
    """Liars in a simulation: `f` of the clients, drawn from the job's seed; none where f = 0.

    `name` with its `options` is an attack on the aggregate: what a liar sends instead of what it trained.
    `poison` changes its records before it trains on them. At least one of the two is given.
    `participation`: probability with which a liar lies in a round; else it is honest in that round.
    `colluding = false`: each liar plays the attack alone, as if it were the only one.
    `declared_f`: the f that the rule was told, where it is wrong on purpose (-1: it is f).
    """

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    poison: Component | None = None
    f: int = 0
    participation: float = 1.0
    colluding: bool = True
    declared_f: int = -1


@dataclass(frozen=True)
class ServerConfig:
    """How the aggregate changes the global model (Reddi et al. 2021). The head may have its own rule.

    `average`: weight of the past in an exponential average of the rounds' models, which is then what is
    measured and saved; 0 hands out the last one. `head_joint_factor`: on the head's learning rate in
    rounds that train an adapter too, where a head that has been trained needs to follow only.
    `root_records`: training records that the server holds itself and no client does, for rules that compare
    with an update of its own (`fl_trust`).
    """

    optimizer: ServerOptimizerName = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    schedule: Schedule = "constant"
    head_optimizer: ServerOptimizerName | None = None
    head_learning_rate: float = 1.0
    head_momentum: float = 0.9
    head_joint_factor: float = 1.0
    average: float = 0.0
    root_records: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """When to measure: every k rounds (0 = at the end only), per client, with baselines at the start.

    `alone`: at the end each client also trains by itself, with the local work it did in the run and without
    noise, for a report of who gains and who loses; it costs a second run.
    """

    every: int = 1
    clients: bool = True
    baselines: bool = True
    alone: bool = False


@dataclass(frozen=True)
class ClockConfig:
    """A simulated clock, from the public seed alone (`algorithms.clock`).

    `seconds`: what a median client needs for one round's work; 0 keeps no clock. `spread`: standard deviation of
    the logarithm of a client's time over clients. `stragglers`: share of clients that are `slowdown` times slower.
    `jitter`: standard deviation of the logarithm of one turn's time.
    """

    seconds: float = 0.0
    spread: float = 0.5
    stragglers: float = 0.0
    slowdown: float = 10.0
    jitter: float = 0.1


@dataclass(frozen=True)
class StopConfig:
    """Stop before `rounds`: when `metric` has not improved by `min_delta` for `patience` evaluations."""

    patience: int = 0
    min_delta: float = 1e-3
    metric: Literal["accuracy", "balanced_accuracy", "f1", "loss", "perplexity"] = "accuracy"


@dataclass(frozen=True)
class EngineConfig:
    """Where clients run: in this process (`workers = 0`) or in a pool of processes.

    `checkpoint_every`: rounds between checkpoints; 0 = after the first round that ends a second or more
    after the last one.
    """

    name: Literal["inprocess"] = "inprocess"
    workers: int = 0
    threads: int = 0
    checkpoint_every: int = 0


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers beside the result folder, which is always written.

    `report = false` leaves out the page and the pictures, half the time of a run of a second;
    `securefed report` makes them later. `keep_views`: of how many rounds, the newest, the folder keeps what the
    server saw, for `securefed audit`; as private as the updates themselves, and no statement covers it.
    """

    report: bool = True
    keep_views: int = 0
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "securefed"


@dataclass(frozen=True)
class Architecture:
    """What some of the clients of a distillation train. `learning_rate`: theirs; by default the job's.

    `name`: as `model.name`. A small net takes adapter "full", a pre-trained model any other.
    """

    name: str = ""
    adapter: Adapter = "full"
    rank: int = 8
    layers: Literal["all"] | int | tuple[int, ...] = "all"
    head_layers: int | tuple[int, ...] = 1
    hidden: int = 64
    learning_rate: float | None = None


@dataclass(frozen=True)
class DistillConfig:
    """The algorithm distill: clients answer on public records, the server's student (`[model]`) learns the answers.

    `public`: "held-out" sets `records` training records aside that no client then holds; else the name of a data set or the
    path of a file, of which `records` are drawn. Their labels are never read.
    `clients`: architectures, dealt out in turn (client k gets number k modulo their count); none: all train the student's.
    `send`: logits (centred over the classes, each record's clipped to L2 norm `clip`), probabilities (softened by
    `temperature`) or votes (one for the likeliest class). `confidence`: a record's answer weighs as much as the client is sure of it.
    `back`: what clients learn from before they train again: the ensemble's soft labels, the student, or nothing.
    `digest_steps`, `student_steps`: steps of that learning and of the student's, over `batch_size` public records each.
    """

    public: str = "held-out"
    records: int = 500
    clients: tuple[Architecture, ...] = ()
    send: Literal["logits", "probabilities", "votes"] = "logits"
    clip: float = 5.0
    temperature: float = 2.0
    confidence: bool = False
    back: Literal["labels", "student", "nothing"] = "labels"
    digest_steps: int = 50
    student_steps: int = 200
    student_learning_rate: float = 0.01
    batch_size: int = 64


@dataclass(frozen=True)
class Config:
    """One job, whole. `clients_per_round = 0` takes every client in every round.

    `weights`: how updates are weighted: by shard size, equally, or "auto": by size without DP, equally
    under DP, where "size" declares the shard sizes to be public constants.
    `compression`: how updates are made smaller before they are sent (docs/compression.md); None sends them whole.
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
    compression: Component | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)

    @property
    def private(self) -> bool:
        """Whether any differential privacy is asked for."""
        return self.privacy.unit != "none"

    @property
    def distributed(self) -> bool:
        """Whether the clients add the noise, inside a secure sum."""
        return self.privacy.noise not in ("central", "correlated")

    @property
    def correlated(self) -> bool:
        """Whether the server's noise is correlated over rounds, and cohorts are dealt out in turn."""
        return self.privacy.noise == "correlated"

    @property
    def discrete(self) -> bool:
        """Whether that noise is integers in a masked sum, which compose by RDP only."""
        return self.privacy.noise in ("skellam", "discrete-gaussian")

    @property
    def fedsgd(self) -> bool:
        """Whether a round is one step over the federation's records: the unit of DP is the record all the same."""
        return self.algorithm.name in ("fedsgd", "securefed.algorithms.fedsgd:FedSGD")

    @property
    def distills(self) -> bool:
        """Whether clients send answers on public records in place of updates."""
        return self.algorithm.name in ("distill", "securefed.algorithms.distill:Distill")

    @property
    def buffered(self) -> bool:
        """Whether a round is one buffer of fedbuff, whose cohort no secret sampling draws."""
        return self.algorithm.name in ("fedbuff", "securefed.algorithms.fedbuff:FedBuff")
