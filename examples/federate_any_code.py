"""Any training code in a federation, with client-level privacy: here scikit-learn, which knows nothing of it.

    python examples/federate_any_code.py              # the server adds the noise, and is trusted
    python examples/federate_any_code.py skellam      # the clients add it inside masked sums, nobody is

Sixty clients hold 25 pictures of digits each. `train` is their own code; it is given the global weights as
NumPy arrays and changes them in place. Each client as a whole is hidden from the others and from whoever
gets the model; with noise that the clients share, from the server too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

import securefed as sf

CLASSES = np.arange(10)


def train(model: dict[str, Any], shard: tuple[Any, Any], round: int) -> None:
    """One client's work: one pass of scikit-learn's own SGD, started from the global weights."""
    images, labels = shard
    net = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.1, random_state=round)
    net.partial_fit(images[:1], labels[:1], CLASSES)  # makes the arrays
    net.coef_[:], net.intercept_[:] = model["weight"], model["bias"]
    net.partial_fit(images, labels)
    model["weight"][:], model["bias"][:] = net.coef_, net.intercept_


def main(
    rounds: int = 0, folder: str | None = None, noise: Literal["central", "skellam"] = "central"
) -> float:
    """Trains, prints the privacy statement, and gives the test accuracy."""
    shared = noise == "skellam"
    rounds = rounds or (6 if shared else 12)
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    shards = [(images[i : i + 25], labels[i : i + 25]) for i in range(0, 1500, 25)]
    test_images, test_labels = images[1500:], labels[1500:]

    def evaluate(model: Mapping[str, Any]) -> dict[str, float]:
        guessed = (test_images @ model["weight"].T + model["bias"]).argmax(1)
        return {"accuracy": float((guessed == test_labels).mean())}

    model = {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}
    result = sf.federate(
        train,
        shards,
        model=model,
        rounds=rounds,
        epsilon=8.0,
        delta=1e-3,
        clip=1.0,
        noise=noise,
        protection="masking" if shared else "plain",
        clients_per_round=0
        if shared
        else 30,  # the server knows who takes part, so drawing them hides nothing
        evaluate=evaluate,
        data_id="digits in sixty homes",
        folder=folder,
    )
    assert result.ledger is not None
    print(result.ledger.statement(delta=1e-3).text())
    print(f"accuracy {result.metrics['accuracy']:.3f} after {result.rounds} rounds; all in {result.folder}")
    return result.metrics["accuracy"]


if __name__ == "__main__":
    main(noise="skellam" if "skellam" in sys.argv[1:] else "central")
