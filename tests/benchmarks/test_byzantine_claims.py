"""The benchmark of the claims: its gradients, its intervals, and that it never plays a run twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from securefed_benchmarks import byzantine_claims as bench
from securefed_benchmarks.fashion import Net, gradients

CONFIG = Path(__file__).parents[2] / "benchmarks" / "configs" / "byzantine.toml"


def test_written_out_gradients_are_those_of_torch() -> None:
    net, generator = Net(16), torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 784, generator=generator)
    y = torch.randint(0, 10, (3, 5), generator=generator)
    model = net.first(1)
    assert torch.allclose(
        gradients(net, model, x, y), vmap(grad(net.loss), (None, 0, 0))(model, x, y), atol=1e-6
    )


def test_an_interval_is_students() -> None:
    mean, half = bench.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert bench.interval([0.0, 2.0] * 6)[1] == pytest.approx(2.201 * (12 / 11) ** 0.5 / 12**0.5, rel=1e-3)


def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []

    def play(job: Any, case: bench.Case) -> dict[str, Any]:
        played.append(case.key)
        return {"key": case.key, **vars(case), "final": 0.5, "best": 0.6, "success": 0.1}

    out = tmp_path / "runs.jsonl"
    monkeypatch.setattr(bench, "play", play)
    monkeypatch.setattr("sys.argv", ["bench", str(CONFIG), "--out", str(out)])
    bench.main()
    lines = out.read_text().splitlines()
    assert len(set(played)) == len(played) == len(lines)
    out.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20] + "\n")  # killed in the middle of a line
    bench.main()
    assert sorted(played[len(lines) :]) == sorted(json.loads(line)["key"] for line in lines[-2:])


def test_the_tables_name_every_rule_and_attack_of_the_config() -> None:
    import tomllib

    job = tomllib.loads(CONFIG.read_text())
    text = "\n".join(bench.tables(job, []))
    for setting in job["settings"].values():
        assert all(rule in text for rule in setting["rules"])
        assert set(setting["attacks"]) <= set(job["attacks"])
        assert set(setting["rules"]) <= set(job["rules"])
