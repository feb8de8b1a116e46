"""This project's own DP paths with canaries on them: each gives what it released and the epsilon its ledger claims.

The paths run as they run for anybody: a whole federation (example level, client level at the server, noise shared
by clients under masking), somebody's loop in `make_private`, somebody's code in `federate`. What is special is the data:
records, or clients, whose contribution is a canary's direction, or nothing where its coin said out.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import securefed as sf
from securefed.assembly import Assembly
from securefed.config import Config, load_config
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.data.records import Dataset, Examples, Shard
from securefed.federation import Federation
from securefed.models import load_model
from securefed.privacy.events import Event, steps_of
from securefed_attacks.canaries import Canaries
from securefed_attacks.canary_records import LOUD, canary_dataset, canary_loss, canary_model

DELTA = 1e-5
CLIP = 0.01
"""Of all paths; small, so that no noise moves the model far enough for it to learn a canary."""

RATE = 0.1
"""Learning rate at example level."""

FAR = 20.0
"""Length of a canary client's update in clips."""

TOGETHER = 10
"""Clients of a masked sum of records."""

Noise = Literal["central", "skellam", "discrete-gaussian"]


@dataclass(frozen=True, eq=False)
class Released:
    """What a path gave away, and what its ledger says of that.

    Attributes:
        moved: float64 (d,), in the canaries' coordinates. unit: how far one canary's contribution to one release, at the
            full clip, moves that; so noise of the claimed scale has deviation noise_multiplier x unit a release.
        claimed: the ledger's epsilon at `DELTA`. events: all that it has of the run.
    """

    moved: NDArray[np.float64] = field(repr=False)
    unit: float
    claimed: float
    events: tuple[Event, ...]

    @property
    def releases(self) -> int:
        """How many noised releases the ledger knows of."""
        return sum(steps_of(event) for event in self.events)


@dataclass(frozen=True)
class Job:
    """A job of `securefed run`, from shards to the model in its folder.

    Attributes:
        unit: "example": one client holds a record for each canary. "client": each canary is a client.
        noise_multiplier: over the sensitivity. sample_rate: of records; of clients where the server adds the noise.
        steps: private steps a round (example level).
        together: at example level, one step of all clients a round (`fedsgd`) in place of each client's own steps.
        adaptive: at client level, the clip follows the norms, for a noised bit a client.
    """

    unit: Literal["example", "client"]
    noise_multiplier: float
    rounds: int = 1
    noise: Noise = "central"
    sample_rate: float = 1.0
    steps: int = 1
    together: bool = False
    adaptive: bool = False

    @property
    def holders(self) -> int:
        """Clients who hold the canaries' records, at example level."""
        return TOGETHER if self.together and self.noise != "central" else 1

    def __call__(self, canaries: Canaries, folder: Path, entropy: Entropy | None = None) -> Released:
        """Plays the job into a new folder."""
        config = load_config(self.tree(canaries.m))
        assembly = assembly_of(config, canaries, self.holders)
        federation = Federation(assembly, folder, secrets.token_hex(8), entropy or SystemEntropy())
        folder.mkdir(parents=True)
        try:
            result = federation.play(None)
            assert result.ledger is not None
            claimed, events = result.ledger.statement(DELTA).epsilon, tuple(result.ledger.events())
        finally:
            federation.close()
        # both classes' weights move by clip / sqrt 2, one up and one down
        step = 2**0.5 * CLIP / canaries.m / self.sample_rate
        unit = step * RATE if self.unit == "example" else step
        return Released(_moved(folder, canaries.d), unit, claimed, events)

    def tree(self, m: int) -> dict[str, Any]:
        """The job for `m` canaries."""
        privacy: dict[str, Any] = {
            "unit": self.unit,
            "noise_multiplier": self.noise_multiplier,
            "delta": DELTA,
            "max_grad_norm": CLIP,
            "noise": self.noise,
        }
        # a canary client's one step is 20 clips long: enough for a clip left out, too little to wrap a ring
        train: dict[str, Any] = {"epochs": 1, "learning_rate": FAR * CLIP / (LOUD * 0.5**0.5)}
        tree: dict[str, Any] = {}
        if self.unit == "example":
            privacy["sample_rate"] = self.sample_rate
            train = {"steps": self.steps, "physical_batch": 256}
            if self.together:
                tree |= {"algorithm": "fedsgd", "server": {"learning_rate": RATE}}
            else:
                train["learning_rate"] = RATE
        elif self.noise == "central":
            tree["clients_per_round"] = round(self.sample_rate * m) % m
        if self.noise != "central":
            tree["protection"] = {"name": "masking", "bits": 32 if self.together else 24}
        if self.adaptive:
            privacy["clip"] = "adaptive"
        return tree | {
            "rounds": self.rounds,
            "data": {
                "name": "digits",
                "clients": self.holders if self.unit == "example" else m,
                "partition": "iid",
            },
            "model": {"name": "logistic", "adapter": "full"},
            "train": train,
            "privacy": privacy,
            "evaluate": {"every": 0, "clients": False, "baselines": False},
            "engine": {"threads": 1},
        }


def assembly_of(config: Config, canaries: Canaries, holders: int = 1) -> Assembly:
    """The parts of the job, with canaries' images in place of a data set and a model that begins at zero."""
    images = np.stack([_image(canaries, j) for j in range(canaries.m)])
    records = Examples(images=images, labels=np.ones(canaries.m, np.int64))
    test = Examples(images=np.zeros_like(images[:2]), labels=np.array([0, 1]))
    digests = [hashlib.sha256(b"canary %d" % j).hexdigest() for j in range(canaries.m)]
    nothing = test.take([])
    shards: tuple[Shard, ...]
    if config.privacy.unit == "example":
        shards = tuple(
            Shard(k, f"canaries {k}", records.take(list(range(k, canaries.m, holders))), nothing, digests[k])
            for k in range(holders)
        )
    else:
        shards = tuple(Shard(j, f"canary {j}", records.take([j]), nothing, d) for j, d in enumerate(digests))
    dataset = Dataset(
        "canaries", records, test, ("0", "1"), digests[0], "made for an audit", "this project's"
    )
    shape = tuple(int(s) for s in images.shape[1:])
    model = load_model(
        config.model,
        classes=2,
        image_shape=(shape[0], shape[1], shape[2]),
        unit=config.privacy.unit,
        max_length=config.data.max_length,
    )
    model.write(np.zeros(model.layout.size, np.float32), model.layout)
    return Assembly(config, dataset, shards, model)


def _image(canaries: Canaries, canary: int) -> NDArray[np.float32]:
    """One row of pixels along the canary's direction; not a number where its coin said out.

    A record whose gradient is not finite adds nothing, and a client that diverges counts as zero: so both are
    blanked out exactly, bias included, by rules that the paths have anyway.
    """
    if canaries.included[canary]:
        return canaries.contribution(canary, LOUD).reshape(1, 1, -1)
    blank = np.full(canaries.d, np.nan, np.float32)
    blank[canary % canaries.d] = canary  # so that no two are copies of one record
    return blank.reshape(1, 1, -1)


def _moved(folder: Path, d: int) -> NDArray[np.float64]:
    """Class 1's weights less class 0's, (d,): each canary pushes both apart along its direction."""
    from safetensors.numpy import load_file

    weight = load_file(folder / "adapter" / "model.safetensors")["output.weight"].astype(np.float64)
    moved: NDArray[np.float64] = weight[1] - weight[0]
    assert moved.shape == (d,)
    return moved


@dataclass(frozen=True)
class Loop:
    """A plain PyTorch loop in `make_private`."""

    noise_multiplier: float
    steps: int = 1
    sample_rate: float = 1.0

    def __call__(self, canaries: Canaries, folder: Path, entropy: Entropy | None = None) -> Released:
        """Trains the canaries' linear model; the ledger is a file beside the folder."""
        model = canary_model(canaries.d)
        data = canary_dataset(canaries, blank=math.nan)  # zeros would tell the step-one check nothing
        batch = max(1, round(self.sample_rate * canaries.m))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        private = sf.make_private(
            model,
            optimizer,
            DataLoader(data, batch_size=batch, shuffle=True),
            noise_multiplier=self.noise_multiplier,
            delta=DELTA,
            max_grad_norm=CLIP,
            steps=self.steps,
            ledger=sf.Ledger(folder.with_suffix(".sqlite")),
            data_id="canaries",
            physical_batch=256,
            entropy=entropy,
        )
        with private, private.ledger:
            while private.steps_taken < self.steps:
                for x, y in private.loader:
                    private.optimizer.zero_grad()
                    canary_loss(private.model(x), y).backward()  # type: ignore[no-untyped-call]  # torch's
                    private.optimizer.step()
            claimed, events = private.epsilon(), private.ledger.events(run=private.run)
        moved = model.weight.detach().double().flatten().numpy()
        return Released(moved, RATE * CLIP / batch, claimed, events)


@dataclass(frozen=True)
class Foreign:
    """Somebody's own training code in `federate`, client level, each canary a client."""

    noise_multiplier: float
    rounds: int = 1
    sample_rate: float = 1.0
    adaptive: bool = False

    def __call__(self, canaries: Canaries, folder: Path, entropy: Entropy | None = None) -> Released:
        """Federates a function that adds the canary's direction, loud, to the model it is lent."""
        model = {"w": np.zeros(canaries.d, np.float32)}

        def train(lent: Mapping[str, NDArray[np.float32]], shard: NDArray[np.int64], round: int) -> None:
            lent["w"][...] += canaries.contribution(int(shard[0]), FAR * CLIP)

        result = sf.federate(
            train,
            [np.array([j]) for j in range(canaries.m)],
            model=model,
            rounds=self.rounds,
            noise_multiplier=self.noise_multiplier,
            delta=DELTA,
            clip=CLIP,
            adaptive_clip=self.adaptive,
            clients_per_round=round(self.sample_rate * canaries.m) % canaries.m,
            data_id="canaries",
            ledger=sf.Ledger(folder.with_suffix(".sqlite")),
            folder=folder,
            entropy=entropy,
        )
        assert result.ledger is not None
        expected = (round(self.sample_rate * canaries.m) % canaries.m) or canaries.m
        claimed = result.ledger.statement(DELTA).epsilon
        events = tuple(result.ledger.events())
        return Released(model["w"].astype(np.float64), CLIP / expected, claimed, events)
