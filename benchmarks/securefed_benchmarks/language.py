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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import securefed as sf

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


def continued(adapter: Path | None) -> Iterator[str]:
    """The openings and what the model makes of them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from securefed.models.zoo import find_model

    folder = str(find_model("smollm2").folder)
    tokens, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    for opening in OPENINGS:
        given = tokens(opening, return_tensors="pt")
        with torch.no_grad():
            made = model.generate(
                **given, max_new_tokens=WORDS, do_sample=False, pad_token_id=tokens.eos_token_id
            )
        yield str(tokens.decode(made[0][given["input_ids"].shape[1] :]))


def perplexity(rounds: int, private: bool, folder: Path) -> tuple[float, Path]:
    """(of the test mails after the job, its adapter's folder)."""
    result = sf.run(job(rounds, private), folder=folder)
    return result.metrics["perplexity"], result.folder / "adapter"


def untrained() -> float:
    """Perplexity of the test mails under the model as it was downloaded."""
    from securefed.assembly import assemble
    from securefed.config import load_config
    from securefed.training.metrics import evaluate

    assembly = assemble(load_config(job(1, private=False)))
    test = assembly.model.encode(assembly.dataset.test, assembly.config.data.max_length)
    found = evaluate(assembly.model, test, physical_tokens=512, physical_batch=256, classes=0).perplexity
    assert found is not None
    return found


def main() -> None:
    """Prints a Markdown table of perplexities, and one of what the three models write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    samples: Mapping[str, list[str]]
    rows, samples = [("as downloaded", untrained(), 0.0)], {"as downloaded": list(continued(None))}
    with tempfile.TemporaryDirectory() as scratch:
        for name, private in (("fine-tuned, no privacy", False), ("fine-tuned, epsilon 8", True)):
            began = time.process_time()
            value, adapter = perplexity(rounds, private, Path(scratch) / name)
            rows.append((name, value, time.process_time() - began))
            samples[name] = list(continued(adapter))
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
