"""The bench of mails plays the job that ships, without its clip and noise too, and knows a quoted line when it sees one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from securefed.config import load_config
from securefed_benchmarks import language as bench

SHIPPED = Path(__file__).parents[2] / "configs" / "smollm2-mails.toml"


def test_the_private_job_is_the_one_that_ships() -> None:
    assert load_config(bench.job(60, 338, 8.0)) == load_config(SHIPPED)


def test_the_plain_job_differs_in_clip_and_noise_alone() -> None:
    plain, private = (load_config(bench.job(60, 338, epsilon)) for epsilon in (None, 8.0))
    assert not plain.private
    assert plain.train.batch_size * 4 == pytest.approx(private.privacy.sample_rate * bench.MAILS, rel=0.02)
    same = {"model": private.model, "data": private.data, "server": private.server, "rounds": private.rounds}
    assert replace(plain, **same) == plain  # type: ignore[arg-type]  # the fields' own values


class Speaker:
    """Answers with one sign: its logits put nearly all weight on it."""

    signs = ("a", ">", ">>", "b")

    def __init__(self, sign: int) -> None:
        self.module = torch.nn.Identity()
        self.sign = sign
        self.tokenizer: Any = self

    def __call__(self, text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(1, len(text), dtype=torch.long)}

    def get_vocab(self) -> dict[str, int]:
        return {s: i for i, s in enumerate(self.signs)}

    def decode(self, ids: torch.Tensor) -> str:
        return "".join(self.signs[i] for i in ids.tolist())

    def logits(self, batch: Any) -> torch.Tensor:
        said = torch.zeros(*batch.input_ids.shape, len(self.signs))
        said[..., self.sign] = 20.0
        return said


def test_a_model_that_quotes_is_told_from_one_that_does_not() -> None:
    quoting, other = Speaker(2), Speaker(3)
    assert bench.quotes(quoting) > 0.99  # type: ignore[arg-type]  # all that the bench asks of a model
    assert bench.quotes(other) < 0.01  # type: ignore[arg-type]  # as above
    assert bench.continued(quoting) == [">>" * bench.WORDS] * len(bench.OPENINGS)  # type: ignore[arg-type]  # as above


def test_every_model_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    jobs: list[dict[str, Any]] = []

    def parts(config: dict[str, Any], tests: int) -> Any:
        jobs.append(config)
        return SimpleNamespace(tests=tests)

    monkeypatch.setattr(bench, "assembled", parts)
    monkeypatch.setattr(bench, "untrained", lambda _: (68.7, Speaker(0)))
    monkeypatch.setattr(bench, "trained", lambda *_: (50.0, Speaker(1)))
    monkeypatch.setattr("sys.argv", ["language", "--only", "before", "plain", "e3", "--seed", "2"])
    bench.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(x["model"], x["perplexity"]) for x in lines] == [
        ("as downloaded", 68.7),
        ("fine-tuned, no privacy", 50.0),
        ("fine-tuned, epsilon 3", 50.0),
    ]
    assert [j.get("privacy", {}).get("epsilon") for j in jobs] == [None, None, 3.0]
    assert {j["seed"] for j in jobs} == {2}
