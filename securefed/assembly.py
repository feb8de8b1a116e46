"""From a job to the things that play it: data, shards, model, guarantee, client runner.

A pool's workers assemble their own copy from the same config, so nothing heavy crosses processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from securefed.algorithms.algorithm import Algorithm
from securefed.config import Config, check_against_shards, to_toml
from securefed.config.distill import architectures
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.data import load_dataset, make_shards
from securefed.data.load import is_named
from securefed.data.public import public_records
from securefed.data.records import Dataset, Examples, Shard
from securefed.engine.liars import poisoned
from securefed.errors import ConfigError, PrivacyError
from securefed.privacy.dealing import deal_of
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey
from securefed.registry import ALGORITHMS, make
from securefed.root import set_aside
from securefed.training.client import ClientRunner, Guarantee
from securefed.types import SERVER
from securefed.undisturbed import undisturbed

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel


@dataclass(frozen=True, eq=False)
class Assembly:
    """One job's parts, loaded and checked against each other."""

    config: Config
    dataset: Dataset
    shards: tuple[Shard, ...]
    model: TaskModel = field(repr=False)
    root: Examples | None = field(default=None, repr=False)
    """The server's own records, which no client holds; None where it has none."""
    public: Examples | None = field(default=None, repr=False)
    """Records that everybody may see and no client holds, for the algorithm distill."""

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with before it is resumed."""
        return {
            "config": config_digest(self.config),
            "layout": self.model.layout.digest,
            "base model": self.model.base_digest,
            "data": self.dataset.digest,
        }


def config_digest(config: Config) -> str:
    """SHA-256 of the resolved job, hex."""
    return hashlib.sha256(to_toml(config).encode()).hexdigest()


class Parts(Protocol):
    """Where a job's data set and model come from; a bench keeps them in memory from job to job."""

    def dataset(self, config: Config) -> Dataset: ...

    def model(self, config: Config, dataset: Dataset) -> TaskModel: ...


class Fresh:
    """Both loaded anew."""

    def dataset(self, config: Config) -> Dataset:
        """The data set that the job names."""
        return load_dataset(config.data, task=config.model.task)

    def model(self, config: Config, dataset: Dataset) -> TaskModel:
        """The model that the job names, for these records."""
        from securefed.models import load_model

        images = dataset.train.images
        return load_model(
            config.model,
            classes=len(dataset.classes),
            image_shape=None if images is None else (images.shape[1], images.shape[2], images.shape[3]),
            unit=config.privacy.unit,
            max_length=config.data.max_length,
        )


@undisturbed()
def assemble(config: Config, parts: Parts | None = None) -> Assembly:
    """Data, shards and model of the job.

    Args:
        parts: where data set and model come from; loaded anew by default.

    Raises:
        DataError, ModelError: something is missing or does not fit; the message says how to get it.
        ConfigError: the shards contradict the job (delta, cohort, empty shard).
    """
    from securefed.models import check_available

    for settings in (config.model, *(model for model, _ in architectures(config))):
        check_available(settings)  # a wrong name or device is told before data is read
    parts = parts or Fresh()
    dataset, root = set_aside(config, parts.dataset(config))
    dataset, public = public_records(config, dataset)
    shards = tuple(make_shards(dataset, config.data))
    check_against_shards(config, [len(s.train) for s in shards])
    shards = poisoned(config, dataset, shards)
    if config.stop.patience > 0 and config.stop.metric == "f1" and len(dataset.classes) != 2:
        raise ConfigError(
            f'stop.metric = "f1" needs two classes, {config.data.name} has {len(dataset.classes)}; use balanced_accuracy'
        )
    model = parts.model(config, dataset)
    model.encode(
        dataset.train.take([0]), config.data.max_length
    )  # records and model must fit, before a folder is made
    algorithm: Algorithm = make("algorithm", config.algorithm, ALGORITHMS)
    for round in (0, config.rounds - 1):
        algorithm.plan(config, model.part_of, round)  # refuses head rounds that cannot be
    algorithm.local_names(config, model.part_of)  # ... and a private head that is all there is
    if not isinstance(config.train.class_weights, str) and len(config.train.class_weights) != len(
        dataset.classes
    ):
        raise ConfigError(
            f"train.class_weights has {len(config.train.class_weights)} numbers, {config.data.name} has "
            f"{len(dataset.classes)} classes; give one each"
        )
    return Assembly(config, dataset, shards, model, root, public)


def cohort(
    config: Config, clients: int, round: int, entropy: Entropy, algorithm: Algorithm | None = None
) -> tuple[int, ...]:
    """The clients of a round, ascending.

    The algorithm's own where it has one (a buffer of fedbuff, everybody in finetune's last rounds). Else without client-level DP: `clients_per_round` of them without replacement, from the public seed.
    So too where clients add the noise, since nothing hides who takes part.
    Under client-level DP at the server: each one independently with probability clients_per_round / clients, from
    secret randomness, which is what the accountant assumes (Poisson sampling); the cohort may be empty.
    Where the server's noise is correlated over rounds: dealt out in turn, from the public seed.

    Args:
        algorithm: the job's, where the caller has it; made anew without.
    """
    if config.correlated:
        return deal_of(config, clients).cohort(round)
    named: Algorithm = algorithm or make("algorithm", config.algorithm, ALGORITHMS)
    chosen = named.cohort(config, clients, round)
    if chosen is not None:
        return chosen
    k = config.clients_per_round or clients
    if config.privacy.unit == "client" and not config.distributed and k < clients:
        drawn = entropy.stream("cohort", round).bernoulli(clients, k / clients)
        return tuple(int(i) for i in np.flatnonzero(drawn))
    if k >= clients:
        return tuple(range(clients))
    generator = np.random.default_rng([config.seed, 0xC0407, round])
    return tuple(sorted(int(i) for i in generator.choice(clients, k, replace=False)))


def disjoint(shards: Sequence[Shard]) -> bool:
    """Whether no training record is held by two clients.

    Where one is, its owner's loss is the composition of both clients' mechanisms, not the larger one.
    """
    seen: set[bytes] = set()
    for shard in shards:
        mine = set(_record_digests(shard.train))
        if mine & seen:
            return False
        seen |= mine
    return True


def _record_digests(examples: Examples) -> Iterator[bytes]:
    for i in range(len(examples)):
        if examples.texts is not None:
            yield hashlib.sha256(examples.texts[i].encode()).digest()
        elif examples.images is not None:
            yield hashlib.sha256(examples.images[i].tobytes()).digest()


def register(ledger: Ledger, run: str, assembly: Assembly) -> None:
    """Names the run's shards in the site's ledger, before anything is spent on them.

    Under client-level DP the only mechanism is the server's, so the ledger has one line, `SERVER`,
    whose records are the clients; and one for each client where it is public who is in which round.

    Raises:
        PrivacyError: a record of two clients in one noised sum.
    """
    unit = assembly.config.privacy.unit
    if unit == "example":
        keys = {s.client: ShardKey(s.digest, len(s.train)) for s in assembly.shards}
        apart = disjoint(assembly.shards)
        if assembly.config.fedsgd and not apart:
            # Two copies move one sum by two clips under one noise: more than both clients' events composed.
            raise PrivacyError(
                "the same record lies at two clients, and algorithm fedsgd hides one copy of it under its one noise; remove "
                'the copies, or use algorithm = "fedavg", where each client\'s own noise hides its own'
            )
        ledger.register(run, keys, assembly.dataset.account, "example", disjoint=apart)
    elif unit == "client":
        whole = {SERVER: ShardKey(assembly.dataset.digest, len(assembly.shards))}
        if assembly.config.privacy.noise == "local":  # each client charges itself
            whole = {s.client: ShardKey(_client_digest(s), len(s.train)) for s in assembly.shards}
        if public_cohorts(assembly.config, len(assembly.shards)) is not None:
            whole |= {s.client: ShardKey(_client_digest(s), 1) for s in assembly.shards}
        ledger.register(run, whole, assembly.dataset.account, "client")


def public_cohorts(config: Config, clients: int) -> tuple[tuple[int, ...], ...] | None:
    """Who is in each released round, where client-level noise at the server must be charged client by client.

    None where the job's own rule draws the cohorts in secret, which amplifies; an algorithm that names them does not.

    Raises:
        ConfigError: an algorithm that names some rounds' cohorts only, or an empty one.
    """
    if config.privacy.unit != "client" or config.distributed:
        return None
    algorithm: Algorithm = make("algorithm", config.algorithm, ALGORITHMS)
    named = [algorithm.cohort(config, clients, round) for round in range(algorithm.released(config))]
    if all(found is None for found in named):
        return None
    whole = tuple(found for found in named if found)
    if len(whole) < len(named):
        raise ConfigError(
            f"algorithm {config.algorithm.name} names the cohorts of {len(whole)} of {len(named)} rounds, so client-level "
            "noise cannot be charged client by client; name every released round's, or none"
        )
    return whole


def _client_digest(shard: Shard) -> str:
    """Names a client at client level, also where two hold the same records."""
    return hashlib.sha256(f"client {shard.client} with {shard.digest}".encode()).hexdigest()


def register_unprotected(ledger: Ledger, run: str, assembly: Assembly) -> None:
    """Notes that these records are trained on without noise: no epsilon of this site speaks of them after that."""
    keys = {s.client: ShardKey(s.digest, len(s.train)) for s in assembly.shards}
    ledger.release_unprotected(run, keys, assembly.dataset.account)


def make_runner(
    assembly: Assembly, run: str, entropy: Entropy, guarantee: Guarantee | None, ledger: Ledger | None
) -> ClientRunner:
    """The runner of all clients over the assembly's one resident model."""
    return ClientRunner(
        assembly.config,
        assembly.model,
        assembly.shards,
        run=run,
        entropy=entropy,
        ledger=ledger,
        guarantee=guarantee,
        own_records=not is_named(assembly.dataset, assembly.config.data.name),
    )


@dataclass(frozen=True)
class RunnerBuilder:
    """Builds a pool worker's runner from the config alone; picklable, opens its own ledger.

    The job's pieces are loaded again in the worker. System randomness is taken there afresh: no key
    material crosses the process boundary.
    """

    config: Config
    run: str
    guarantee: Guarantee | None
    entropy: Entropy | None = None

    def __call__(self) -> ClientRunner:
        ledger = Ledger.site() if self.config.private else None
        return make_runner(
            assemble(self.config), self.run, self.entropy or SystemEntropy(), self.guarantee, ledger
        )
