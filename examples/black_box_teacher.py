"""A teacher that one can only ask labels each client's records; small students are federated on those labels.

    python examples/black_box_teacher.py            # SmolLM2 on this machine stands for an API; a few minutes

No human label is used for training. The teacher runs here, so nothing leaves; a teacher outside would need this site's
`policy.toml` to name it (docs/distillation.md).
"""

import dataclasses
import tempfile
from pathlib import Path

import securefed as sf
from securefed.assembly import Fresh, assemble
from securefed.config import Config, ModelConfig, load_config
from securefed.data.records import Dataset
from securefed.models import load_model
from securefed.teachers import AnswerCache, Labeller, Retries, Spending, Teacher
from securefed.teachers.local import local_teacher

CLASSES = ("negative", "positive")
JOB = {
    "name": "taught",
    "rounds": 5,
    "data": {"name": "sentiment", "clients": 4, "max_length": 32, "limit": 200},
    "model": {"name": "bag", "adapter": "full", "hidden": 32},
    "train": {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 3},
    "evaluate": {"baselines": False},
}


def smollm2() -> Teacher:
    """SmolLM2 by the likelihood of two words."""
    model = load_model(ModelConfig(name="smollm2", task="causal-lm", adapter="lora", rank=1, layers=1))
    words = {"negative": " terrible", "positive": " great"}
    return local_teacher(model, words, "Review: {text}\nAll in all, it was")


class Taught(Fresh):
    """The job's data with the teacher's labels in place of people's."""

    def __init__(self, labeller: Labeller) -> None:
        self.labeller = labeller

    def dataset(self, config: Config) -> Dataset:
        plain = super().dataset(config)
        labels = self.labeller(plain.train.texts or (), private=True).require(0.9)
        return dataclasses.replace(plain, train=labels.put_on(plain.train))


def main(teacher: Teacher | None = None, job: dict[str, object] | None = None, folder: str = "") -> float:
    """Accuracy of the federated student on the test set."""
    teacher = teacher or smollm2()
    kept = AnswerCache(Path(folder or tempfile.mkdtemp()) / "answers", teacher.name, CLASSES)
    labeller = Labeller(
        teacher, CLASSES, kept, retries=Retries(attempts=3), spending=Spending(max_calls=5000)
    )
    config = load_config({**JOB, **(job or {})})
    result = sf.run(config, assembly=assemble(config, Taught(labeller)))
    print(labeller.counts)
    print(f"the student, taught by {teacher.name}: accuracy {result.metrics['accuracy']:.3f}")
    return result.metrics["accuracy"]


if __name__ == "__main__":
    main()
