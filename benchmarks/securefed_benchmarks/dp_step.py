"""A DP-LoRA step on MiniLM beside the same step without privacy: our noise, sampling and clipping included.

All see records of the same length: the private sides sample with rate q from N records (q N expected), the other takes
batches of q N; seconds per record. LoRA r=8 on q and v of all layers; gradients by Opacus' hooks and by ghost clipping.

    python -m securefed_benchmarks.dp_step
"""

from __future__ import annotations

from functools import partial

import numpy as np

from securefed_benchmarks.timing import per_record, ratio, report

RECORDS, LENGTH, BATCH, STEPS, REPEATS = 256, 64, 32, 4, 6


def main() -> None:
    """Prints one JSON line with the ratios of CPU seconds per record."""
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
    entropy, known = SystemEntropy(), False

    def play(mode: str | None) -> int:
        nonlocal known
        dp = None if mode is None else DPWork(1.0, 1.0, BATCH / RECORDS, float(BATCH), mode)
        found = train_locally(model, data, start, work, config, dp=dp, entropy=entropy, seed=0, known=known)
        known = True  # as in every round of a client but its first
        return found.examples

    plays = {"hooks": partial(play, "hooks"), "ghost": partial(play, "ghost"), "plain": partial(play, None)}
    cost = per_record(plays, REPEATS)
    report(
        "DP-LoRA step against the same step without privacy",
        {
            "hooks": ratio(cost["hooks"], cost["plain"]),
            "ghost": ratio(cost["ghost"], cost["plain"]),
            "cpu_ms_per_record": {way: round(1e3 * min(found), 2) for way, found in cost.items()},
        },
    )


if __name__ == "__main__":
    main()
