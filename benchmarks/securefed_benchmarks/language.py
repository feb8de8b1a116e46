"""SmolLM2 fine-tuned on the mails of four sites: what a reader and a perplexity see of it, with and without DP.

The mails of public mailing lists (`spam`) are written in a few habits that the model does not have: quoted
lines, feed items that begin with "URL:", signed messages. Three models continue the same openings, greedily: the one
that was downloaded, one after plain federated LoRA, and one after the same job with one noise for all sites' records (`fedsgd` in masked
sums, epsilon 8 for one record). Perplexity is that of the first test mails of the public split. Each model is a line of JSON as
soon as it is measured, and `--only` plays one, so that the bench can be played in pieces.

    python -m securefed_benchmarks.language [--rounds 10] [--records 48] [--tests 80] [--only before plain private]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import securefed as sf
from securefed.assembly import Assembly, assemble
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
NAMES = {"before": "as downloaded", "plain": "fine-tuned, no privacy", "private": "fine-tuned, epsilon 8"}
MAILS = 4707
"""Training mails of the public split, a public number: sample rates are relative to it."""
WORDS = 28
"""Tokens that each model adds to an opening."""

JOB: dict[str, Any] = {
    "name": "mails",
    "data": {"name": "spam", "clients": 4, "partition": "natural", "max_length": 48},
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


def job(rounds: int, records: int, private: bool) -> dict[str, Any]:
    """Plain FedAvg of one step a round, or the same steps with one noise for all; about `records` mails a step."""
    train: dict[str, Any] = {"steps": 1, "physical_tokens": 512}
    clients = JOB["data"]["clients"]
    if not private:
        return JOB | {
            "rounds": rounds,
            "train": train | {"learning_rate": 1.0, "batch_size": records // clients},
        }
    return JOB | {
        "rounds": rounds,
        "algorithm": "fedsgd",
        "protection": "masking",
        "train": train,
        "privacy": {
            "unit": "example",
            "noise": "skellam",
            "epsilon": 8.0,
            "delta": 1e-5,
            "max_grad_norm": 0.5,
            "sample_rate": round(records / MAILS, 4),
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


def assembled(config: dict[str, Any], tests: int) -> Assembly:
    """The job's parts, with the first `tests` test mails in place of a thousand."""
    found = assemble(load_config(config))
    few = replace(found.dataset, test=found.dataset.test.take(np.arange(tests)))
    return replace(found, dataset=few)


def untrained(parts: Assembly) -> tuple[float, list[str]]:
    """Perplexity of the test mails under the model as it was downloaded, and what it writes."""
    test = parts.model.encode(parts.dataset.test, parts.config.data.max_length)
    found = evaluate(parts.model, test, physical_tokens=512, physical_batch=256, classes=0)
    assert found.perplexity is not None
    return found.perplexity, continued(parts.model)


def trained(parts: Assembly, folder: Path) -> tuple[float, list[str]]:
    """The same after the job."""
    result = sf.run(parts.config, folder=folder, assembly=parts)
    return result.metrics["perplexity"], continued(load_result(result.folder / "adapter", device="cpu"))


def measured(which: str, rounds: int, records: int, tests: int) -> dict[str, Any]:
    """One model's line: perplexity, what it writes, CPU seconds, peak memory of this process so far."""
    began = time.process_time()
    parts = assembled(job(rounds, records, private=which == "private"), tests)
    with tempfile.TemporaryDirectory() as scratch:
        value, made = untrained(parts) if which == "before" else trained(parts, Path(scratch) / which)
    return {
        "model": NAMES[which],
        "perplexity": round(value, 1),
        "cpu_s": round(time.process_time() - began),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "writes": dict(zip(OPENINGS, made, strict=True)),
    }


def main() -> None:
    """Prints a JSON line for each model that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--records", type=int, default=48, help="mails a step, of all clients together")
    parser.add_argument("--tests", type=int, default=80, help="test mails for the perplexity")
    parser.add_argument("--only", nargs="+", choices=[*NAMES], default=[*NAMES])
    asked = parser.parse_args()
    for which in asked.only:
        line = measured(which, asked.rounds, asked.records, asked.tests)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
