"""Labels from a teacher: policy first, then cache, budget, rate, retries; what fails is counted and left out.

Hinton's soft labels from a model that one can only ask. A private text is sent away only where the site's own policy
names the teacher (`allowed_teachers` in `policy.toml`); without that line none is, whatever a job says. What
a teacher learns from the texts it is sent no ledger counts: no epsilon of this project speaks of it.

Privacy unit: a budget that runs out (`Spending`) lets one record decide whether another is labelled, and so is trained on at
all. Without the record, what its calls cost (up to `Retries.attempts` of them) pays for as many more calls about others.
Example-level DP on what was labelled then covers a record of the labelled set; of the records before labelling it
covers one only as a group of 1 + attempts (where an answer depends on its text alone). With a budget for every
attempt on every record that may come, no record decides about another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from securefed.data.records import Examples
from securefed.errors import DataError
from securefed.privacy.policy import Policy, load_policy
from securefed.teachers.answer import Answered, Teacher, read_answer
from securefed.teachers.cache import AnswerCache
from securefed.teachers.limits import RateLimit, Retries, Spending

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What happened to the records of one or more jobs, and what it took.

    Attributes:
        records: asked for. cached: answered from disk. labelled: answered at all. failed: no usable answer after all
            attempts. unasked: not asked about, the budget was spent. calls: made. errors: calls that raised.
            garbage: calls whose answer meant nothing. cost: of all calls. waited_s: for the rate limit and before retries.
    """

    records: int = 0
    cached: int = 0
    labelled: int = 0
    failed: int = 0
    unasked: int = 0
    calls: int = 0
    errors: int = 0
    garbage: int = 0
    cost: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Labels:
    """A teacher's answers on n texts.

    Attributes:
        probabilities: float32 (n, k); zeros where there is no answer. known: bool (n,), where there is one.
        counts: of this call alone.
    """

    probabilities: NDArray[np.float32] = field(repr=False)
    known: NDArray[np.bool_] = field(repr=False)
    counts: Counts

    @property
    def classes(self) -> NDArray[np.int64]:
        """The likeliest class of each record, int64 (n,); -1 where there is no answer."""
        best: NDArray[np.int64] = np.where(self.known, self.probabilities.argmax(1), -1).astype(np.int64)
        return best

    def put_on(self, examples: Examples) -> Examples:
        """Those of the examples that have an answer, labelled by it.

        Raises:
            DataError: another number of records, or no answer at all.
        """
        if len(examples) != len(self.known):
            raise DataError(
                f"{len(self.known)} labels do not fit {len(examples)} records; label these records"
            )
        if not self.known.any():
            raise DataError(f"the teacher labelled none of {len(examples)} records; {self.counts}")
        kept = examples.take(np.flatnonzero(self.known))
        return replace(kept, labels=self.classes[self.known])

    def require(self, share: float) -> Labels:
        """These labels, if at least this share of the records has one.

        Raises:
            DataError: fewer; the message says why they are missing.
        """
        n, found = len(self.known), int(self.known.sum())
        if found < share * n:
            c = self.counts
            raise DataError(
                f"the teacher labelled {found} of {n} records, {share:.0%} are needed: {c.failed} failed ({c.errors} calls "
                f"raised, {c.garbage} answered garbage), {c.unasked} were beyond the budget; mend the teacher, raise the "
                "budget, or ask for less"
            )
        return self


@dataclass
class Labeller:
    """Asks one teacher, within limits; a call on more texts goes on with the same limits.

    Attributes:
        classes: names of the labels. cache: where answers stay; None keeps none.
        policy: the site's; read from its place when None.
        counts: over all calls so far.
    """

    teacher: Teacher
    classes: tuple[str, ...]
    cache: AnswerCache | None = None
    rate: RateLimit = field(default_factory=RateLimit)
    retries: Retries = field(default_factory=Retries)
    spending: Spending = field(default_factory=Spending)
    policy: Policy | None = None
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len({c.casefold() for c in self.classes}) < len(self.classes):
            raise DataError(
                f"a teacher chooses among two or more different classes, found {list(self.classes)}"
            )
        if self.cache is not None and (self.cache.teacher, self.cache.classes) != (
            self.teacher.name,
            self.classes,
        ):
            raise DataError(
                f"the cache is of teacher {self.cache.teacher!r} on {list(self.cache.classes)}; open one for "
                f"{self.teacher.name!r} on {list(self.classes)}"
            )

    def __call__(self, texts: Sequence[str], *, private: bool) -> Labels:
        """The teacher's answers on these texts.

        Args:
            private: whether any of them is a client's own; there is no default, so that nobody forgets to say.

        Raises:
            PolicyRefusal: private texts, a teacher outside this site, and no policy that names it. Nothing was sent.
        """
        if private and self.teacher.leaves_site:
            (self.policy or load_policy()).check_teacher(self.teacher.name)
        before = replace(self.counts)
        found = np.zeros((len(texts), len(self.classes)), np.float32)
        known = np.zeros(len(texts), np.bool_)
        for i, text in enumerate(texts):
            answer = self._answer(text)
            if answer is not None:
                found[i], known[i] = answer, True
        self.counts.records += len(texts)
        self.counts.labelled += int(known.sum())
        self.counts.waited_s = self.rate.waited_s
        own = {name: value - getattr(before, name) for name, value in asdict(self.counts).items()}
        return Labels(found, known, Counts(**own))

    def _answer(self, text: str) -> Answered | None:
        """From the cache, else from the teacher; None where neither has one."""
        if self.cache is not None and (stored := self.cache.get(text)) is not None:
            self.counts.cached += 1
            return stored
        pauses = self.retries.pauses()
        for attempt in range(self.retries.attempts):
            if attempt:
                self.rate.pause(next(pauses))
            if not self.spending.allows(self.teacher.cost):
                self.counts.unasked += attempt == 0
                self.counts.failed += attempt > 0
                return None
            answer = self._call(text)
            if answer is not None:
                if self.cache is not None:
                    self.cache.put(text, answer)
                return answer
        self.counts.failed += 1
        return None

    def _call(self, text: str) -> Answered | None:
        """One call; None where it raised or answered garbage, which is counted."""
        self.rate.wait()
        self.spending.take(self.teacher.cost)
        self.counts.calls += 1
        self.counts.cost += self.teacher.cost
        try:
            raw = self.teacher.ask(text)
        except Exception as error:  # whatever stands behind the callable may raise whatever it likes
            self.counts.errors += 1
            logger.debug(
                "teacher %s raised %s", self.teacher.name, type(error).__name__
            )  # its words may quote the text
            return None
        answer = read_answer(raw, self.classes)
        self.counts.garbage += answer is None
        return answer
