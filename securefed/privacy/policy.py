"""What this site allows any job to do with its data: `policy.toml` in `SECUREFED_HOME`, which no job can lower.

    max_epsilon = 3.0                  # per record (or client) and data set, over all runs of this site
    max_delta = 1e-5
    min_noise_multiplier = 0.5
    allowed_protections = ["masking"]
    min_cohort = 10
    max_rounds = 200
    allowed_teachers = ["our-own-api"] # outside teachers that may be sent private texts; without this line, none
    states_on_disk = "encrypted"       # what a model's frozen layers say of texts, kept from run to run: never, encrypted or plain

But for the last two, a key that is left out allows everything; without the last, states of own records are encrypted and those
of public data sets are not. A job that asks for more is refused before anything is trained or
spent, with the line that forbids it. The file binds an honest site's own software, not its owner.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from securefed.errors import PolicyRefusal, PrivacyError
from securefed.paths import policy_path
from securefed.privacy.budget import Budget

_LISTS = ("allowed_protections", "allowed_teachers")
STATES_ON_DISK = ("never", "encrypted", "plain")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job wants; None where the question does not arise.

    Attributes:
        epsilon: its target, infinite where it gave only the noise. noise_multiplier: 0 without privacy.
        protection: by name. cohort: clients in a round (expected, where they are sampled).
        capped: whether a ledger holds this site's cap against the job whatever it claims. If not, a job that claims
            no epsilon or delta has no limit at all.
    """

    epsilon: float
    delta: float | None
    noise_multiplier: float
    protection: str | None = None
    cohort: int | None = None
    rounds: int | None = None
    capped: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a site; the defaults allow everything.

    Attributes:
        max_epsilon: also the cap on all runs on one data set. max_rounds: 0 = no limit.
        allowed_protections: None = any.
        allowed_teachers: outside teachers that may be sent private texts, by name; empty = none.
        states_on_disk: how hidden states of records may be kept: one of `STATES_ON_DISK`; None where the file says nothing.
        path: the file it was read from, None if there is none.
    """

    max_epsilon: float = math.inf
    max_delta: float = 1.0
    min_noise_multiplier: float = 0.0
    allowed_protections: tuple[str, ...] | None = None
    min_cohort: int = 0
    max_rounds: int = 0
    allowed_teachers: tuple[str, ...] = ()
    states_on_disk: str | None = None
    path: Path | None = None

    def check(self, asked: Asked) -> None:
        """Raises PolicyRefusal, naming the line, unless the job keeps to every limit."""
        private = asked.noise_multiplier > 0
        if math.isfinite(self.max_epsilon):
            if not private:
                self._refuse("max_epsilon", "a job without noise")
            if math.isfinite(asked.epsilon) and asked.epsilon > self.max_epsilon:
                self._refuse("max_epsilon", f"epsilon = {asked.epsilon:g}")
            if math.isinf(asked.epsilon) and not asked.capped:
                self._refuse("max_epsilon", "a job that claims no finite epsilon")
        if asked.delta is not None and private and asked.delta > self.max_delta:
            self._refuse("max_delta", f"delta = {asked.delta:g}")
        if asked.delta is None and not asked.capped and self.max_delta < 1:
            self._refuse("max_delta", "a job that claims no delta")
        if asked.noise_multiplier < self.min_noise_multiplier:
            self._refuse("min_noise_multiplier", f"noise_multiplier = {asked.noise_multiplier:.4g}")
        allowed = self.allowed_protections
        if allowed is not None and asked.protection is not None and asked.protection not in allowed:
            self._refuse("allowed_protections", f'protection = "{asked.protection}"')
        if asked.cohort is not None and asked.cohort < self.min_cohort:
            self._refuse("min_cohort", f"a cohort of {asked.cohort}")
        if asked.rounds is not None and 0 < self.max_rounds < asked.rounds:
            self._refuse("max_rounds", f"rounds = {asked.rounds}")

    def check_teacher(self, name: str) -> None:
        """Raises PolicyRefusal unless private texts may be sent to this teacher: what is not allowed in writing is not."""
        if name in self.allowed_teachers:
            return
        words = f"private texts are not sent to teacher {name!r}, which no policy of this site allows"
        where = policy_path() if self.path is None else self.path
        raise PolicyRefusal(
            f"{words}; label public records only, ask a model on this machine, or let the owner of the data add "
            f'allowed_teachers = ["{name}"] to {where}',
            "allowed_teachers",
            where.name,
            words,
        )

    def check_states(self) -> None:
        """Raises PolicyRefusal where a job asks to keep hidden states on disk and the site says never."""
        if self.states_on_disk == "never":
            self._refuse("states_on_disk", 'train.cache_on_disk = "always"')

    def tighten(self, budget: Budget) -> Budget:
        """The budget with this site's cap over all runs on the data set, where that is smaller."""
        if math.isinf(self.max_epsilon):
            return budget
        own = budget.site_epsilon or math.inf
        return replace(budget, site_epsilon=min(own, self.max_epsilon))

    def _refuse(self, key: str, what: str) -> None:
        assert self.path is not None
        number, text = _line(self.path, key)
        place = f"{self.path.name}:{number}"
        raise PolicyRefusal(
            f"this site's policy forbids {what}: {self.path}:{number}: {text}; change the job, or ask who owns that file",
            key,
            place,
            f"this site's policy forbids {what}: {place}: {text}",
        )


def load_policy(path: Path | None = None) -> Policy:
    """The site's policy; one that allows everything where there is no file.

    Raises:
        PrivacyError: a file that cannot be read whole: then nothing runs, because a limit may be in it.
    """
    path = path or policy_path()
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError) as error:
        raise PrivacyError(
            f"the site's policy {path} cannot be read ({error}); no job runs until it can"
        ) from None
    known = {f.name for f in fields(Policy)} - {"path"}
    for key, value in tree.items():
        if key not in known:
            raise PrivacyError(
                f"the site's policy {path} has an unknown limit {key!r}; known: {', '.join(sorted(known))}"
            )
        if not _fits(key, value):
            raise PrivacyError(f"the site's policy {path}: {key} = {value!r} is not a limit")
    tree = {key: tuple(value) if key in _LISTS else value for key, value in tree.items()}
    return Policy(**tree, path=path)


def _fits(key: str, value: Any) -> bool:
    if key in _LISTS:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if key == "states_on_disk":
        return value in STATES_ON_DISK
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        return False
    if key in ("max_epsilon", "max_delta"):
        return value > 0
    return isinstance(value, int) if key in ("min_cohort", "max_rounds") else True


def _line(path: Path, key: str) -> tuple[int, str]:
    """Number (from 1) and text of the line that sets the key."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.split("=")[0].strip().strip("\"'") == key:
            return number, line.strip()
    return 0, key
