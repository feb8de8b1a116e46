"""How far SmolLM2 exposes secrets among mails it is fine-tuned on, with and without example-level DP.

Secrets of one format stand among 160 mails, each 1, 4 or 16 times (Carlini et al. 2019 plot exposure over
insertions). Their losses are ranked among 1,000 secrets that were not shown: before training, after training,
and after training under DP at epsilon 8 for one record; a secret that is there 16 times is 16 records, and
nothing is promised for those at that epsilon.

    python -m securefed_benchmarks.secret_exposure [--steps 60]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from securefed.config import DataConfig, ModelConfig, TrainConfig
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset
from securefed.data.records import Examples
from securefed.models import load_model
from securefed.models.task_model import TaskModel
from securefed.privacy.calibration import calibrate_noise
from securefed.training.dp import DPWork
from securefed.training.local import LocalWork, train_locally
from securefed_attacks.secret_sharer import Exposure, SecretFormat, exposures, text_losses

MAILS, LENGTH, BATCH, REFERENCES, EACH = 160, 32, 16, 1000, 3
INSERTIONS = (1, 4, 16)
EPSILON, DELTA, CLIP = 8.0, 1e-3, 0.1


def records(
    generator: np.random.Generator,
) -> tuple[tuple[str, ...], Mapping[int, tuple[str, ...]], tuple[str, ...]]:
    """(what is trained on, insertions -> the secrets with so many, secrets that are not shown)."""
    mails = load_dataset(DataConfig(name="spam"), task="causal-lm").train.texts
    assert mails is not None
    chosen = [mails[i] for i in generator.choice(len(mails), MAILS, replace=False)]
    drawn = SecretFormat().draw(EACH * len(INSERTIONS) + REFERENCES, generator)
    shown = {times: drawn[k * EACH : (k + 1) * EACH] for k, times in enumerate(INSERTIONS)}
    repeated = [text for times, texts in shown.items() for text in texts for _ in range(times)]
    return (*chosen, *repeated), shown, drawn[EACH * len(INSERTIONS) :]


def train(model: TaskModel, texts: tuple[str, ...], steps: int, private: bool) -> float:
    """Trains from where the model stands; the noise multiplier it took."""
    encoded = model.encode(Examples(texts=texts), LENGTH)
    rate, noise = BATCH / len(encoded), 0.0
    dp = None
    if private:
        noise = calibrate_noise(EPSILON, DELTA, rate, steps)
        dp = DPWork(noise, CLIP, rate, BATCH)
    config = TrainConfig(optimizer="adamw", learning_rate=2e-3, steps=steps, batch_size=BATCH)
    work = LocalWork(0, 0, tuple(model.layout.names))
    start = model.read(model.layout)
    result = train_locally(model, encoded, start, work, config, dp=dp, entropy=SystemEntropy(), seed=0)
    model.write(result.vector, model.layout)
    return noise


def rows(steps: int, seed: int) -> Iterator[str]:
    """One Markdown row a setting: mean exposure by rank, and fitted, for each number of insertions."""
    texts, shown, others = records(np.random.default_rng(seed))
    config = ModelConfig(name="smollm2", task="causal-lm", adapter="lora", rank=8)
    model = load_model(config, max_length=LENGTH)
    start = model.read(model.layout)
    yield f"| model | {' | '.join(f'shown {n} times' for n in INSERTIONS)} | most by rank | noise multiplier | CPU s |"
    yield "| --- |" + " --- |" * (len(INSERTIONS) + 3)
    for name in ("before", "fine-tuned", f"fine-tuned, DP epsilon {EPSILON:g}"):
        began, noise = time.process_time(), 0.0
        model.write(start, model.layout)
        if name != "before":
            noise = train(model, texts, steps, private="DP" in name)
        references = text_losses(model, others, LENGTH)
        found = {n: exposures(text_losses(model, some, LENGTH), references) for n, some in shown.items()}
        cells = " | ".join(_cell(found[n]) for n in INSERTIONS)
        most = found[1][0].most
        yield f"| {name} | {cells} | {most:.2f} | {noise:.2f} | {time.process_time() - began:.0f} |"


def _cell(found: tuple[Exposure, ...]) -> str:
    return f"{np.mean([e.bits for e in found]):.1f} ({np.mean([e.fitted for e in found]):.1f})"


def main() -> None:
    """Prints the table as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for line in rows(asked.steps, asked.seed):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
