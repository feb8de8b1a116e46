"""A Hugging Face `Trainer` script, made private: `Trainer` becomes `sf.PrivateTrainer` with epsilon and delta.

    python examples/hf_trainer.py

Fine-tunes MiniLM with LoRA on mails, spam or not (both fetched by `make install`), with epsilon = 8 per
mail; the training arguments are the usual ones. Short, to show the way and not a score.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import securefed as sf
from securefed.config import DataConfig
from securefed.data import load_dataset
from securefed.models.zoo import find_model


def main(records: int = 1000, steps: int = 20, held_out: int = 200) -> float:
    """Trains, prints the privacy statement, and gives the accuracy on mails held out."""
    mails = load_dataset(DataConfig(name="spam"))
    folder = find_model("minilm").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: Any, labels: Any) -> list[dict[str, Any]]:
        found = tokenizer(list(texts), truncation=True, max_length=32)
        return [
            {"input_ids": i, "attention_mask": m, "labels": int(y)}
            for i, m, y in zip(found["input_ids"], found["attention_mask"], labels, strict=True)
        ]

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    order = np.random.default_rng(0)
    train = mails.train.take(order.permutation(len(mails.train))[:records])
    test = mails.test.take(order.permutation(len(mails.test))[:held_out])
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    with tempfile.TemporaryDirectory() as output:
        trainer = sf.PrivateTrainer(
            model,
            TrainingArguments(
                output,
                per_device_train_batch_size=32,
                gradient_accumulation_steps=2,
                max_steps=steps,
                learning_rate=5e-3,
                max_grad_norm=1.0,
                lr_scheduler_type="linear",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=encode(train.texts, train.labels),
            eval_dataset=encode(test.texts, test.labels),
            processing_class=tokenizer,
            compute_metrics=accuracy,
            epsilon=8.0,
            delta=1e-4,
            data_id="spam-train",
        )
        trainer.train()
        found = trainer.evaluate()
    assert trainer.private is not None
    print(trainer.private.statement().text())
    majority = float(np.bincount(np.asarray(test.labels)).max() / len(test))
    print(f"accuracy {found['eval_accuracy']:.3f} (majority {majority:.3f})")
    return float(found["eval_accuracy"])


if __name__ == "__main__":
    main()
