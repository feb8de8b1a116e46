"""What is learned: which digit is in a picture of 8 x 8, by softmax regression, with example-level DP at the client.

Stands for your own training code. It charges the client's ledger before it looks at a record, and what it
gives back carries its noise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import securefed as sf
from securefed.crypto.entropy import SystemEntropy
from securefed.privacy.budget import Budget
from securefed.privacy.events import SampledGaussian
from securefed.privacy.policy import load_policy
from securefed.privacy.records import ShardKey
from securefed.sessions import Terms

CLASSES, PIXELS = 10, 64
SIZE = CLASSES * (PIXELS + 1)
CLIP, RATE = 1.0, 4.0
DELTA = 1e-5
"""Where the terms name none."""


def deal_digits(root: Path, clients: int) -> None:
    """Writes each client's own records into its own folder, and the server's public test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.c_[images / 16, np.ones(len(images))].astype(np.float32)
    np.savez(root / "server" / "test.npz", images=images[1500:], labels=labels[1500:])
    for k in range(clients):
        mine = slice(1500 * k // clients, 1500 * (k + 1) // clients)
        np.savez(root / f"client-{k}" / "data.npz", images=images[mine], labels=labels[mine])


class Learner:
    """One client's data and its account in the ledger."""

    def __init__(self, folder: Path, ledger: sf.Ledger, run: str) -> None:
        with np.load(folder / "data.npz") as data:
            self.images, self.labels = data["images"], data["labels"]
        self.ledger, self.run = ledger, run
        records = ShardKey(folder.name.encode().hex(), len(self.images))
        ledger.register(run, {0: records}, f"digits of {folder.name}", "example")

    def update(self, model: Any, round: int, terms: Terms) -> Any:
        """New minus old after one noisy step over all records, float32 (d,); reserved before, settled after.

        The ledger holds what the terms claim, and this site's own cap, against what they make this client spend.

        Raises:
            BudgetExceeded: this round would break either; nothing is charged, and nothing may be sent.
        """
        noise_multiplier = terms.noise_multiplier
        event = SampledGaussian(noise_multiplier, 1.0, 1)
        claimed = Budget(math.inf if terms.epsilon is None else terms.epsilon, terms.delta or DELTA)
        budget = load_policy().tighten(claimed)
        reservation = self.ledger.reserve(run=self.run, client=0, round=round, event=event, budget=budget)
        weights = model.reshape(CLASSES, PIXELS + 1)
        errors = softmax(self.images @ weights.T) - np.eye(CLASSES, dtype=np.float32)[self.labels]
        # a record's gradient is errors x images, so its norm is the product of theirs
        norms = np.linalg.norm(errors, axis=1) * np.linalg.norm(self.images, axis=1)
        shrink = np.minimum(1, CLIP / np.maximum(norms, 1e-12))
        total = (errors * shrink[:, None]).T @ self.images
        noise = SystemEntropy().stream("example noise", round).normal(SIZE) * (noise_multiplier * CLIP)
        step = -RATE * (total.ravel() + noise) / len(self.images)
        self.ledger.settle(reservation, steps_taken=1)
        return step.astype(np.float32)


def softmax(scores: Any) -> Any:
    """Rows to probabilities."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def accuracy(model: Any, images: Any, labels: Any) -> float:
    """Share of the pictures whose digit is guessed."""
    return float(((images @ model.reshape(CLASSES, PIXELS + 1).T).argmax(1) == labels).mean())
