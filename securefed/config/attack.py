"""What a job with liars must fulfil: numbers in range, a wrong f only on purpose, attacks that make sense.

An attack is refused where the simulation would show something that cannot happen: a row that no honest code
could encode, or liars who see what the protection hides from everyone.
"""

from __future__ import annotations

from typing import Any

from securefed.config.require import require
from securefed.config.schema import Config


def check_attack(c: Config) -> None:
    """Raises ConfigError where the job's attack is incomplete, out of range, or makes no sense."""
    a = c.attack
    if a.f == 0 and not a.name and a.poison is None:
        return
    require(a.f >= 1, f"attack.f counts the liars, at least 1 where an attack is named, found {a.f}")
    require(
        bool(a.name) or a.poison is not None,
        f"attack.f={a.f} liars need an attack: set attack.name (what they send) or attack.poison (what they train on)",
    )
    require(
        bool(a.name) or not a.options,
        "attack.options are given without attack.name; name the attack they are for",
    )
    require(0 < a.participation <= 1, f"attack.participation must be in (0, 1], found {a.participation}")
    if c.data.clients:
        check_liars(c, c.data.clients)
    _check_declared(c)
    _check_meaning(c)


def check_liars(c: Config, clients: int) -> None:
    """Raises ConfigError where no honest client would be left; `clients` may follow from the data."""
    f = c.attack.f
    require(
        f < clients,
        f"attack.f={f} of {clients} clients leaves nobody honest; lower attack.f or raise data.clients",
    )


def declared(c: Config) -> int | None:
    """The f that the rule was told, its own or the largest of its parts; None where it takes none."""
    from securefed.registry import make_aggregator

    return _f_of(make_aggregator(c.aggregator))


def _f_of(rule: Any) -> int | None:
    own = getattr(rule, "f", None)
    parts = [_f_of(p) for p in (*getattr(rule, "pre", ()), *([rule.rule] if hasattr(rule, "rule") else []))]
    known = [f for f in (own, *parts) if f is not None]
    return max(known) if known else None


def _check_declared(c: Config) -> None:
    a, told = c.attack, declared(c)
    require(
        a.declared_f >= -1, f"attack.declared_f must be 0 or more, or -1 for f itself, found {a.declared_f}"
    )
    meant = a.f if a.declared_f == -1 else a.declared_f
    if told is None:
        require(
            a.declared_f == -1,
            f"attack.declared_f={a.declared_f}, but aggregator {c.aggregator.name} takes no f; leave it out",
        )
        return
    require(
        meant == told,
        f"aggregator {c.aggregator.name} is told f={told}, the attack has f={a.f}; to measure a wrong f on purpose "
        f"set attack.declared_f={told}",
    )


def _check_meaning(c: Config) -> None:
    from securefed.registry import make_attack, make_poison, make_protection

    poison, attack = make_poison(c.attack), make_attack(c.attack, c.aggregator)
    require(
        poison is None or c.model.task == "classification",
        f"attack.poison changes labels, model.task={c.model.task} has none; set attack.name instead",
    )
    if attack is None:
        return
    reveals = make_protection(c.protection).reveals
    require(
        reveals == "updates" or getattr(attack, "finite", True),
        f"attack {c.attack.name} sends rows that are not finite, and no client of protection {c.protection.name} "
        'can encode such a row; use protection = "plain", or a finite attack as sign_flip',
    )
    require(
        reveals != "sum" or attack.knowledge != "omniscient",
        f"attack {c.attack.name} sees every honest update, which protection {c.protection.name} hides from everyone; "
        'use an attack that sees its own data only (sign_flip, boost) or protection = "plain"',
    )
