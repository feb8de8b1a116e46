"""What a job of the algorithm distill must fulfil: ranges, answers that a protection can carry, weights that are public."""

from __future__ import annotations

import math
from dataclasses import replace

from securefed.config.require import require
from securefed.config.schema import Architecture, Config, DistillConfig, ModelConfig, ServerConfig

_SMALL = ("mlp", "cnn", "logistic", "bag", "transformer")
"""Nets that are built here, whole."""


def check_distill(c: Config) -> None:
    """Raises ConfigError where answers, weights, protection and guarantee do not fit each other."""
    if not c.distills:
        require(
            c.distill == DistillConfig(),
            f'[distill] is of the algorithm distill, found algorithm {c.algorithm.name}; set algorithm = "distill", or '
            "leave the section out",
        )
        return
    _check_ranges(c.distill)
    _check_clients(c)
    _check_unused(c)
    _check_guarantee(c)
    _check_carried(c)


def architectures(c: Config) -> tuple[tuple[ModelConfig, float | None], ...]:
    """(model, learning rate or None for the job's) of each architecture, in order; the student's where none is named."""
    return tuple((_model(c, a), a.learning_rate) for a in c.distill.clients) or ((c.model, None),)


def _model(c: Config, a: Architecture) -> ModelConfig:
    """The job's model, of this architecture."""
    own = {name: getattr(a, name) for name in vars(a) if name != "learning_rate"}
    return replace(c.model, **own)


def largest_answer(d: DistillConfig) -> float:
    """No number that a client sends lies beyond it, without noise: a coordinate of the table (or a confidence)."""
    return max(d.clip, 1.0) if d.send == "logits" else 1.0


def record_bound(d: DistillConfig) -> float:
    """L2 bound on one public record's row of a table: `clip` for logits, 1 for probabilities and votes."""
    return d.clip if d.send == "logits" else 1.0


def _check_ranges(d: DistillConfig) -> None:
    require(d.records >= 1, f"distill.records must be at least 1, found {d.records}")
    require(d.clip > 0, f"distill.clip must be above 0, found {d.clip}")
    require(d.temperature > 0, f"distill.temperature must be above 0, found {d.temperature}")
    require(d.digest_steps >= 0, f"distill.digest_steps must be 0 (none) or more, found {d.digest_steps}")
    require(d.student_steps >= 1, f"distill.student_steps must be at least 1, found {d.student_steps}")
    require(
        d.student_learning_rate > 0,
        f"distill.student_learning_rate must be above 0, found {d.student_learning_rate}",
    )
    require(d.batch_size >= 1, f"distill.batch_size must be at least 1, found {d.batch_size}")
    require(bool(d.public), 'distill.public names the public records; use "held-out", a data set or a file')


def _check_clients(c: Config) -> None:
    from securefed.registry import is_path

    require(
        c.model.task == "classification",
        f"algorithm distill averages answers over classes, model.task={c.model.task} has none; set "
        'task = "classification"',
    )
    for i, a in enumerate(c.distill.clients):
        where = f"distill.clients[{i}] ({a.name})"
        require(bool(a.name), f"{where} needs a name, such as minilm, transformer or bag")
        require(a.rank >= 1 and a.hidden >= 1, f"{where}: rank and hidden must be at least 1")
        require(
            a.learning_rate is None or a.learning_rate > 0,
            f"{where}: learning_rate must be above 0, found {a.learning_rate}",
        )
        small = a.name in _SMALL or is_path(a.name)
        require(not small or a.adapter == "full", f"{where} has no adapters; leave adapter out")
        require(
            a.adapter != "fedsa", f"{where}: fedsa shares factors and distill shares none; use lora or head"
        )
        require(
            a.adapter != "tangent",
            f"{where}: tangents are taken at a head that rounds of updates gave; use lora or head",
        )
    if c.distill.clients and c.data.clients:
        require(
            len(c.distill.clients) <= c.data.clients,
            f"distill.clients names {len(c.distill.clients)} architectures for data.clients={c.data.clients}; name fewer",
        )


def _check_unused(c: Config) -> None:
    """Settings of updates that mean nothing here are refused rather than ignored."""
    require(
        c.server == ServerConfig(),
        "[server] applies updates, and under distill the server's student learns; leave it out and set "
        "distill.student_steps and distill.student_learning_rate",
    )
    require(
        c.model.adapter != "fedsa" and not c.model.head_centre,
        "fedsa and head_centre belong to rounds of updates; use model.adapter = lora, head or full with distill",
    )
    require(
        not c.train.inspect_model,
        "train.inspect_model looks at a model that the server sends to be trained; distill sends none, leave it out",
    )
    require(
        not (c.evaluate.alone and c.distill.clients),
        "evaluate.alone trains the job's model on one client's records, and under distill.clients its own is another one; "
        "set evaluate.alone = false, or leave distill.clients out",
    )
    require(
        c.engine.workers == 0,
        f"algorithm distill keeps models of several architectures in one process, found engine.workers={c.engine.workers}; set 0",
    )


def _check_guarantee(c: Config) -> None:
    """Whatever depends on private records and is sent is inside the noised table."""
    p, d = c.privacy, c.distill
    if p.unit != "client":
        return
    require(
        not d.confidence,
        "distill.confidence is a private statistic: at client level it would divide a noisy table by noisy weights; set "
        'confidence = false, or privacy.unit = "example", under which answers of models trained with DP-SGD cost nothing more',
    )
    require(
        p.clip == "fixed",
        'privacy.clip = "adaptive" follows norms of updates, a table of answers has a fixed bound; set privacy.clip = "fixed"',
    )


def _check_carried(c: Config) -> None:
    """A fixed point must hold every answer that an honest client can give."""
    from securefed.registry import make_protection

    if c.discrete or c.privacy.noise == "gaussian":
        return  # the noise's own design holds the range
    bound = getattr(make_protection(c.protection), "value_range", math.inf)
    reach = _reach(c)
    require(
        bound >= reach,
        f"protection.value_range={bound:g} cuts answers, which reach {reach:.3g} (distill.clip and the noise); set "
        f"protection.value_range = {math.ceil(reach)}",
    )


def _reach(c: Config) -> float:
    """Of one sent coordinate; beyond it with probability below 2^-100 where noise is added."""
    if c.privacy.unit != "client":
        return largest_answer(c.distill)
    sigma = c.privacy.noise_multiplier if c.privacy.noise == "local" else None
    # noise that an epsilon asks for is known with the clients, and held against the range then
    return noised_reach(c.privacy.max_grad_norm, sigma or 0.0)


def noised_reach(unit: float, noise_multiplier: float) -> float:
    """No coordinate of a table of that norm lies beyond it with all its noise, but with probability below 2^-100."""
    return unit * (1 + 12 * noise_multiplier)
