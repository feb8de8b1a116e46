"""What a language model fine-tuned on mails gives away: membership of mails, exposure of secrets, texts it recites.

SmolLM2 with LoRA learns mails among which secrets of one format stand 1, 4 or 16 times (as `secret_exposure`, smaller).
Then: loss, Min-K%, Min-K%++ and the reference attack on those mails beside as many others of the same source; the secrets' exposure; and
extraction: texts sampled after the format's first words, ranked, held against the secrets that were shown.

    python -m securefed_benchmarks.language_leaks [--steps 30] [--dp]     # several CPU minutes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from securefed_attacks.extraction import Sampling, rank_texts, sample_texts
from securefed_attacks.language_membership import (
    loss_score,
    min_k,
    min_k_plus_plus,
    reference,
    token_scores,
)
from securefed_attacks.secret_sharer import SecretFormat, exposures, text_losses
from securefed_attacks.statistics import auc, auc_interval
from securefed_benchmarks.timing import report

FORMAT = SecretFormat()
MAILS, REFERENCES, EACH, LENGTH, BATCH = 64, 127, 2, 24, 8
INSERTIONS = (1, 4, 16)
SAMPLES, LOOKED_AT = 100, 20


@dataclass(frozen=True, eq=False)
class Corpus:
    """Mails that are learnt and that are not, secrets by how often they stand among them, and secrets never shown."""

    members: tuple[str, ...] = field(repr=False)
    others: tuple[str, ...] = field(repr=False)
    shown: Mapping[int, tuple[str, ...]] = field(repr=False)
    unseen: tuple[str, ...] = field(repr=False)

    @property
    def training(self) -> tuple[str, ...]:
        secrets = [s for times, some in self.shown.items() for s in some for _ in range(times)]
        return (*self.members, *secrets)


def corpus(seed: int) -> Corpus:
    """Mails and secrets, drawn."""
    from securefed.config import DataConfig
    from securefed.data import load_dataset

    generator = np.random.default_rng(seed)
    mails = load_dataset(DataConfig(name="spam"), task="causal-lm").train.texts
    assert mails is not None
    unique = sorted({m for m in mails if len(m) > 80})
    chosen = [unique[i] for i in generator.choice(len(unique), 2 * MAILS, replace=False)]
    drawn = FORMAT.draw(EACH * len(INSERTIONS) + REFERENCES, generator)
    shown = {times: drawn[k * EACH : (k + 1) * EACH] for k, times in enumerate(INSERTIONS)}
    return Corpus(tuple(chosen[:MAILS]), tuple(chosen[MAILS:]), shown, drawn[EACH * len(INSERTIONS) :])


def learnt(model: Any, texts: Sequence[str], steps: int, seed: int, noise: float = 0.0) -> None:
    """Fine-tunes from where the model stands; with noise, each record's gradient is clipped and the sum noised."""
    from securefed.config import TrainConfig
    from securefed.crypto.entropy import SystemEntropy
    from securefed.data.records import Examples
    from securefed.training.dp import DPWork
    from securefed.training.local import LocalWork, train_locally

    encoded = model.encode(Examples(texts=tuple(texts)), LENGTH)
    dp = DPWork(noise, 0.1, BATCH / len(encoded), BATCH) if noise else None
    config = TrainConfig(optimizer="adamw", learning_rate=2e-3, steps=steps, batch_size=BATCH)
    work = LocalWork(0, 0, tuple(model.layout.names))
    result = train_locally(
        model, encoded, model.read(model.layout), work, config, dp=dp, entropy=SystemEntropy(), seed=seed
    )
    model.write(result.vector, model.layout)


def scored(model: Any, texts: Sequence[str]) -> Any:
    """`TokenScores` of the first LENGTH tokens of each text."""
    net, tokenizer = model.module.backbone.eval(), model.tokenizer
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    both = tokenizer(list(texts), truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    parts = []
    with torch.no_grad():
        for ids, mask in zip(both["input_ids"].split(8), both["attention_mask"].split(8), strict=True):
            parts.append(token_scores(net(input_ids=ids, attention_mask=mask).logits, ids, mask))
    return type(parts[0])(
        *(torch.cat([getattr(p, n) for p in parts]) for n in ("log_probability", "mean", "spread", "mask"))
    )


def rows(steps: int, seed: int, private: bool) -> Iterator[dict[str, Any]]:
    """One row for each attack on the model as it was, fine-tuned and, if asked, fine-tuned under DP."""
    from securefed.config import ModelConfig
    from securefed.models import load_model
    from securefed.privacy.calibration import calibrate_noise

    data = corpus(seed)
    model = load_model(
        ModelConfig(name="smollm2", task="causal-lm", adapter="lora", rank=8), max_length=LENGTH
    )
    start = model.read(model.layout)
    both, inside = (*data.members, *data.others), np.arange(2 * MAILS) < MAILS
    before = scored(model, both)
    noise = calibrate_noise(8.0, 1e-3, BATCH / len(data.training), steps) if private else 0.0
    for name, sigma in (("before", None), ("fine-tuned", 0.0), ("DP epsilon 8", noise)):
        if name.startswith("DP") and not private:
            continue
        began = time.process_time()
        model.write(start, model.layout)
        if sigma is not None:
            learnt(model, data.training, steps, seed, sigma)
        after = scored(model, both)
        attacks = {"loss": loss_score, "min_k": min_k, "min_k++": min_k_plus_plus}
        values = {k: f(after).numpy() for k, f in attacks.items()}
        if sigma is not None:
            values["reference"] = reference(after, before).numpy()
        for attack, score in values.items():
            found = auc_interval(score, inside)
            yield {"model": name, "attack": attack, "auc": _near(found.value, found.low, found.high)}
        yield {"model": name, **exposed(model, data), "loss": float(-loss_score(after)[:MAILS].mean())}
        if sigma is not None:
            yield {"model": name, **extracted(model, start, data, seed)}
        yield {"model": name, "cpu_s": round(time.process_time() - began)}


def exposed(model: Any, data: Corpus) -> dict[str, Any]:
    """Mean exposure in bits by rank, and fitted, for each number of insertions."""
    references = text_losses(model, data.unseen, LENGTH)
    found = {n: exposures(text_losses(model, some, LENGTH), references) for n, some in data.shown.items()}
    return {
        f"exposure, shown {n} times": [
            round(float(np.mean([e.bits for e in some])), 1),
            round(float(np.mean([e.fitted for e in some])), 1),
        ]
        for n, some in found.items()
    }


def extracted(model: Any, start: Any, data: Corpus, seed: int) -> dict[str, Any]:
    """How many of the shown secrets are recited, and how many stand among the first of each order."""
    opening = FORMAT.text.split("{}")[0].strip()
    sampling = Sampling(count=SAMPLES, length=20, top_k=10, batch=50, seed=seed)
    sampled = sample_texts(model.module.backbone.eval(), model.tokenizer, [opening], sampling)
    secrets = [s for some in data.shown.values() for s in some]
    recited = np.array([any(s in " ".join(t.split()) for s in secrets) for t in sampled.texts])
    orders = dict(rank_texts(model.module.backbone, model.tokenizer, sampled))
    trained = model.read(model.layout)
    model.write(start, model.layout)
    own = rank_texts(model.module.backbone, model.tokenizer, sampled)["perplexity"]
    model.write(trained, model.layout)
    orders["reference"] = own / orders["perplexity"]
    found = {s for s in secrets if any(s in " ".join(t.split()) for t in sampled.texts)}
    facts: dict[str, Any] = {
        "different_texts": len(sampled.texts),
        "secrets_recited": f"{len(found)}/{len(secrets)}",
        "texts_with_one": int(recited.sum()),
    }
    if 0 < recited.sum() < len(recited):
        for name, score in orders.items():
            first = np.argsort(-score)[:LOOKED_AT]
            facts[name] = {
                "auc": round(auc(score, recited), 3),
                f"in_first_{LOOKED_AT}": int(recited[first].sum()),
            }
    return facts


def _near(*values: float) -> list[float]:
    return [round(v, 3) for v in values]


def main() -> None:
    """Prints one JSON line per row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dp", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows(asked.steps, asked.seed, asked.dp):
        report("language leaks", row)


if __name__ == "__main__":
    main()
