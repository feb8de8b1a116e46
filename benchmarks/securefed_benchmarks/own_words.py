"""Distributed noise audited over thousands of runs: this project's words without the masks around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import securefed as sf
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.distributed_release import SEED, Design, DistributedRelease
from securefed.privacy.records import ShardKey
from securefed.types import SERVER, Collected, Vector
from securefed_benchmarks.own_paths import CLIP, DELTA, FAR


@dataclass(frozen=True)
class Words:
    """Distributed noise without the masks around it, run many times: one canary client beside another client.

    Masks cancel exactly, so a masked sum is the sum of these words modulo 2^bits; without them there is time for
    the thousands of runs that catch a fault which moves epsilon by a small factor.
    """

    noise: Literal["skellam", "discrete-gaussian"]
    noise_multiplier: float
    rounds: int = 1
    dimension: int = 16

    def __call__(
        self, runs: int, folder: Path, entropy: Entropy | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Scores of runs with the canary, of as many without, and the claim of one run's ledger."""
        design = Design(
            kind=self.noise,
            sizes=(self.dimension,) * self.rounds,
            clip=CLIP,
            clients=2,
            min_survivors=2,
            corrupt=0,
            bits=20,
        )
        mechanisms, secret = design.mechanisms(self.noise_multiplier), entropy or SystemEntropy()
        canary = np.eye(1, self.dimension, dtype=np.float32)[0] * np.float32(FAR * CLIP)
        sides = [
            np.array([self._run(mechanisms[self.dimension], vector, secret, world, k) for k in range(runs)])
            for world, vector in enumerate((canary, np.zeros_like(canary)))
        ]
        with sf.Ledger(folder.with_suffix(".sqlite")) as ledger:
            return sides[0], sides[1], self._claim(design, mechanisms, ledger, secret)

    def _run(
        self, mechanism: DistributedMechanism, vector: Vector, secret: Entropy, world: int, run: int
    ) -> float:
        """The sum of all rounds, along the canary."""
        other, total = np.full(self.dimension, -CLIP / 8, np.float32), 0.0
        for round in range(self.rounds):
            at = mechanism.at_round(secret.stream("seed", world, run, round).bytes(SEED))
            words = [
                at.encode(v, secret.stream("noise", world, run, round, k))
                for k, v in enumerate((vector, other))
            ]
            total += float(at.decode(words[0] + words[1], survivors=2)[0])
        return total

    def _claim(
        self,
        design: Design,
        mechanisms: Mapping[int, DistributedMechanism],
        ledger: sf.Ledger,
        secret: Entropy,
    ) -> float:
        """Epsilon of one run whose rounds went through the release that reserves and settles them."""
        ledger.register("audit", {SERVER: ShardKey("ab" * 32, 2)}, "canaries", "client")
        release = DistributedRelease(ledger, "audit", mechanisms, design.sizes, None)
        nothing = Collected(survivors=(0, 1), total=np.zeros(self.dimension), weight=2.0)
        for round in range(self.rounds):
            release.release(release.reserve(round), round, nothing, secret)
        return ledger.epsilon(DELTA, unit="client", run="audit")
