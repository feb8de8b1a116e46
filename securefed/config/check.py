"""What a job must fulfil before it runs: ranges, and pairs of fields that must fit.

A job that cannot run is refused before data is read. Checks that need the data (delta against the
shards' sizes, more clients than records) are in `check_against_shards`.
"""

from __future__ import annotations

from collections.abc import Sequence

from securefed.config.adapters import check_language, check_soft, check_tangent
from securefed.config.attack import check_attack, declared
from securefed.config.compression import check_compression
from securefed.config.distill import check_distill
from securefed.config.noise import check_dealt, check_noise
from securefed.config.require import require
from securefed.config.schema import Config
from securefed.config.uneven import check_uneven, check_uneven_clients
from securefed.config.views import check_views
from securefed.errors import ConfigError, ProtocolError
from securefed.types import CohortBound, GroupRevealing

MOST_HIDDEN = 1 << 16
MOST_THREADS = 1024
MOST_WORKERS = 1024
"""Typing errors, not machines: what lies above would end in the allocator or in the scheduler."""


def check(config: Config) -> None:
    """Raises ConfigError where a value is out of range or two fields do not fit."""
    _check_ranges(config)
    _check_training(config)
    _check_privacy(config)
    _check_adapter(config)
    check_uneven(config)
    _check_pairs(config)
    check_compression(config)
    check_attack(config)
    check_distill(config)
    check_views(config)


def _check_ranges(c: Config) -> None:
    require(
        bool(c.name) and "/" not in c.name and c.name not in (".", ".."),
        f"name must be a plain word, found {c.name!r}",
    )
    require(c.rounds >= 1, f"rounds must be at least 1, found {c.rounds}")
    require(
        c.clients_per_round >= 0, f"clients_per_round must be 0 (all) or more, found {c.clients_per_round}"
    )
    require(0 <= c.seed < 2**63, f"seed must be in [0, 2**63), found {c.seed}")
    d, m = c.data, c.model
    require(d.clients >= 0, f"data.clients must be 0 (one per natural group) or more, found {d.clients}")
    require(
        d.clients == 0 or c.clients_per_round <= d.clients,
        f"clients_per_round={c.clients_per_round} is more than data.clients={d.clients}"
        + ("; a buffer has a client once: lower clients_per_round or add clients" if c.buffered else ""),
    )
    require(d.alpha > 0, f"data.alpha must be above 0, found {d.alpha}")
    require(d.min_examples >= 1, f"data.min_examples must be at least 1, found {d.min_examples}")
    require(0 < d.test_fraction < 1, f"data.test_fraction must be in (0, 1), found {d.test_fraction}")
    require(d.max_length >= 2, f"data.max_length must be at least 2 tokens, found {d.max_length}")
    require(d.limit >= 0, f"data.limit must be 0 (everything) or more, found {d.limit}")
    require(m.rank >= 1, f"model.rank must be at least 1, found {m.rank}")
    require(m.alpha > 0, f"model.alpha must be above 0, found {m.alpha}")
    require(0 <= m.dropout < 1, f"model.dropout must be in [0, 1), found {m.dropout}")
    require(1 <= m.hidden <= MOST_HIDDEN, f"model.hidden must be in 1 .. {MOST_HIDDEN}, found {m.hidden}")
    if isinstance(m.layers, int):
        require(m.layers >= 1, f"model.layers as a number is the top k >= 1, found {m.layers}")
    if isinstance(m.head_layers, int):
        require(
            m.head_layers >= 1, f"model.head_layers as a number is the last k >= 1, found {m.head_layers}"
        )
    require(
        m.head_layers == 1
        or (m.task == "classification" and m.name not in ("mlp", "cnn", "logistic", "bag", "transformer")),
        "model.head_layers is for classification on a pre-trained model; leave it at 1",
    )
    require(
        not m.head_centre
        or (m.task == "classification" and m.name not in ("mlp", "cnn", "logistic", "bag", "transformer")),
        "model.head_centre is for classification on a pre-trained model; leave it out",
    )
    require(
        not (m.head_centre and c.privacy.unit == "client"),
        'model.head_centre measures a mean under example-level noise; with privacy.unit = "client" leave it out',
    )
    require(
        0 <= c.engine.workers <= MOST_WORKERS,
        f"engine.workers must be in 0 (this process) .. {MOST_WORKERS}, found {c.engine.workers}",
    )
    require(
        0 <= c.engine.threads <= MOST_THREADS,
        f"engine.threads must be in 0 (automatic) .. {MOST_THREADS}, found {c.engine.threads}",
    )
    require(
        c.engine.checkpoint_every >= 0,
        f"engine.checkpoint_every must be 0 (once a second) or more, found {c.engine.checkpoint_every}",
    )
    require(c.evaluate.every >= 0, f"evaluate.every must be 0 (end only) or more, found {c.evaluate.every}")
    require(c.stop.patience >= 0, f"stop.patience must be 0 (never) or more, found {c.stop.patience}")


def _check_training(c: Config) -> None:
    t, s = c.train, c.server
    require(t.steps >= 0, f"train.steps must be 0 (not given) or more, found {t.steps}")
    require(t.epochs >= 0, f"train.epochs must be 0 (not given) or more, found {t.epochs}")
    require(
        (t.steps > 0) != (t.epochs > 0),
        f"give train.steps or train.epochs, one of them above 0; found steps={t.steps}, epochs={t.epochs}",
    )
    require(t.learning_rate > 0, f"train.learning_rate must be above 0, found {t.learning_rate}")
    require(
        t.head_learning_rate is None or t.head_learning_rate > 0,
        f"train.head_learning_rate must be above 0, found {t.head_learning_rate}",
    )
    require(0 <= t.momentum < 1, f"train.momentum must be in [0, 1), found {t.momentum}")
    require(t.weight_decay >= 0, f"train.weight_decay must be 0 or more, found {t.weight_decay}")
    require(t.batch_size >= 1, f"train.batch_size must be at least 1, found {t.batch_size}")
    require(t.accumulate >= 1, f"train.accumulate must be at least 1, found {t.accumulate}")
    require(
        t.physical_tokens >= c.data.max_length,
        f"train.physical_tokens={t.physical_tokens} must hold one record of data.max_length={c.data.max_length}",
    )
    require(t.physical_batch >= 1, f"train.physical_batch must be at least 1, found {t.physical_batch}")
    require(t.warmup_steps >= 0, f"train.warmup_steps must be 0 or more, found {t.warmup_steps}")
    require(0 <= t.label_smoothing < 1, f"train.label_smoothing must be in [0, 1), found {t.label_smoothing}")
    require(t.proximal_mu >= 0, f"train.proximal_mu must be 0 or more, found {t.proximal_mu}")
    require(t.cache_mib >= 0, f"train.cache_mib must be 0 or more, found {t.cache_mib}")
    require(t.cache_disk_mib >= 0, f"train.cache_disk_mib must be 0 or more, found {t.cache_disk_mib}")
    for client, rate in t.client_learning_rate.items():
        require(client.isdigit(), f"train.client_learning_rate takes client numbers, found {client!r}")
        require(rate > 0, f"train.client_learning_rate.{client} must be above 0, found {rate}")
    require(s.learning_rate > 0 and s.head_learning_rate > 0, "server learning rates must be above 0")
    require(0 <= s.momentum < 1 and 0 <= s.head_momentum < 1, "server momenta must be in [0, 1)")
    require(0 <= s.beta2 < 1, f"server.beta2 must be in [0, 1), found {s.beta2}")
    require(s.head_joint_factor > 0, f"server.head_joint_factor must be above 0, found {s.head_joint_factor}")
    require(0 <= s.average < 1, f"server.average must be in [0, 1), found {s.average}")
    require(s.tau > 0, f"server.tau must be above 0, found {s.tau}")
    require(s.root_records >= 0, f"server.root_records must be 0 (none) or more, found {s.root_records}")


def _check_privacy(c: Config) -> None:
    p = c.privacy
    require(p.epsilon is None or p.epsilon > 0, f"privacy.epsilon must be above 0, found {p.epsilon}")
    require(0 < p.delta < 1, f"privacy.delta must be in (0, 1), found {p.delta}")
    require(p.max_grad_norm > 0, f"privacy.max_grad_norm must be above 0, found {p.max_grad_norm}")
    require(0 < p.sample_rate <= 1, f"privacy.sample_rate must be in (0, 1], found {p.sample_rate}")
    require(p.site_epsilon >= 0, f"privacy.site_epsilon must be 0 (no cap) or more, found {p.site_epsilon}")
    require(
        p.noise_multiplier is None or p.noise_multiplier >= 0,
        f"privacy.noise_multiplier must be 0 or more, found {p.noise_multiplier}",
    )
    if p.unit == "none":
        require(
            p.site_epsilon == 0,
            'privacy.site_epsilon is given but privacy.unit is "none"; set privacy.unit = "example"',
        )
        require(
            p.epsilon is None and p.noise_multiplier is None,
            'privacy.epsilon or noise_multiplier is given but privacy.unit is "none"; set privacy.unit = "example"',
        )
        return
    require(
        p.epsilon is not None or p.noise_multiplier is not None,
        "DP needs privacy.epsilon (noise is calibrated) or privacy.noise_multiplier (epsilon is computed)",
    )
    require(
        p.noise_multiplier != 0 or p.epsilon is None,
        "privacy.noise_multiplier = 0 adds no noise, so no finite epsilon holds; raise it or leave it out",
    )
    require(
        c.stop.patience == 0,
        "stop.patience reads a metric of private data, which DP does not cover; stop on rounds or on the budget",
    )
    require(
        c.train.weight_decay == 0 or c.train.optimizer == "adamw",
        "weight decay under DP goes through adamw, where it is decoupled from the noised gradient",
    )
    if p.unit == "example":
        require(
            c.model.dropout == 0,
            "dropout masks come from one stream over the batch, so one record more changes everybody else's gradient "
            "and no clip bounds it; set model.dropout = 0 under example-level DP",
        )
        require(
            c.train.steps > 0,
            "DP counts steps: give train.steps instead of train.epochs (an epoch is 1/sample_rate steps)",
        )
        require(
            c.train.accumulate == 1,
            "under DP the logical batch is drawn by sample_rate and split into physical batches already; set train.accumulate = 1",
        )
        require(
            c.train.proximal_mu == 0 or c.train.steps > 1,
            "FedProx with one local step does nothing: the proximal term is zero at the global model; raise train.steps",
        )


def _check_adapter(c: Config) -> None:
    from securefed.registry import is_path

    m = c.model
    scores = ("accuracy", "balanced_accuracy", "f1") if m.task == "classification" else ("perplexity",)
    require(
        c.stop.patience == 0 or c.stop.metric in ("loss", *scores),
        f"stop.metric={c.stop.metric} does not exist for {m.task}; use {', '.join(('loss', *scores))}",
    )
    small = m.name in ("mlp", "cnn", "logistic", "bag", "transformer") or is_path(m.name)
    require(not small or m.adapter == "full", f'model {m.name} has no adapters; set model.adapter = "full"')
    require(
        not small or m.layers == "all",
        f'model {m.name} is trained whole, found model.layers={m.layers}; leave model.layers at "all"',
    )
    require(
        not small or m.task == "classification",
        f'model {m.name} classifies; set model.task = "classification"',
    )
    require(
        m.task == "classification" or m.adapter != "head",
        'model.adapter = "head" trains a classification head; choose task = "classification" or a LoRA adapter',
    )
    check_soft(m)
    check_tangent(m, c.train)
    check_language(m, c.train)


def _check_pairs(c: Config) -> None:
    """A rule and a protection must fit; what each reveals or needs is read from the classes themselves."""
    from securefed.registry import make_aggregator, make_protection

    protection, rule = make_protection(c.protection), make_aggregator(c.aggregator)
    if rule.needs == "updates" and protection.reveals == "sum":
        raise ConfigError(
            f"aggregator {c.aggregator.name} must see single updates, protection {c.protection.name} reveals only their sum; "
            'use protection = "grouped" (a robust rule over sums of groups) or aggregator = "mean"'
        )
    if c.data.clients:
        _check_whole(c, c.data.clients)
    if c.clients_per_round or c.data.clients:
        _check_rule(c, c.clients_per_round or c.data.clients)
    require(
        not (c.privacy.unit == "client" and not c.distributed and protection.reveals != "updates"),
        f"client-level noise at the server bounds each update, protection {c.protection.name} hides them; "
        'let the clients add it inside the sum (protection = "masking", privacy.noise = "skellam"), '
        'use protection = "plain", or privacy.unit = "example"',
    )
    check_noise(c)
    _check_root(c)
    require(
        not getattr(protection, "partial", False) or (rule.needs == "sum" and c.privacy.unit != "client"),
        f"protection {c.protection.name} with these options shows updates in part, aggregator {c.aggregator.name} or "
        'client-level noise needs them whole; use protection = "plain"',
    )
    _check_cohort(c, c.clients_per_round or c.data.clients, None)
    require(
        not (c.privacy.unit == "client" and c.weights == "size"),
        'client-level DP bounds what one client adds, so all weigh the same; set weights = "equal"',
    )
    require(
        not (c.privacy.unit == "client" and rule.needs != "sum" and protection.reveals != "group sums")
        or c.privacy.noise == "local",
        f'client-level noise is scaled for a sum; the sensitivity of {c.aggregator.name} is not proved, use aggregator = "mean"',
    )


def _check_root(c: Config) -> None:
    """A rule that compares with the server's own update needs records for it, and no other reads them."""
    from securefed.registry import make_aggregator

    rule, k = make_aggregator(c.aggregator), c.server.root_records
    reads = any(getattr(part, "reads_root", False) for part in (rule, getattr(rule, "rule", None)))
    require(
        k > 0 or not reads,
        f"aggregator {c.aggregator.name} compares with an update of the server's own; set server.root_records to "
        "how many training records it holds (100, say)",
    )
    require(
        k == 0 or reads,
        f"server.root_records={k}, but aggregator {c.aggregator.name} reads no update of the server's own; "
        'leave it out, or use aggregator = "fl_trust"',
    )
    require(
        k == 0 or c.privacy.unit == "none",
        f"server.root_records={k} are trained on without noise, outside privacy.unit = {c.privacy.unit}'s guarantee; "
        "use another aggregator, or no privacy",
    )


def _check_rule(c: Config, n: int) -> None:
    """A rule that states the smallest n it accepts (by a method `check`) is asked before anything runs.

    Where the protection reveals group sums, n is the number of groups.
    """
    from securefed.registry import make_aggregator, make_protection

    rule, protection = make_aggregator(c.aggregator), make_protection(c.protection)
    check_n, what = getattr(rule, "check", None), "clients"
    if isinstance(protection, GroupRevealing) and rule.needs == "updates":
        try:
            n, what = protection.rows(n), "groups, which are the rule's rows"
        except ProtocolError as error:
            raise ConfigError(str(error)) from None
        f = declared(c) or 0
        require(
            n > 2 * f,
            f"aggregator {c.aggregator.name} with f={f} needs more than {2 * f} groups, the cohort makes {n}; "
            "lower protection.size or f, or add clients",
        )
    try:
        if check_n is not None:
            check_n(n)
    except ValueError as error:
        raise ConfigError(f"a round has {n} {what}: {error}") from None


def _check_whole(c: Config, clients: int) -> None:
    """Fixed groups need everybody in every round: a sampled cohort would have parts of them."""
    from securefed.registry import make_protection

    require(
        c.clients_per_round in (0, clients) or not isinstance(make_protection(c.protection), GroupRevealing),
        f"clients_per_round={c.clients_per_round} of {clients} breaks the fixed groups of protection "
        f"{c.protection.name}; set clients_per_round = 0",
    )


def _check_cohort(c: Config, n: int, largest_weight: float | None) -> None:
    """Refuses a cohort that the protection cannot carry; n = 0 where only the data will tell."""
    from securefed.registry import make_protection

    protection = make_protection(c.protection)
    if n and isinstance(protection, CohortBound):
        try:
            protection.check_cohort(n, largest_weight)
        except ProtocolError as error:
            raise ConfigError(f"protection {c.protection.name}: {error}") from None


def check_against_shards(config: Config, sizes: Sequence[int]) -> None:
    """Checks that need the data: `sizes` are the shards' record counts, in client order.

    Raises:
        ConfigError: an empty shard, fewer shards than `clients_per_round`, or a delta that allows the
            release of a whole record: delta must be below 1/records of every shard, so of the largest
            (example level), or 1/clients (client level).
    """
    require(len(sizes) >= 1, "no client has data")
    for client, size in enumerate(sizes):
        require(size > 0, f"client {client} has no records; lower data.clients or raise data.min_examples")
    require(
        config.clients_per_round <= len(sizes),
        f"clients_per_round={config.clients_per_round} but only {len(sizes)} clients have data",
    )
    check_uneven_clients(config, len(sizes))
    check_dealt(config, len(sizes))
    _check_whole(config, len(sizes))
    _check_rule(config, config.clients_per_round or len(sizes))
    secret_weights = not config.private and config.weights != "equal"
    _check_cohort(config, config.clients_per_round or len(sizes), max(sizes) if secret_weights else None)
    for named in config.train.client_learning_rate:
        require(
            int(named) < len(sizes),
            f"train.client_learning_rate names client {named}, there are {len(sizes)}",
        )
    p = config.privacy
    if p.unit == "example":
        require(
            p.delta < 1 / max(sizes),
            f"privacy.delta={p.delta:g} must be below 1/records of every shard, the largest has {max(sizes)}; lower delta",
        )
    if p.unit == "client":
        require(
            p.delta < 1 / len(sizes),
            f"privacy.delta={p.delta:g} must be below 1/clients = 1/{len(sizes)}; lower delta",
        )
