"""A DP-LoRA step on MiniLM beside the same step without privacy: our noise, sampling and clipping included.

Both sides see the same number of records of the same length: the private side samples with rate q from
N records (q N expected), the other takes batches of q N. LoRA r=8 on q and v of all layers.

    python -m securefed_benchmarks.dp_step
"""

from __future__ import annotations

import numpy as np

from securefed_benchmarks.timing import alternate, ratio, report

RECORDS, LENGTH, BATCH, STEPS = 256, 64, 32, 4


def main() -> None:
    """Prints one JSON line with the ratio of seconds per record."""
    import torch

    from securefed.config import ModelConfig, TrainConfig
    from securefed.crypto.entropy import SystemEntropy
    from securefed.data.batch import Encoded
    from securefed.models import load_model
    from securefed.training.local import DPWork, LocalWork, train_locally

    torch.set_num_threads(1)
    model = load_model(ModelConfig(adapter="lora"), classes=2, unit="example", max_length=LENGTH)
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(1000, 20_000, LENGTH) for _ in range(RECORDS))
    data = Encoded(tokens=tokens, labels=rng.integers(0, 2, RECORDS))
    start = model.read(model.layout)
    work = LocalWork(client=0, round=0, train=tuple(model.layout.names))
    config = TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=0.1,
        physical_tokens=BATCH * LENGTH * 2,
        cache_frozen=False,
    )
    entropy, seen = SystemEntropy(), {"private": 0, "plain": 0}

    def play(name: str, dp: DPWork | None) -> None:
        known = bool(seen["private"])  # as in every round of a client but its first
        result = train_locally(model, data, start, work, config, dp=dp, entropy=entropy, seed=0, known=known)
        seen[name] += result.examples

    private = DPWork(1.0, 1.0, BATCH / RECORDS, float(BATCH))
    seconds = alternate(
        {"private": lambda: play("private", private), "plain": lambda: play("plain", None)}, repeats=6
    )
    per_record = seen["plain"] / seen["private"]  # Poisson batches differ in size; compare equal work
    pairs = ratio([s * per_record for s in seconds["private"]], seconds["plain"])
    report(
        "DP-LoRA step against the same step without privacy",
        {"ratio": pairs, "plain_s_per_step": round(min(seconds["plain"]) / STEPS, 3)},
    )


if __name__ == "__main__":
    main()
