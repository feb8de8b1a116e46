"""Who adds the noise must fit what it is added to, and who sees it: client-level noise, and steps of fedsgd."""

from __future__ import annotations

from securefed.config.require import require
from securefed.config.schema import Config, TrainConfig

CARRIERS = {
    "skellam": ("masking", "grouped"),
    "discrete-gaussian": ("masking", "grouped"),
    "gaussian": ("ckks",),
}
"""Noise that clients add -> the protections whose sums can hold it."""


def check_noise(c: Config) -> None:
    """Raises ConfigError where noise, unit, protection and algorithm do not make one guarantee."""
    if c.privacy.noise == "local":
        _check_local(c)
    elif c.correlated:
        _check_correlated(c)
    elif c.distributed:
        _check_shared(c)
    require(
        c.correlated or c.privacy.min_separation == 0,
        f"privacy.min_separation={c.privacy.min_separation} speaks of cohorts that are dealt out in turn; set "
        'privacy.noise = "correlated", or leave it out',
    )
    if c.fedsgd:
        _check_steps(c)
    if c.privacy.clip == "adaptive":
        _check_adaptive(c)
    if c.privacy.grad_sample_mode == "ghost" and c.privacy.unit == "example":
        _check_ghost(c)


def _check_ghost(c: Config) -> None:
    """Ghost clipping writes no record's row, so nothing may ask for one."""
    require(
        not (c.fedsgd and c.privacy.noise in ("skellam", "discrete-gaussian")),
        f'privacy.noise = "{c.privacy.noise}" rounds each record\'s own row to integers, which ghost clipping never writes; set '
        'privacy.grad_sample_mode = "hooks"',
    )
    require(
        not c.model.ranks,
        "under model.ranks what a client does not hold is taken out of each record's row, which ghost clipping never writes; "
        'set privacy.grad_sample_mode = "hooks"',
    )
    require(
        not c.model.gradient_checkpointing,
        "ghost clipping needs each layer's output once and gradient checkpointing computes it twice; set "
        'model.gradient_checkpointing = false, or privacy.grad_sample_mode = "hooks"',
    )


def _check_shared(c: Config) -> None:
    """Noise that clients share protects where a sum hides each of them."""
    p, carriers = c.privacy, CARRIERS[c.privacy.noise]
    require(
        p.unit == "client" or c.fedsgd,
        f'privacy.noise = "{p.noise}" is added to whole updates or to the steps of fedsgd, found privacy.unit = '
        f'"{p.unit}" with algorithm {c.algorithm.name}; set privacy.unit = "client", algorithm = "fedsgd" for one '
        "record, or leave noise out",
    )
    require(
        c.protection.name in carriers,
        f'privacy.noise = "{p.noise}" shares the noise among clients, which protects nobody whose update protection '
        f"{c.protection.name} shows or carries otherwise; use protection = "
        + " or ".join(f'"{name}"' for name in carriers)
        + ', or noise = "central"',
    )
    require(
        p.noise_multiplier != 0,
        f'privacy.noise_multiplier = 0 with privacy.noise = "{p.noise}" adds no noise; raise it, or use unit = "none"',
    )


def _check_local(c: Config) -> None:
    """Noise that each client adds to its own table in full: any protection and any rule may follow."""
    require(
        c.distills and c.privacy.unit == "client",
        f'privacy.noise = "local" is added to a client\'s table of answers, found algorithm {c.algorithm.name} with '
        f'privacy.unit = "{c.privacy.unit}"; set algorithm = "distill" and privacy.unit = "client", or leave noise out',
    )
    require(
        c.privacy.noise_multiplier != 0,
        'privacy.noise_multiplier = 0 with privacy.noise = "local" adds no noise; raise it, or use unit = "none"',
    )


def _check_correlated(c: Config) -> None:
    """Noise of one round takes back earlier rounds': the server's own, of equal sums of the same coordinates."""
    p = c.privacy
    require(
        p.unit == "client",
        f'privacy.noise = "correlated" is added to sums of whole updates, found privacy.unit = "{p.unit}"; set '
        'privacy.unit = "client", or leave noise out',
    )
    require(
        p.noise_multiplier != 0,
        'privacy.noise_multiplier = 0 with privacy.noise = "correlated" adds no noise; raise it, or use unit = "none"',
    )
    require(
        c.protection.name == "plain",
        f'privacy.noise = "correlated" is added by the server to updates that it bounds, protection {c.protection.name} hides '
        'or carries them otherwise; use protection = "plain", or let the clients add it (privacy.noise = "skellam")',
    )
    require(
        p.clip == "fixed",
        'privacy.noise = "correlated" is one mechanism at one clip, and privacy.clip = "adaptive" moves it; set clip = '
        '"fixed", or noise = "central"',
    )
    require(
        c.model.adapter != "tangent",
        'privacy.noise = "correlated" takes back noise of earlier rounds on the same tensors, and a head on tangents begins anew '
        'in mid-run; use model.adapter = "head", or noise = "central"',
    )
    require(
        c.algorithm.name in ("fedavg", "fedprox") and not c.algorithm.options.get("head_rounds"),
        f'privacy.noise = "correlated" needs rounds that all share the same tensors of dealt cohorts, found algorithm '
        f'{c.algorithm.name}; use algorithm = "fedavg" without head_rounds, or noise = "central"',
    )
    require(
        c.model.adapter != "rolora",
        'privacy.noise = "correlated" takes back noise of earlier rounds on the same tensors, and model.adapter = "rolora" '
        'shares others every second round; use adapter = "ffa", or noise = "central"',
    )
    require(
        c.compression is None,
        'privacy.noise = "correlated" takes back noise of earlier rounds on the same coordinates, which compression '
        'changes; leave compression out, or use noise = "central"',
    )
    require(
        p.min_separation >= 0,
        f"privacy.min_separation must be 0 (as the cohort allows) or more, found {p.min_separation}",
    )
    if c.data.clients:
        check_dealt(c, c.data.clients)


def check_dealt(c: Config, clients: int) -> None:
    """Raises ConfigError where clients that are dealt out in turn come back sooner than is promised, or at once."""
    if not c.correlated:
        return
    k = c.clients_per_round or clients
    require(
        clients // k >= 2,
        f'privacy.noise = "correlated" needs rounds between two of one client, and clients_per_round={c.clients_per_round} '
        f'of {clients} leaves none; set clients_per_round to at most {max(1, clients // 2)}, or noise = "central"',
    )
    require(
        c.privacy.min_separation <= clients // k,
        f"privacy.min_separation={c.privacy.min_separation} cannot be kept: {clients} clients dealt out {k} a round come back "
        f"after {clients // k} rounds; lower it or clients_per_round",
    )


def _check_adaptive(c: Config) -> None:
    """A clip that moves costs a bit a client, under noise of its own."""
    p = c.privacy
    require(
        p.unit == "client",
        f'privacy.clip = "adaptive" follows the norms of whole updates, found privacy.unit = "{p.unit}"; set '
        'privacy.unit = "client", or clip = "fixed"',
    )
    require(
        p.noise_multiplier != 0,
        'privacy.noise_multiplier = 0 leaves no noise to share with the clip\'s bit; raise it, or set privacy.clip = "fixed"',
    )
    require(0 < p.clip_quantile < 1, f"privacy.clip_quantile must be in (0, 1), found {p.clip_quantile}")
    require(
        p.clip_learning_rate > 0, f"privacy.clip_learning_rate must be above 0, found {p.clip_learning_rate}"
    )
    require(
        p.clip_count_std >= 0,
        f"privacy.clip_count_std must be 0 (chosen by rule) or more, found {p.clip_count_std}",
    )
    require(
        c.protection.name != "grouped",
        'privacy.clip = "adaptive" counts one bit over the whole cohort, grouped shows a count a group; use '
        'protection = "masking", or clip = "fixed"',
    )


def _check_steps(c: Config) -> None:
    """fedsgd: a round is one DP step of the server's optimizer on clipped per-example gradients."""
    p, t = c.privacy, c.train
    require(
        p.unit == "example",
        f'algorithm fedsgd clips and noises single records, found privacy.unit = "{p.unit}"; set privacy.unit = '
        '"example", or algorithm = "fedavg"',
    )
    require(
        c.distributed or c.protection.name == "plain",
        f'algorithm fedsgd with privacy.noise = "central" lets the server add the noise to sums it sees, protection '
        f'{c.protection.name} hides them; set privacy.noise = "skellam" (masking) or "gaussian" (ckks), or '
        'protection = "plain"',
    )
    require(
        c.protection.name != "grouped",
        "algorithm fedsgd adds one sum up, grouped shows one a group, each with noise of its own; use protection = "
        '"masking"',
    )
    require(
        c.aggregator.name == "mean",
        f"algorithm fedsgd adds one sum up, aggregator {c.aggregator.name} is a rule over updates; use "
        'aggregator = "mean", or algorithm = "fedavg"',
    )
    require(
        t.steps == 1,
        f"algorithm fedsgd takes one step a round, found train.steps = {t.steps}; set train.steps = 1 and rounds to the "
        "number of steps",
    )
    idle = TrainConfig(
        steps=1,
        batch_size=t.batch_size,
        physical_tokens=t.physical_tokens,
        physical_batch=t.physical_batch,
        label_smoothing=t.label_smoothing,
        class_weights=t.class_weights,
        inspect_model=t.inspect_model,
        cache_frozen=t.cache_frozen,
        cache_mib=t.cache_mib,
        cache_on_disk=t.cache_on_disk,
        cache_disk_mib=t.cache_disk_mib,
    )
    unused = next((n for n in vars(idle) if getattr(t, n) != getattr(idle, n)), None)
    require(
        unused is None,
        f"train.{unused} is of a client's own optimizer, and under fedsgd only the server steps; leave it out and set "
        "server.optimizer, server.learning_rate and server.schedule",
    )
    require(
        c.weights != "size",
        'algorithm fedsgd sums records, so a client weighs what its records do; set weights = "auto"',
    )
    require(
        not c.attack.name,
        f"attack.name = {c.attack.name} replaces whole updates, algorithm fedsgd sends sums of records; simulate "
        'attack.poison, or use algorithm = "fedavg"',
    )
