"""Gross faults, put into this project's own DP paths on purpose: an audit that does not hear them hears nothing.

Each is a context in which the library is broken; nothing outside notices, the claims stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.privacy import client_level, correlated_release, distributed, server_mechanism, shared_release
from securefed.privacy.client_level import Clipped
from securefed.privacy.correlated_noise import CorrelatedNoise
from securefed.privacy.dealing import Deal
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.ledger import Ledger
from securefed.privacy.matrix_factorization import Participation
from securefed.privacy.rotation import rotate
from securefed.privacy.samplers import Sampler
from securefed.training import dp_work
from securefed.types import Vector

Fault = Callable[[], AbstractContextManager[None]]


@contextmanager
def a_tenth_of_the_noise() -> Iterator[None]:
    """Gaussian and integer noise at a tenth of its scale."""
    normal, draw = Stream.normal, Sampler.draw

    def quiet(self: Stream, n: int) -> NDArray[np.float64]:
        return normal(self, n) / 10

    def quiet_integers(self: Sampler, count: int, stream: Stream) -> NDArray[np.int64]:
        return draw(self, count, stream) // 10

    with patch.object(Stream, "normal", quiet), patch.object(Sampler, "draw", quiet_integers):
        yield


@contextmanager
def no_clip() -> Iterator[None]:
    """Records and updates keep whatever norm they have."""

    def unclipped(vector: Vector, norm: float) -> Clipped:
        return Clipped(vector, norm)

    def rounded(self: DistributedMechanism, vector: Vector, stream: Stream) -> NDArray[np.int64]:
        work = vector.copy()
        rotate(work, self.seed)
        steps: NDArray[np.int64] = np.rint(work * np.float32(self.levels / self.clip)).astype(np.int64)
        return steps

    with ExitStack() as stack:
        stack.enter_context(patch.object(dp_work, "MARGIN", 1e12))
        for module in (client_level, correlated_release, server_mechanism, shared_release, distributed):
            stack.enter_context(patch.object(module, "clip_update", unclipped))
        stack.enter_context(patch.object(DistributedMechanism, "_rounded", rounded))
        yield


@contextmanager
def everybody_every_time() -> Iterator[None]:
    """Poisson sampling that always draws everybody, whatever rate is claimed."""

    def always(self: Stream, n: int, p: float) -> NDArray[np.bool_]:
        return np.ones(n, np.bool_)

    with patch.object(Stream, "bernoulli", always):
        yield


@contextmanager
def nine_of_ten_unlogged() -> Iterator[None]:
    """The ledger hears of every tenth round (or portion) only."""
    reserve, settle = Ledger.reserve, Ledger.settle

    def forgetful(self: Ledger, *, round: int, **rest: Any) -> int:
        return -1 if round % 10 else reserve(self, round=round, **rest)

    def indifferent(self: Ledger, reservation: int, **rest: Any) -> None:
        if reservation >= 0:
            settle(self, reservation, **rest)

    with patch.object(Ledger, "reserve", forgetful), patch.object(Ledger, "settle", indifferent):
        yield


@contextmanager
def in_every_round() -> Iterator[None]:
    """Clients take part in every round, whatever separation their noise was scaled for."""
    with patch.object(Participation, "allows", lambda self, taken, round: True):
        yield


@contextmanager
def everybody_dealt() -> Iterator[None]:
    """Every client in every cohort that is dealt, whatever separation the noise was scaled for."""
    with patch.object(Deal, "cohort", lambda self, round: tuple(range(self.clients))):
        yield


@contextmanager
def the_same_noise_in_every_round() -> Iterator[None]:
    """A noise state whose stream begins anew each round, as one that is stored and read back would."""
    keys: list[bytes] = []
    step = CorrelatedNoise.step

    def again(self: CorrelatedNoise, stream: Stream) -> tuple[NDArray[np.float64], CorrelatedNoise]:
        keys.append(stream.bytes(32))
        return step(self, Stream(keys[0]))

    with patch.object(CorrelatedNoise, "step", again):
        yield


@contextmanager
def every_row_again() -> Iterator[None]:
    """Each round restarted a hundred times from the state that it began with; a listener takes the mean of the rows."""
    step = CorrelatedNoise.step

    def repeated(self: CorrelatedNoise, stream: Stream) -> tuple[NDArray[np.float64], CorrelatedNoise]:
        drawn = [step(self, stream) for _ in range(100)]
        noise = np.mean([one for one, _ in drawn], axis=0)
        following = drawn[0][1]
        return noise, replace(following, recent=(noise, *following.recent[1:]))

    with patch.object(CorrelatedNoise, "step", repeated):
        yield


FAULTS: Mapping[str, Fault] = {
    "noise / 10": a_tenth_of_the_noise,
    "no clip": no_clip,
    "rate 0.01 run at 1": everybody_every_time,
    "9 of 10 rounds unlogged": nine_of_ten_unlogged,
    "in every round": in_every_round,
    "dealt to everybody": everybody_dealt,
    "same noise again": the_same_noise_in_every_round,
    "rows restarted": every_row_again,
}
"""Name -> the context in which the fault is there."""
