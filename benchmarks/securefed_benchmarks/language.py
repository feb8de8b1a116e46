"""SmolLM2 fine-tuned on the mails of four sites: what a reader and a perplexity see of it, with and without DP.

The mails of public mailing lists (`spam`, its good half) are written in a few habits that the model does not have: quoted
lines, feed items that begin with "URL:", signed messages. Three models continue the same openings, greedily: the one
that was downloaded, one after plain federated LoRA, and one after the same job with one noise for all sites' records (`fedsgd` in masked
sums, epsilon 8 for one record). Perplexity is that of the test mails, all of them.

    python -m securefed_benchmarks.language [--rounds 12]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import securefed as sf
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.data.batch import Batch
from securefed.models import load_result
from securefed.training.metrics import evaluate

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

OPENINGS = (
    "URL: http://",
    "On Thu, 22 Aug 2002, John wrote:\n",
    "-----BEGIN PGP",
    "I have a problem with my",
)
WORDS = 28
"""Tokens that each model adds to an opening."""

JOB: dict[str, Any] = {
    "name": "mails",
    "data": {"name": "spam", "clients": 4, "partition": "natural", "max_length": 48, "limit": 1200},
    "model": {
        "name": "smollm2",
        "task": "causal-lm",
        "adapter": "lora",
        "rank": 8,
        "alpha": 16.0,
        "layers": 4,
    },
    "server": {"optimizer": "fedadam", "learning_rate": 4e-3, "tau": 1e-6},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
    "engine": {"threads": 1},
}
"""One step a round and A with B: the mean of such updates is exact. Chosen once, not searched."""


def job(rounds: int, private: bool) -> dict[str, Any]:
    """Plain FedAvg of one step a round, or the same steps with one noise for all."""
    train: dict[str, Any] = {"steps": 1, "physical_tokens": 512}
    if not private:
        return JOB | {"rounds": rounds, "train": train | {"learning_rate": 1.0, "batch_size": 16}}
    return JOB | {
        "rounds": rounds,
        "algorithm": "fedsgd",
        "protection": "masking",
        "train": train,
        "privacy": {
            "unit": "example",
            "noise": "skellam",
            "epsilon": 8.0,
            "delta": 1e-4,
            "max_grad_norm": 0.5,
            "sample_rate": 0.06,
        },
    }


def continued(model: TaskModel) -> list[str]:
    """What the model makes of the openings, greedily."""
    import torch

    model.module.eval()
    made = []
    for opening in OPENINGS:
        ids = model.tokenizer(opening, return_tensors="pt")["input_ids"]
        given = ids.shape[1]
        with torch.no_grad():
            for _ in range(WORDS):
                said = model.logits(Batch(ids, torch.ones_like(ids)))[:, -1]
                ids = torch.cat([ids, said.argmax(-1, keepdim=True)], 1)
        made.append(str(model.tokenizer.decode(ids[0, given:])))
    return made


def untrained() -> tuple[float, list[str]]:
    """Perplexity of the test mails under the model as it was downloaded, and what it writes."""
    assembly = assemble(load_config(job(1, private=False)))
    test = assembly.model.encode(assembly.dataset.test, assembly.config.data.max_length)
    found = evaluate(assembly.model, test, physical_tokens=512, physical_batch=256, classes=0)
    assert found.perplexity is not None
    return found.perplexity, continued(assembly.model)


def trained(rounds: int, private: bool, folder: Path) -> tuple[float, list[str]]:
    """The same after the job."""
    result = sf.run(job(rounds, private), folder=folder)
    return result.metrics["perplexity"], continued(load_result(result.folder / "adapter", device="cpu"))


def main() -> None:
    """Prints a Markdown table of perplexities, and one of what the three models write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    value, made = untrained()
    rows, samples = [("as downloaded", value, 0.0)], {"as downloaded": made}
    with tempfile.TemporaryDirectory() as scratch:
        for name, private in (("fine-tuned, no privacy", False), ("fine-tuned, epsilon 8", True)):
            began = time.process_time()
            value, samples[name] = trained(rounds, private, Path(scratch) / name)
            rows.append((name, value, time.process_time() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write = sys.stdout.write
    write("| model | perplexity | CPU s |\n| --- | --- | --- |\n")
    for name, value, seconds in rows:
        write(f"| {name} | {value:.1f} | {seconds:.0f} |\n")
    write(f"\npeak memory {peak:.1f} GiB\n\n| opening | {' | '.join(samples)} |\n" + "| --- " * 4 + "|\n")
    for k, opening in enumerate(OPENINGS):
        cells = (
            repr(text)[1:-1].replace("|", "\\|") for text in (opening, *(s[k] for s in samples.values()))
        )
        write("| " + " | ".join(f"`{cell}`" for cell in cells) + " |\n")


if __name__ == "__main__":
    main()
