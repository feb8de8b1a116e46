"""A DP-LoRA step on MiniLM beside the same step without privacy: our noise, sampling and clipping included.

All see records of the same length: the private sides sample with rate q from N records (q N expected), the other takes
batches of q N; seconds per record. LoRA r=8 on q and v of all layers; gradients by Opacus' hooks and by ghost clipping.

    python -m securefed_benchmarks.dp_step
"""

from __future__ import annotations

import numpy as np

from securefed_benchmarks.timing import ratio, report

RECORDS, LENGTH, BATCH, STEPS, REPEATS = 256, 64, 32, 4, 6


def main() -> None:
    """Prints one JSON line with the ratios of CPU seconds per record."""
    import time

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
    entropy, ways = SystemEntropy(), ("hooks", "ghost", None)
    cost: dict[str | None, list[float]] = {way: [] for way in ways}
    for repeat in range(REPEATS + 1):
        for way in ways:
            dp = None if way is None else DPWork(1.0, 1.0, BATCH / RECORDS, float(BATCH), way)
            began = time.process_time()
            known = repeat > 0  # as in every round of a client but its first
            result = train_locally(
                model, data, start, work, config, dp=dp, entropy=entropy, seed=0, known=known
            )
            if repeat:  # the first of each warms up
                cost[way].append((time.process_time() - began) / result.examples)
    report(
        "DP-LoRA step against the same step without privacy",
        {
            "hooks": ratio(cost["hooks"], cost[None]),
            "ghost": ratio(cost["ghost"], cost[None]),
            "cpu_ms_per_record": {str(way): round(1e3 * min(found), 2) for way, found in cost.items()},
        },
    )


if __name__ == "__main__":
    main()
