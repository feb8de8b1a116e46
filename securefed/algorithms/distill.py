"""Federated distillation: clients answer on public records, and a student learns what they say together.

In the order of FedMD (Li and Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation", arXiv
1910.03581, algorithm 1): clients train, *communicate* their class scores on the public set, the server *aggregates*
them, *distributes* the consensus, clients *digest* it and *revisit* their own records. The server's student is that
of FedDF (Lin, Kong, Stich and Jaggi 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning", arXiv
2006.07242, algorithm 1), learned from the ensemble's answers and not from averaged weights, so that no two clients need the same
architecture. Votes are those of PATE (Papernot et al. 2017, arXiv 1610.05755; with Gaussian noise, GNMax: Papernot et al.
2018, arXiv 1802.08908, section 4.1).

What travels is a *table*: one row of k numbers for each of m public records, flattened to (m x k,). A vector is a vector: the
protections, the rules of the server and the mechanisms of client-level privacy carry tables as they carry updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from securefed.algorithms.algorithm import Algorithm
from securefed.algorithms.plan import RoundPlan
from securefed.config import Config, DistillConfig
from securefed.config.distill import record_bound
from securefed.errors import DivergedError, ProtocolError
from securefed.layout import Layout
from securefed.types import Vector

Table = NDArray[np.float32]
"""Float32 (m, k), a row a public record."""

_PHASES = {"logits": "logit", "probabilities": "soft", "votes": "vote"}


@dataclass(frozen=True)
class Distill(Algorithm):
    """What a client sends of its answers, and what the ensemble says. Its settings are the job's `[distill]`.

    Attributes:
        player: what plays its rounds, by name.
    """

    player: ClassVar[str] = "securefed.distillation:Distillation"

    def plan(self, config: Config, part_of: Mapping[str, str], round: int) -> RoundPlan:
        """Each client trains all of its own model and shares no tensor of it."""
        return RoundPlan(_PHASES[config.distill.send], tuple(sorted(part_of)), (), round / config.rounds)

    def local_names(self, config: Config, part_of: Mapping[str, str]) -> tuple[str, ...]:
        """None of the student's: a client's own model is another one."""
        return ()

    def layout(self, config: Config, classes: int) -> Layout:
        """Of what is sent: the answers and, where they weigh by it, each record's confidence."""
        shapes: dict[str, tuple[int, ...]] = {"answers": (config.distill.records, classes)}
        if config.distill.confidence:
            shapes["confidence"] = (config.distill.records,)
        return Layout.of_shapes(shapes)

    # ------------------------------------------------------------------- communicate: a client's part

    def table(self, config: Config, logits: Table) -> Vector:
        """What a client sends of its logits (m, k): float32 over `layout`.

        Confident answers are sent as weight x answer beside the weights, so that sums of both give the weighted mean under
        any protection. At client level the whole is scaled by `scale`, so that its L2 norm is within `max_grad_norm`.

        Raises:
            ProtocolError: a table of another size. DivergedError: one that is not finite; at client level such a client
                counts as zero, like any whose training diverges.
        """
        self._check(config, logits)
        d = config.distill
        answers = {"logits": _clipped_logits, "probabilities": _probabilities, "votes": _votes}[d.send](
            logits, d
        )
        if not d.confidence:
            return (answers.reshape(-1) * np.float32(self.scale(config))).astype(np.float32)
        sure = confidence(logits)
        return np.concatenate([(answers * sure[:, None]).reshape(-1), sure]).astype(np.float32)

    def scale(self, config: Config) -> float:
        """From a table to what is sent: 1, or max_grad_norm over the table's L2 bound where whole tables are noised.

        The bound is that of one record's row times sqrt(m); it is a public constant, so one client more or less moves the sum
        of tables by at most `max_grad_norm`, whatever its records are.
        """
        if config.privacy.unit != "client":
            return 1.0
        return config.privacy.max_grad_norm / (
            record_bound(config.distill) * math.sqrt(config.distill.records)
        )

    def _check(self, config: Config, logits: Table) -> None:
        m = config.distill.records
        if logits.ndim != 2 or len(logits) != m or logits.shape[1] < 2:
            raise ProtocolError(
                f"a table of answers has shape ({m}, classes), found {logits.shape}; both sides must read the same public set"
            )
        if not np.isfinite(logits).all():
            raise DivergedError("a client's answers are no longer finite numbers; lower train.learning_rate")

    # ---------------------------------------------------------------- aggregate: what the ensemble says

    def consensus(self, config: Config, mean: Vector, classes: int) -> Table:
        """Soft labels (m, k), rows that sum to one, from the aggregate of the tables.

        Logits: softmax at the job's temperature of the ensemble's mean logits. Probabilities: their mean, negative parts of a
        noisy mean cut off. Votes: all of it on the class with the most (noisy) votes; the noise is on the counts, so what is
        learned from the winner costs nothing more.
        """
        d = config.distill
        self.layout(config, classes).check(mean)
        answers = mean[: d.records * classes].reshape(d.records, classes) / np.float32(self.scale(config))
        if d.confidence:
            answers = answers / np.maximum(mean[d.records * classes :], 1e-6)[:, None]
        if d.send == "logits":
            return softmax(answers / d.temperature)
        if d.send == "votes":
            return one_hot(answers)
        kept = np.maximum(answers, 0.0)
        total = kept.sum(1, keepdims=True)
        return np.where(total > 0, kept / np.maximum(total, 1e-12), 1.0 / classes).astype(np.float32)

    def temperature(self, config: Config) -> float:
        """At which a model's own logits are compared with the consensus: hard votes are learned as they are."""
        return 1.0 if config.distill.send == "votes" else config.distill.temperature


def softmax(logits: Table) -> Table:
    """Rows of probabilities, float32 (m, k)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found: Table = (shifted / shifted.sum(1, keepdims=True)).astype(np.float32)
    return found


def one_hot(scores: Table) -> Table:
    """One on each row's largest score (the first of equals), float32 (m, k)."""
    found: Table = np.eye(scores.shape[1], dtype=np.float32)[scores.argmax(1)]
    return found


def confidence(logits: Table) -> Vector:
    """How sure each row is, in [0.001, 1]: the largest probability less chance, over the most that can be."""
    k = logits.shape[1]
    sure = (softmax(logits).max(1) - 1 / k) / (1 - 1 / k)
    found: Vector = np.clip(sure, 1e-3, 1.0).astype(np.float32)
    return found


def _clipped_logits(logits: Table, d: DistillConfig) -> Table:
    """Centred over the classes (softmax does not see the difference) and of L2 norm at most `clip` in each row."""
    centred = logits.astype(np.float64) - logits.mean(1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    limit = d.clip * (1 - 2.0**-22)  # a hair below, so that rounding to float32 stays within
    found: Table = (centred * np.minimum(1.0, limit / np.maximum(norms, 1e-30))).astype(np.float32)
    return found


def _probabilities(logits: Table, d: DistillConfig) -> Table:
    return softmax(logits / np.float32(d.temperature))


def _votes(logits: Table, d: DistillConfig) -> Table:
    return one_hot(logits)
