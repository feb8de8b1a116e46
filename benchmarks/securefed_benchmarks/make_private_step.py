"""What `make_private` costs over Opacus' own loop: the same LoRA on MiniLM, the same data, the same Poisson rate.

Both sides draw Poisson batches of 32 expected from 256 records of 64 tokens (by default), one epoch (8 steps) a
repeat, in turn in one process; CPU seconds per record, so that unequal batches compare. Ours includes the
ledger, keyed noise and clipping in float64; the step-one check falls into the warm-up.

    python -m securefed_benchmarks.make_private_step [--records 256] [--length 64] [--repeats 6]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from securefed_benchmarks.timing import per_record, ratio, report

if TYPE_CHECKING:
    import torch

RECORDS, LENGTH, BATCH, REPEATS = 256, 64, 32, 6


def classifier() -> Any:
    """MiniLM with a classifier, the same every time."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from securefed.models.quiet import quiet
    from securefed.models.zoo import find_model

    torch.manual_seed(0)
    with quiet():
        return AutoModelForSequenceClassification.from_pretrained(find_model("minilm").folder, num_labels=2)


def lora(layers: Sequence[int] | None = None) -> Any:
    """The same with LoRA of rank 8 on q and v of these layers, all by default."""
    from peft import LoraConfig, get_peft_model

    where = None if layers is None else list(layers)
    return get_peft_model(
        classifier(),
        LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"], layers_to_transform=where),
    )


def main() -> None:
    """Prints one JSON line with the ratio of CPU seconds per record."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    tokens = torch.randint(1000, 20_000, (wanted.records, wanted.length))
    data = TensorDataset(tokens, torch.randint(0, 2, (wanted.records,)))
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["SECUREFED_HOME"] = home
        variants = {"ours": ours(loader, wanted.repeats + 1), "opacus": opacus(loader)}
        cost = per_record(variants, wanted.repeats)
    report(
        "make_private against Opacus' own loop on MiniLM LoRA",
        {
            "ratio": ratio(cost["ours"], cost["opacus"]),
            "opacus_cpu_ms_per_record": round(1e3 * min(cost["opacus"]), 2),
            "ours_cpu_ms_per_record": round(1e3 * min(cost["ours"]), 2),
        },
    )


def ours(loader: Any, epochs: int) -> Callable[[], int]:
    """One epoch of the private loop; gives the number of records that it met."""
    import securefed as sf

    model = lora()
    private = sf.make_private(
        model,
        _adam(model),
        loader,
        noise_multiplier=1.0,
        delta=1e-5,
        max_grad_norm=1.0,
        epochs=epochs,
        data_id="benchmark",
    )
    return lambda: _epoch(private.model, private.optimizer, private.loader)


def opacus(loader: Any) -> Callable[[], int]:
    """The same through Opacus' PrivacyEngine as its users call it."""
    model = lora().train()
    wrapped, optimizer, batches = engine(model, _adam(model), loader)
    return lambda: _epoch(wrapped, optimizer, batches)


def engine(model: Any, optimizer: torch.optim.Optimizer, loader: Any) -> tuple[Any, Any, Any]:
    """Model, optimizer and Poisson loader as Opacus' PrivacyEngine gives them, noise and clip 1."""
    from opacus import PrivacyEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # secure_mode is off, as it says
        found: tuple[Any, Any, Any] = PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
        )
    return found


def in_parts(batches: Any, optimizer: Any, rows: int) -> AbstractContextManager[Any]:
    """The loader's batches in parts of at most so many rows, as Opacus' memory manager deals them."""
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    found: AbstractContextManager[Any] = BatchMemoryManager(
        data_loader=batches, max_physical_batch_size=rows, optimizer=optimizer
    )
    return found


def _adam(model: Any) -> torch.optim.Optimizer:
    import torch

    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def _epoch(model: Any, optimizer: Any, batches: Any) -> int:
    import torch

    seen = 0
    for x, y in batches:
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.cross_entropy(model(input_ids=x).logits, y)
        loss.backward()
        optimizer.step()
        seen += len(x)
    return seen


if __name__ == "__main__":
    main()
