"""`make bench-quick`: a planted regression fails, noise does not. A clock of our own; nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from securefed_benchmarks import guard


class Clock:
    """CPU seconds that only plays spend."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, *seconds: float) -> Callable[[], None]:
        """A play that takes these seconds in turn, over and over."""
        order = list(seconds)

        def play() -> None:
            order.append(order.pop(0))
            self.now += order[-1]

        return play


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(guard.time, "process_time", lambda: made.now)
    return made


def play(monkeypatch: pytest.MonkeyPatch, clock: Clock, ours: tuple[float, ...], *words: str) -> int:
    monkeypatch.setattr(guard, "pairs", lambda: {"masks": lambda: (clock.work(*ours), clock.work(1.0))})
    return guard.main(words)


def test_a_planted_regression_fails_and_names_itself(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "guard.json")
    assert play(monkeypatch, clock, (1.0, 1.1, 0.9), "--file", file, "--store") == 0
    assert play(monkeypatch, clock, (1.0, 1.1, 0.9), "--file", file) == 0
    assert play(monkeypatch, clock, (2.0, 2.2, 1.8), "--file", file) == 1
    assert "slower: masks: best ratio 1.800, stored 0.900" in capsys.readouterr().err


def test_noise_on_most_repeats_is_no_loss_and_a_gain_is_none(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "guard.json")
    play(monkeypatch, clock, (1.0,), "--file", file, "--store")
    assert play(monkeypatch, clock, (1.0, 9.0, 5.0), "--file", file) == 0
    assert play(monkeypatch, clock, (0.2,), "--file", file) == 0


def test_a_disturbance_that_is_gone_the_second_time_is_no_loss(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "guard.json")
    play(monkeypatch, clock, (1.0,), "--file", file, "--store")
    disturbed = iter([2.0, 1.0])
    monkeypatch.setattr(
        guard, "pairs", lambda: {"masks": lambda: (clock.work(next(disturbed)), clock.work(1.0))}
    )
    assert guard.main(["--file", file]) == 0
    assert next(disturbed, None) is None


def test_without_stored_ratios_it_says_how_to_store_them(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(monkeypatch, clock, (1.0,), "--file", str(tmp_path / "none.json")) == 2
    assert "--store" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("masks", "sum"), ("sum",)])
def test_a_pair_without_a_stored_ratio_is_not_passed_over(
    names: tuple[str, ...],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(tmp_path / "guard.json")
    assert play(monkeypatch, clock, (1.0,), "--file", file, "--store") == 0
    monkeypatch.setattr(
        guard, "pairs", lambda: dict.fromkeys(names, lambda: (clock.work(9.0), clock.work(1.0)))
    )
    assert guard.main(["--file", file]) == 2
    assert "never compared" in capsys.readouterr().err


def test_every_pair_that_ships_plays_and_has_a_stored_ratio() -> None:
    stored = json.loads(guard.STORED.read_text(encoding="utf-8"))["ratios"]
    assert stored.keys() == guard.pairs().keys()
    for make in guard.pairs().values():
        assert guard.measure(make, blocks=1, pairs=1)[0] > 0
