"""The garbage collector rests inside, and is after it as it was before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from securefed.undisturbed import undisturbed


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


def test_the_collector_rests_inside_and_goes_on_after() -> None:
    gc.enable()
    with undisturbed():
        assert not gc.isenabled()
        with undisturbed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error_too() -> None:
    gc.enable()

    @undisturbed()
    def fails() -> None:
        assert not gc.isenabled()
        raise ValueError("on purpose")

    for _ in range(2):
        with pytest.raises(ValueError, match="on purpose"):
            fails()
        assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    with undisturbed():
        pass
    assert not gc.isenabled()
