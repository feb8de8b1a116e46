"""SmolLM2 fine-tuned on the mails of four sites: what a reader and a perplexity see of it, with and without DP.

The mails of public mailing lists (`spam`, ham alone) are written in a few habits that the model does not have: quoted
lines, feed items that begin with "URL:", signed messages. The model as it was downloaded, the job `configs/smollm2-mails.toml`
without clip and noise, and that job at epsilon 8 and 3 continue the same openings, greedily. `quotes` is the probability that
the first line of an answer begins with ">"; perplexity is that of the test mails. Each model is a line of JSON as soon as it is
measured, and `--only` plays one: what the frozen layers say of the mails is kept on disk for the next.

    python -m securefed_benchmarks.language [--rounds 60] [--records 338] [--mails 3379] [--tests 720] [--seed 0] [--only before plain e8 e3]
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
    "John wrote:\n> I have a problem with my",
    "Hi all,\n",
)
ANSWER = OPENINGS[1]
"""After it a mail quotes what it answers."""
NAMES = {
    "before": "as downloaded",
    "plain": "fine-tuned, no privacy",
    "e8": "fine-tuned, epsilon 8",
    "e3": "fine-tuned, epsilon 3",
}
EPSILON = {"e8": 8.0, "e3": 3.0}
MAILS = 3379
"""Training mails of the public split, a public number: sample rates are relative to it."""
WORDS = 40
"""Tokens that each model adds to an opening."""

JOB: dict[str, Any] = {
    "name": "smollm2-mails",
    "data": {"name": "spam", "clients": 4, "partition": "natural", "max_length": 48},
    "model": {
        "name": "smollm2",
        "task": "causal-lm",
        "adapter": "lora",
        "rank": 4,
        "alpha": 4.0,
        "layers": 1,
        "targets": ["down_proj"],
        "vocabulary_sample": 4096,
    },
    "server": {"optimizer": "fedadam", "learning_rate": 3e-3, "schedule": "linear", "tau": 1e-6},
    "evaluate": {"every": 0, "clients": False},
}
"""One step a round and A with B: the mean of such updates is exact. What was tried beside it is in docs/recipes.md."""
HERE: dict[str, Any] = {
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
    "engine": {"threads": 1},
}


def job(rounds: int, records: int, epsilon: float | None, mails: int = MAILS) -> dict[str, Any]:
    """Plain FedAvg of one step a round, or the same steps clipped, with one noise for all.

    Args:
        records: mails a step, about. epsilon: None for neither clip nor noise. mails: to train on, all by default.
    """
    found = JOB if mails >= MAILS else JOB | {"data": JOB["data"] | {"limit": mails}}
    if epsilon is None:
        train = {"steps": 1, "learning_rate": 1.0, "batch_size": records // JOB["data"]["clients"]}
        return found | {"rounds": rounds, "train": train}
    return found | {
        "rounds": rounds,
        "algorithm": "fedsgd",
        "protection": {"name": "masking", "min_survivors": JOB["data"]["clients"]},
        "train": {"steps": 1},
        "privacy": {
            "unit": "example",
            "noise": "skellam",
            "epsilon": epsilon,
            "delta": 1e-5,
            "max_grad_norm": 0.1,
            "sample_rate": round(records / min(mails, MAILS), 3),
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


def quotes(model: TaskModel) -> float:
    """The probability that what follows `ANSWER` begins with ">"."""
    import torch

    model.module.eval()
    ids = model.tokenizer(ANSWER, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model.logits(Batch(ids, torch.ones_like(ids)))[0, -1].softmax(-1)
    marks = [i for word, i in model.tokenizer.get_vocab().items() if word.startswith(">")]
    return float(said[marks].sum())


def assembled(config: dict[str, Any], tests: int) -> Assembly:
    """The job's parts, with the first `tests` test mails in place of a thousand."""
    found = assemble(load_config(config | HERE))
    few = replace(found.dataset, test=found.dataset.test.take(np.arange(min(tests, len(found.dataset.test)))))
    return replace(found, dataset=few)


def untrained(parts: Assembly) -> tuple[float, TaskModel]:
    """Perplexity of the test mails under the model as it was downloaded, and the model."""
    train = parts.config.train
    test = parts.model.encode(parts.dataset.test, parts.config.data.max_length)
    found = evaluate(
        parts.model,
        test,
        physical_tokens=train.physical_tokens,
        physical_batch=train.physical_batch,
        classes=0,
    )
    assert found.perplexity is not None
    return found.perplexity, parts.model


def trained(parts: Assembly, folder: Path) -> tuple[float, TaskModel]:
    """The same after the job."""
    result = sf.run(parts.config, folder=folder, assembly=parts)
    return result.metrics["perplexity"], load_result(result.folder / "adapter", device="cpu")


def measured(which: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One model's line: perplexity, habit, what it writes, CPU seconds, peak memory of this process so far."""
    began = time.process_time()
    wanted = job(asked.rounds, asked.records, EPSILON.get(which), asked.mails)
    parts = assembled(wanted | {"seed": asked.seed}, asked.tests)
    with tempfile.TemporaryDirectory() as scratch:
        value, model = untrained(parts) if which == "before" else trained(parts, Path(scratch) / which)
    return {
        "model": NAMES[which],
        "mails": min(asked.mails, MAILS),
        "seed": asked.seed,
        "perplexity": round(value, 2),
        "quotes": round(quotes(model), 4),
        "cpu_s": round(time.process_time() - began),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        "writes": dict(zip(OPENINGS, continued(model), strict=True)),
    }


def main() -> None:
    """Prints a JSON line for each model that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--records", type=int, default=338, help="mails a step, of all clients together")
    parser.add_argument("--mails", type=int, default=MAILS, help="mails to train on, drawn by the job's seed")
    parser.add_argument("--tests", type=int, default=720, help="test mails for the perplexity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*NAMES], default=[*NAMES])
    asked = parser.parse_args()
    for which in asked.only:
        line = measured(which, asked)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
