"""Black-box teachers: a callable behind which a model or an API stands, asked for labels with care.

>>> from securefed.teachers import Labeller, Teacher
>>> teacher = Teacher("shouts", lambda text: "loud" if text.endswith("!") else "calm")
>>> labels = Labeller(teacher, ("calm", "loud"))(["hello", "hello!"], private=False)
>>> labels.classes.tolist(), labels.counts.calls
([0, 1], 2)
"""

from securefed.teachers.answer import Teacher as Teacher
from securefed.teachers.answer import read_answer as read_answer
from securefed.teachers.cache import AnswerCache as AnswerCache
from securefed.teachers.labelling import Counts as Counts
from securefed.teachers.labelling import Labeller as Labeller
from securefed.teachers.labelling import Labels as Labels
from securefed.teachers.limits import RateLimit as RateLimit
from securefed.teachers.limits import Retries as Retries
from securefed.teachers.limits import Spending as Spending

__all__ = [
    "AnswerCache",
    "Counts",
    "Labeller",
    "Labels",
    "RateLimit",
    "Retries",
    "Spending",
    "Teacher",
    "read_answer",
]
