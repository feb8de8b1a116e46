"""The client's model as a view shows it, from weights or from answers, so that one attack can be played on both.

A view of an update shows the model itself: what it was before, plus the update. A view of a distillation shows a table
of answers on public records; the adversary trains a copy that answers alike, and attacks the copy. What the copy does not know,
the answers did not tell (Jagielski et al. 2023, "Students Parrot Their Teachers: Membership Inference on Model
Distillation", arXiv 2303.03446, attack students so). On public records that a client also trained on, the copy learns the client's
own answers on its members: that is why the library refuses a public set that overlaps.

Adversary: the server, where the protection shows single tables; it knows the public records and the client's architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from securefed.config import TrainConfig
from securefed.data.batch import Encoded
from securefed.training.local import LocalWork
from securefed.training.soft import answers, learn_from
from securefed.types import Vector, View

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

Floats = NDArray[np.float64]


def model_in_update(view: View, client: int, model: TaskModel) -> Vector:
    """The client's model (d,) where the view shows its update.

    Raises:
        ValueError: the view shows no update of this client, or one of another size.
    """
    update = _shown(view, client)
    if update.shape != (model.layout.size,) or view.before.shape != update.shape:
        raise ValueError(
            f"an update of this model has {model.layout.size} coordinates, the view shows {update.shape}"
        )
    return (view.before + update).astype(np.float32)


def copy_from_answers(
    view: View,
    client: int,
    model: TaskModel,
    public: Encoded,
    start: Vector,
    config: TrainConfig,
    *,
    steps: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Vector:
    """A copy (d,) of the client's model, trained from `start` to answer on the public records as the view's logits do.

    Args:
        public: the m records of the table, as `model` reads them. start: public first weights of this architecture.
        config: optimizer and rate of the copying. temperature: as the adversary likes, 1 shows most.

    Raises:
        ValueError: the view shows no table of this client, or one of another size.
    """
    table = _shown(view, client)
    if table.shape != (len(public) * model.classes,):
        raise ValueError(
            f"a table on {len(public)} records of {model.classes} classes has {len(public) * model.classes} numbers, the "
            f"view shows {table.shape}; give the public records of this run"
        )
    logits = torch.from_numpy(table.reshape(len(public), model.classes).copy())
    soft: NDArray[np.float32] = (logits / temperature).softmax(-1).numpy()
    return learn_from(
        model,
        public,
        soft,
        start,
        config,
        steps=steps,
        batch_size=config.batch_size,
        temperature=temperature,
        work=LocalWork(client, view.round, tuple(sorted(model.part_of))),
        seed=seed,
    )


def record_losses(model: TaskModel, vector: Vector, candidates: Encoded, config: TrainConfig) -> Floats:
    """Cross-entropy of each candidate with its label under these weights, (n,): `Evidence.loss` or `.reference`."""
    if candidates.labels is None:
        raise ValueError("candidates need their labels")
    model.write(vector, model.layout)
    logits = torch.from_numpy(answers(model, candidates, config))
    found: Floats = (
        F.cross_entropy(logits, torch.from_numpy(candidates.labels), reduction="none").double().numpy()
    )
    return found


def _shown(view: View, client: int) -> Vector:
    if client not in view.updates:
        raise ValueError(
            f"the view shows nothing of client {client} alone (it reveals {view.reveals}); nothing is left to attack here"
        )
    return view.updates[client]
