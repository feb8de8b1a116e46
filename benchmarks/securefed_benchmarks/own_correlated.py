"""A whole job under correlated noise audited: cohorts dealt out in turn, and everything that an outsider sees of the run.

An outsider sees the model after every round, so each round's release: its cohort's clipped updates x and a row of C^-1 z.
Multiplied by the public factor C, the releases are C x + z with independent noise; the schedule is public too, so
each canary is listened for along the columns of its own rounds.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from securefed.config import Config, load_config
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.federation import Federation
from securefed.layout import Layout
from securefed.privacy.dealing import Deal, deal_of
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
from securefed.types import Vector
from securefed_attacks.canaries import Canaries
from securefed_benchmarks.own_paths import CLIP, DELTA, Job, Released, assembly_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Dealt:
    """A job of client-level DP with `privacy.noise = "correlated"`: each canary is a client, in the rounds it is dealt.

    Attributes:
        noise_multiplier: over the sensitivity of the whole run. separation: promised rounds between two of one client.
        listens: "rows": along a canary's columns of C. "changes": along what is left of them without their mean over
            rounds, which noise that is the same in every round does not reach.
        seed: of the public order of the clients.
    """

    noise_multiplier: float
    rounds: int = 12
    separation: int = 4
    listens: Literal["rows", "changes"] = "rows"
    seed: int = 0

    def config(self, m: int) -> Config:
        """The job over `m` canary clients, dealt out in cohorts as large as the separation allows."""
        return load_config(
            Job("client", self.noise_multiplier, self.rounds).tree(m),
            {
                "seed": self.seed,
                "clients_per_round": m // self.separation,
                "privacy.noise": "correlated",
                "privacy.min_separation": self.separation,
                "engine.checkpoint_every": 1,
            },
        )

    def __call__(self, canaries: Canaries, folder: Path, entropy: Entropy | None = None) -> Released:
        """Plays the job into a new folder, and listens to the model after every round."""
        config = self.config(canaries.m)
        assembly = assembly_of(config, canaries)
        listener = Listener(folder, assembly.model.layout)
        listener.hear(assembly.model.read(assembly.model.layout))
        federation = Federation(assembly, folder, secrets.token_hex(8), entropy or SystemEntropy())
        folder.mkdir(parents=True)
        try:
            result = federation.play(None, [listener])
            assert result.ledger is not None
            claimed, events = result.ledger.statement(DELTA).epsilon, tuple(result.ledger.events())
        finally:
            federation.close()
        deal = deal_of(config, canaries.m)
        moved = self._heard(deal, np.diff(np.array(listener.models), axis=0))
        # both classes' weights move by clip / sqrt 2, one up and one down
        return Released(moved, 2**0.5 * CLIP / deal.size * deal.factor.sensitivity, claimed, events)

    def _heard(self, deal: Deal, releases: Array) -> Array:
        """Each coordinate along its canary's rounds, (d,), scaled so that honest noise has one deviation in all.

        Args:
            releases: of every round, float64 (rounds, d).
        """
        from scipy.signal import lfilter

        turns = np.zeros((deal.rounds, deal.clients))
        for round in range(deal.rounds):
            turns[round, list(deal.cohort(round))] = 1
        rows, weights = (lfilter(deal.factor.coefficients, [1.0], x, axis=0) for x in (releases, turns))
        if self.listens == "changes":
            weights = weights - weights.mean(axis=0)
        weights = weights / np.maximum(np.linalg.norm(weights, axis=0), 1e-12)
        mine = np.arange(rows.shape[1]) % deal.clients
        heard: Array = np.einsum("rd,rd->d", rows, weights[:, mine])
        return heard


@dataclass
class Listener:
    """A tracker that reads the model which every round leaves in the run's folder.

    Attributes:
        models: class 1's weights less class 0's, (d,), before the first round and after each.
    """

    folder: Path
    layout: Layout
    models: list[Array] = field(default_factory=list, repr=False)

    def start(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None:
        from safetensors.numpy import load_file

        newest = sorted((self.folder / "checkpoint").glob("round-*"))[-1]
        self.hear(load_file(newest / "state.safetensors")["vector"])

    def hear(self, vector: Vector) -> None:
        """Adds a model to what was heard."""
        weight = self.layout.unflatten(vector)["output.weight"].double().numpy()
        self.models.append(weight[1] - weight[0])

    def end(self, summary: RunSummary) -> None: ...

    def close(self) -> None: ...
