"""What a DP step on MiniLM costs: with frozen layers cached or not, and beside Opacus on the whole model.

Short texts of unequal length, as reviews and messages are (10 to 48 tokens), the same for all; CPU seconds per
record, in turn in one process. Ours is the client's whole step: secret sampling, batches sorted by length,
clipping in float64, cryptographic noise. Opacus' is its own loop as its users write it, in float32: batches
padded to their longest record, attention as the library picks it; the same adapters as ours (so the same releases and
the same accuracy), LoRA in all layers, or all weights: beside adapters on cached states, and beside the very same
weights by ghost clipping, in steps of 256 records of which Opacus holds 16 rows at a time.

    python -m securefed_benchmarks.step_cost
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed_benchmarks.make_private_step import classifier, engine, in_parts, lora
from securefed_benchmarks.timing import per_record, ratio, report

if TYPE_CHECKING:
    import torch

    from securefed.config import ModelConfig
    from securefed.data.batch import Encoded
    from securefed.training.frozen_cache import FrozenCache

RECORDS, BATCH, STEPS, REPEATS, SHORTEST, LONGEST = 128, 16, 2, 3, 10, 48
WHOLE_RECORDS, WHOLE_BATCH = 512, 256
"""Where all weights are trained: their noise is drawn once a step, so a step must be as large as those that learn."""

Play = Callable[[], int]
"""Some steps; gives how many records they met."""


def main() -> None:
    """Prints one JSON line: CPU milliseconds per record of each way, and the ratios that matter."""
    import torch

    torch.set_num_threads(1)
    data, many = records(RECORDS), records(WHOLE_RECORDS)
    plays = {
        f"top {k} {'cached' if c else 'uncached'}": ours(data, k, c) for k in (2, 3) for c in (True, False)
    }
    plays |= {f"opacus lora top {k}": opacus(data, lora(range(6 - k, 6))) for k in (2, 3)}
    plays |= {"opacus lora": opacus(data, lora()), "opacus full": opacus(data, whole())}
    cost = per_record(plays, REPEATS)
    whole_cost = per_record({"ghost": ours_whole(many), "opacus": opacus_whole(many)}, REPEATS)
    report(
        "DP step on MiniLM, LoRA in the top layers on cached states",
        {
            "cpu_ms_per_record": {name: round(1e3 * min(found), 2) for name, found in cost.items()},
            "cache_at_2": ratio(cost["top 2 uncached"], cost["top 2 cached"]),
            "cache_at_3": ratio(cost["top 3 uncached"], cost["top 3 cached"]),
            "opacus_same_adapters_over_top_2": ratio(cost["opacus lora top 2"], cost["top 2 cached"]),
            "opacus_same_adapters_over_top_3": ratio(cost["opacus lora top 3"], cost["top 3 cached"]),
            "opacus_full_over_top_2": ratio(cost["opacus full"], cost["top 2 cached"]),
            "opacus_full_over_top_3": ratio(cost["opacus full"], cost["top 3 cached"]),
            "opacus_lora_over_top_2": ratio(cost["opacus lora"], cost["top 2 cached"]),
            "all_weights_cpu_ms_per_record": {
                n: round(1e3 * min(found), 2) for n, found in whole_cost.items()
            },
            "opacus_full_over_the_same_by_ghost": ratio(whole_cost["opacus"], whole_cost["ghost"]),
        },
    )


def records(n: int) -> Encoded:
    """Random tokens of random length with random labels; what they say does not change the cost."""
    from securefed.data.batch import Encoded

    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, n)
    tokens = tuple(rng.integers(1000, 20_000, length) for length in lengths)
    return Encoded(tokens=tokens, labels=rng.integers(0, 2, n))


def ours(data: Encoded, layers: int, cached: bool) -> Play:
    """A client's private steps with LoRA on query and value of the top layers."""
    from securefed.config import ModelConfig
    from securefed.training.frozen_cache import FrozenCache

    return private_steps(
        data,
        ModelConfig(adapter="lora", layers=layers),
        BATCH,
        STEPS,
        cache=FrozenCache() if cached else None,
    )


def ours_whole(data: Encoded) -> Play:
    """A client's private step on the weights of all six layers and a head, by ghost clipping."""
    from securefed.config import ModelConfig

    layers = ModelConfig(adapter="full", layers=tuple(range(6)))
    return private_steps(data, layers, WHOLE_BATCH, 1, mode="ghost")


def private_steps(
    data: Encoded,
    what: ModelConfig,
    batch: int,
    steps: int,
    mode: str = "hooks",
    cache: FrozenCache | None = None,
) -> Play:
    """A client's private steps of so many expected records each."""
    from securefed.config import TrainConfig
    from securefed.crypto.entropy import SystemEntropy
    from securefed.models import load_model
    from securefed.training.local import DPWork, LocalWork, train_locally

    model = load_model(what, classes=2, unit="example", max_length=LONGEST)
    start = model.read(model.layout)
    work = LocalWork(client=0, round=0, train=tuple(model.layout.names))
    config = TrainConfig(steps=steps, learning_rate=0.1)
    dp = DPWork(1.0, 1.0, batch / len(data), float(batch), mode)

    def play() -> int:
        found = train_locally(
            model, data, start, work, config, dp=dp, entropy=SystemEntropy(), seed=0, cache=cache
        )
        return found.examples

    return play


def opacus_whole(data: Encoded) -> Play:
    """The same weights through Opacus' PrivacyEngine, a step in physical batches as its memory manager deals them."""
    step, optimizer, batches = private_loop(data, whole(), WHOLE_BATCH)

    def play() -> int:
        seen = 0
        with in_parts(batches, optimizer, BATCH) as parts:
            for (rows,) in parts:
                seen += step(rows)
                if not optimizer._is_last_step_skipped:  # a whole step is done
                    return seen
        return seen

    return play


def opacus(data: Encoded, model: Any) -> Play:
    """The same number of expected records through Opacus' PrivacyEngine."""
    step, _, batches = private_loop(data, model, BATCH)

    def play() -> int:
        return sum(step(rows) for (rows,), _ in zip(batches, range(STEPS), strict=False))

    return play


def private_loop(data: Encoded, model: Any, batch: int) -> tuple[Callable[[Any], int], Any, Any]:
    """(what trains on one batch of rows and gives how many they were, optimizer, loader), as Opacus' users write it."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from securefed.data.batch import collate

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    loader: Any = DataLoader(TensorDataset(torch.arange(len(data))), batch_size=batch, shuffle=True)
    wrapped, optimizer, batches = engine(model, torch.optim.SGD(trained, lr=0.1), loader)

    def step(rows: torch.Tensor) -> int:
        optimizer.zero_grad()
        batch = collate(data, rows.numpy())
        scores = wrapped(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert batch.labels is not None
        loss: Any = torch.nn.functional.cross_entropy(scores, batch.labels)
        loss.backward()
        optimizer.step()
        return len(rows)

    return step, optimizer, batches


def whole() -> torch.nn.Module:
    """MiniLM with all six layers and the classifier trained; embeddings frozen, whose rows would be 47 MiB a record."""
    model: torch.nn.Module = classifier()
    for name, p in model.named_parameters():
        p.requires_grad_("embeddings" not in name)
    return model


if __name__ == "__main__":
    main()
