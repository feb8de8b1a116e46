"""Models: loading, adapters, small nets, and the one interface that training sees (`TaskModel`).

Nothing heavy is imported until a model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from securefed.config import ModelConfig
    from securefed.models.task_model import TaskModel as TaskModel

__all__ = ["TaskModel", "check_available", "load_model", "load_result"]


def load_model(
    config: ModelConfig,
    *,
    classes: int = 0,
    image_shape: tuple[int, int, int] | None = None,
    unit: str = "none",
    max_length: int = 64,
) -> TaskModel:
    """The model a job names, adapted, on its device and in training mode.

    The same config gives the same trainable tensors in every process; torch's global generators are
    left as they were.

    Args:
        config: which base, which adapter, which task.
        classes: k, the number of labels (classification only).
        image_shape: (c, h, w) of one image (small nets only).
        unit: the privacy unit of the job. Under `"example"` tensors whose per-sample gradient does not
            exist (embeddings looked up once for the whole batch) stay frozen.
        max_length: longest record in tokens; short ones run faster with eager attention on a CPU.

    Raises:
        ModelError: the base is missing or incomplete, or cannot be adapted in the way asked.
    """
    from securefed.models.loading import load

    return load(config, classes=classes, image_shape=image_shape, unit=unit, max_length=max_length)


def check_available(config: ModelConfig) -> None:
    """Finds the device and the base model's files without loading them.

    Raises:
        ModelError: no such device here, or no such model.
    """
    from securefed.models.loading import find_device
    from securefed.models.zoo import find_model, is_small

    find_device(config.device)
    if not is_small(config.name):
        find_model(config.name)


def load_result(folder: str | Path, *, base: str | None = None, device: str = "auto") -> TaskModel:
    """The trained model in a folder that `TaskModel.save_adapter` wrote.

    Args:
        folder: the result folder.
        base: where its base model is now, if it is no longer under the name it was trained from.
        device: where to put it.

    Raises:
        ModelError: not such a folder, or its base model is not the one it was trained from.
    """
    from securefed.models.result import load_result as load

    return load(Path(folder), base=base, device=device)


def __getattr__(name: str) -> Any:
    if name == "TaskModel":
        from securefed.models.task_model import TaskModel

        return TaskModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
