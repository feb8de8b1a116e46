"""A teacher asked with care: policy, cache, budget, rate, retries, failures; with a clock that nobody waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.data.records import Examples
from securefed.errors import DataError, PolicyRefusal
from securefed.paths import policy_path
from securefed.teachers import AnswerCache, Labeller, RateLimit, Retries, Spending, Teacher

CLASSES = ("bad", "good")
SECRET = "the patient in room 12 is good"


class Clock:
    """A clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, [0.0][:0]

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Asked:
    """A teacher that answers by a rule, and remembers what it was asked."""

    def __init__(self, rule: Callable[[str, int], object]) -> None:
        self.rule, self.texts = rule, [""][:0]

    def __call__(self, text: str) -> object:
        self.texts.append(text)
        return self.rule(text, len(self.texts))


def by_word(text: str, _: int) -> object:
    return "good" if "good" in text else "bad"


def labeller(ask: Callable[[str], object], clock: Clock | None = None, **options: Any) -> Labeller:
    cost = options.pop("cost", 0.0)
    inside = options.pop("inside", False)
    clock = clock or Clock()
    options.setdefault("rate", RateLimit(clock=clock, sleep=clock.sleep))
    return Labeller(Teacher("api", ask, leaves_site=not inside, cost=cost), CLASSES, **options)


# ----------------------------------------------------------------------------------------------- policy


def test_private_texts_are_not_sent_without_a_policy_that_says_so() -> None:
    ask = Asked(by_word)
    with pytest.raises(PolicyRefusal, match=r'allowed_teachers = \["api"\]'):
        labeller(ask)([SECRET], private=True)
    assert ask.texts == []


@pytest.mark.parametrize(("line", "sent"), [('["api"]', True), ('["other"]', False), ("[]", False)])
def test_the_policy_names_the_teachers_that_may_see_them(line: str, sent: bool) -> None:
    policy_path().write_text(f"allowed_teachers = {line}\n")
    ask = Asked(by_word)
    if sent:
        assert labeller(ask)([SECRET], private=True).classes.tolist() == [1]
    else:
        with pytest.raises(PolicyRefusal):
            labeller(ask)([SECRET], private=True)
    assert ask.texts == ([SECRET] if sent else [])


def test_public_texts_and_a_model_on_this_machine_need_no_policy() -> None:
    assert labeller(Asked(by_word))(["good"], private=False).classes.tolist() == [1]
    assert labeller(Asked(by_word), inside=True)([SECRET], private=True).classes.tolist() == [1]


def test_a_policy_that_allows_a_teacher_by_force_is_what_the_test_notices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken on purpose: with the check gone the text is sent, so the tests above can fail."""
    from securefed.privacy.policy import Policy

    monkeypatch.setattr(Policy, "check_teacher", lambda *_: None)
    ask = Asked(by_word)
    labeller(ask)([SECRET], private=True)
    assert ask.texts == [SECRET]


# ------------------------------------------------------------------------------------------------ cache


def test_nothing_is_asked_twice_and_no_text_is_on_disk(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers", "api", CLASSES)
    ask = Asked(by_word)
    first = labeller(ask, cache=cache)([SECRET, "a bad day"], private=False)
    again = labeller(ask, cache=cache)([SECRET, "a bad day"], private=False)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert len(ask.texts) == 2
    assert (again.counts.cached, again.counts.calls) == (2, 0)
    files = [p for p in (tmp_path / "answers").rglob("*") if p.is_file()]
    assert len(files) == 2
    for path in files:
        assert "room" not in path.name + path.read_text()
        assert path.stat().st_mode & 0o077 == 0, "its owner's alone"
    assert (tmp_path / "answers").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 9, "probabilities": [0, 1]}',
        '{"version": 1, "probabilities": [0.2, 0.2]}',
        '{"version": 1, "probabilities": [1]}',
        '{"version": 1, "probabilities": ["a", "b"]}',
        '{"version": 1, "probabilities": [NaN, 1]}',
    ],
)
def test_a_damaged_file_is_asked_about_anew(content: str, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, "api", CLASSES)
    labeller(Asked(by_word), cache=cache)(["good"], private=False)
    (path,) = (p for p in tmp_path.rglob("*.json"))
    path.write_text(content)
    ask = Asked(by_word)
    assert labeller(ask, cache=cache)(["good"], private=False).classes.tolist() == [1]
    assert len(ask.texts) == 1
    assert cache.get("good") is not None, "mended"


def test_another_teacher_or_other_classes_share_no_answer(tmp_path: Path) -> None:
    one = AnswerCache(tmp_path, "api", CLASSES)
    one.put("x", np.array([0, 1], np.float32))
    assert AnswerCache(tmp_path, "api2", CLASSES).get("x") is None
    assert AnswerCache(tmp_path, "api", ("good", "bad")).get("x") is None
    with pytest.raises(DataError, match="open one for"):
        Labeller(Teacher("other", by_word_alone), CLASSES, one)


def by_word_alone(text: str) -> object:
    return by_word(text, 0)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file", "api", CLASSES)
    with pytest.raises(DataError, match="cannot keep a teacher's answers"):
        labeller(Asked(by_word), cache=cache)(["x"], private=False)


# ---------------------------------------------------------------------------------------- rate and retry


def test_calls_keep_to_the_rate() -> None:
    clock = Clock()
    rate = RateLimit(2.0, burst=3, clock=clock, sleep=clock.sleep)
    labels = labeller(Asked(by_word), clock, rate=rate)(["x"] * 7, private=False)
    assert clock.slept == pytest.approx([0.5] * 4), "three at once, then one each half second"
    assert labels.counts.waited_s == pytest.approx(2.0)


def test_idle_time_earns_no_more_than_a_burst() -> None:
    clock = Clock()
    rate = RateLimit(1.0, burst=2, clock=clock, sleep=clock.sleep)
    asking = labeller(Asked(by_word), clock, rate=rate)
    asking(["x"] * 2, private=False)
    clock.now += 1000
    asking(["y"] * 3, private=False)
    assert clock.slept == pytest.approx([1.0])


def test_a_call_that_fails_is_made_again_after_longer_and_longer_pauses() -> None:
    def rule(text: str, times: int) -> object:
        if times < 4:
            raise ConnectionError(text)
        return "good"

    clock = Clock()
    retries = Retries(attempts=5, base_s=1.0, factor=3.0, longest_s=5.0, jitter=0.0)
    labels = labeller(Asked(rule), clock, retries=retries)(["x"], private=False)
    assert labels.classes.tolist() == [1]
    assert clock.slept == [1.0, 3.0, 5.0]
    assert (labels.counts.calls, labels.counts.errors, labels.counts.failed) == (4, 3, 0)


def test_jitter_shortens_pauses_by_at_most_its_share() -> None:
    pauses = list(Retries(attempts=200, base_s=2.0, factor=1.0, jitter=0.25).pauses())
    assert len(pauses) == 199
    assert min(pauses) >= 1.5
    assert max(pauses) <= 2.0
    assert len(set(pauses)) > 100


def test_failures_and_garbage_are_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def rule(text: str, _: int) -> object:
        if "raise" in text:
            raise RuntimeError(f"cannot read {text}")
        return {"sour": 1.0} if "garbage" in text else by_word(text, 0)

    clock = Clock()
    with caplog.at_level(logging.DEBUG):
        labels = labeller(Asked(rule), clock, retries=Retries(attempts=2, jitter=0.0))(
            ["good", "raise secret", "garbage", "bad"], private=False
        )
    assert labels.known.tolist() == [True, False, False, True]
    assert labels.classes.tolist() == [1, -1, -1, 0]
    c = labels.counts
    assert (c.records, c.labelled, c.failed, c.errors, c.garbage, c.calls) == (4, 2, 2, 2, 2, 6)
    assert "secret" not in caplog.text, "an exception's words may quote the record"
    with pytest.raises(DataError, match=r"labelled 2 of 4 records, 90% are needed: 2 failed"):
        labels.require(0.9)
    assert labels.require(0.5) is labels


# ----------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("spending", [Spending(max_calls=3), Spending(max_cost=0.3)])
def test_the_budget_is_never_exceeded_and_what_is_left_is_told(spending: Spending) -> None:
    ask = Asked(by_word)
    asking = labeller(ask, spending=spending, cost=0.1)
    labels = asking(["good"] * 5, private=False)
    assert len(ask.texts) == 3
    assert (labels.counts.labelled, labels.counts.unasked) == (3, 2)
    assert labels.counts.cost == pytest.approx(0.3)
    assert asking(["good"], private=False).counts.unasked == 1, "one budget over all calls"


def test_failed_calls_spend_the_budget_too() -> None:
    asking = labeller(Asked(lambda *_: None), spending=Spending(max_calls=4), retries=Retries(3, 0.0))
    labels = asking(["a", "b", "c"], private=False)
    c = labels.counts
    assert (c.calls, c.garbage, c.failed, c.unasked) == (4, 4, 2, 1)


# --------------------------------------------------------------------------------------------- the use


def test_records_without_an_answer_are_left_out_of_the_labelled_ones() -> None:
    examples = Examples(texts=("good", "odd", "bad"), labels=np.array([0, 0, 0]))
    asking = labeller(Asked(lambda t, _: None if t == "odd" else by_word(t, 0)), retries=Retries(1))
    labelled = asking(examples.texts or (), private=False).put_on(examples)
    assert labelled.texts == ("good", "bad")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 0]


def test_labels_of_other_records_or_of_none_are_refused() -> None:
    asking = labeller(Asked(lambda *_: None), retries=Retries(1))
    labels = asking(["a", "b"], private=False)
    with pytest.raises(DataError, match="do not fit"):
        labels.put_on(Examples(texts=("a",)))
    with pytest.raises(DataError, match="labelled none of 2"):
        labels.put_on(Examples(texts=("a", "b")))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RateLimit(0.0), "per_second > 0"),
        (lambda: RateLimit(1.0, burst=0), "burst >= 1"),
        (lambda: Retries(attempts=0), "attempts >= 1"),
        (lambda: Retries(jitter=2.0), "jitter in"),
        (lambda: Labeller(Teacher("x", by_word_alone), ("one",)), "two or more different classes"),
        (lambda: Labeller(Teacher("x", by_word_alone), ("One", "one")), "two or more different classes"),
    ],
)
def test_limits_out_of_range_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
