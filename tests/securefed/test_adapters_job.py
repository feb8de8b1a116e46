"""Prompt, prefix, IA3 and unlike ranks in whole jobs, on a tiny encoder: private, masked, resumed, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from securefed.algorithms.pruning import KEY
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.errors import ConfigError, ModelError, SelfCheckError
from securefed.federation import resume, run
from securefed.models import load_result
from securefed.parts import Parts
from securefed.training.client import ClientJob
from tests.entropy import SeededEntropy
from tests.results import model_of
from tests.securefed.models import tiny
from tests.stopping import StopAfter

EXAMPLE = {
    "privacy.unit": "example",
    "privacy.noise_multiplier": 0.7,
    "privacy.delta": 1e-3,
    "privacy.sample_rate": 0.5,
}
RANKS = {"model.adapter": "lora", "model.rank": 4, "model.ranks": [1, 2, 4]}
WAYS = {
    "slices": {},
    "hetlora": {},
    "hetlora by norm": {"algorithm.weighting": "sparsity"},
    "hetlora pruned": {"algorithm.prune": 0.5, "algorithm.penalty": 0.9},
    "flexlora": {},
    "flora": {"model.merged": True},
    "fedex": {"model.merged": True},
    "flexlora by products": {"model.merged": True, "algorithm.products": True},
    "flora by products": {"model.merged": True, "algorithm.products": True},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "rounds": 2,
        "weights": "equal",
        "data": tiny.three_clients(folder, 90),
        "model": {"name": str(tiny.tiny_bert(folder / "bert")), "virtual_tokens": 3},
        "train": {"steps": 2, "learning_rate": 0.5, "batch_size": 8},
        "evaluate": {"baselines": False, "every": 0, "clients": False},
        "tracking": {"report": False},
        "engine": {"threads": 1, "checkpoint_every": 1},
    }


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "ia3"])
def test_a_private_masked_job_trains_the_adapter_and_its_folder_loads(
    adapter: str, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    wanted = {**EXAMPLE, "model.adapter": adapter, "protection": {"name": "masking", "below_table": True}}
    result = run(job, wanted, folder=tmp_path / "a")
    assert result.ledger is not None
    assert result.ledger.epsilon(1e-3) > 0
    model = load_result(tmp_path / "a" / "adapter")
    np.testing.assert_array_equal(model.read(model.layout), model_of(tmp_path / "a"))
    fresh = assemble(load_config(job, {"model.adapter": adapter})).model
    part = fresh.layout.select(lambda n: fresh.part_of[n] == "adapter")
    assert not np.array_equal(fresh.read(part), model.read(part))


@pytest.mark.parametrize("adapter", ["prompt", "ia3"])
def test_masked_and_plain_end_alike(adapter: str, job: dict[str, Any], home: Path, tmp_path: Path) -> None:
    masking = {"name": "masking", "below_table": True}
    for name, protection in (("plain", "plain"), ("masking", masking)):
        run(job, {"model.adapter": adapter, "protection": protection}, folder=tmp_path / name)
    np.testing.assert_allclose(model_of(tmp_path / "masking"), model_of(tmp_path / "plain"), atol=1e-4)


@pytest.mark.parametrize(
    ("breakage", "words"),
    [("once for all", "per-sample gradients of shape"), ("not used", "is not the one that is used")],
)
def test_the_step_one_check_notices_a_prompt_that_is_shared_or_not_used(
    breakage: str, words: str, job: dict[str, Any], home: Path
) -> None:
    config = load_config(job, {**EXAMPLE, "model.adapter": "prompt", "train.steps": 3})
    assembly = assemble(config)
    peft = assembly.model.peft
    encoder, whole = peft.prompt_encoder["default"], peft.get_prompt
    stored = encoder.embedding.weight.detach().clone()

    def once(batch_size: int, **_: Any) -> torch.Tensor:
        prompt: torch.Tensor = encoder(torch.arange(3)[None])
        return prompt.repeat(batch_size, 1, 1)

    def unused(batch_size: int, **_: Any) -> torch.Tensor:
        prompt: torch.Tensor = whole(batch_size)
        return prompt - prompt.detach() + stored  # a gradient, and never a change

    peft.get_prompt = once if breakage == "once for all" else unused
    parts = Parts(assembly, "broken", SeededEntropy(1))
    layout = assembly.model.layout
    start = assembly.model.read(layout)
    head = layout.slice_of("head.weight")
    start[head] = np.random.default_rng(0).normal(size=head.stop - head.start)
    try:
        with pytest.raises(SelfCheckError, match=words):
            parts.runner.run_job(ClientJob(0, 0, ("prompt_encoder",), ("prompt_encoder",), start, 1.0))
    finally:
        parts.close()


@pytest.mark.parametrize("way", WAYS)
def test_unlike_ranks_train_resume_and_load(
    way: str, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    wanted = {**RANKS, **WAYS[way], "algorithm.name": way.split()[0]}
    run(job, wanted, folder=tmp_path / "whole")
    run(job, wanted, folder=tmp_path / "cut", stop_flag=StopAfter(1))
    resume(tmp_path / "cut")
    np.testing.assert_array_equal(model_of(tmp_path / "whole"), model_of(tmp_path / "cut"))
    model = load_result(tmp_path / "whole" / "adapter")
    np.testing.assert_array_equal(model.read(model.layout), model_of(tmp_path / "whole"))


@pytest.mark.parametrize("adapter", ["lora", "rolora", "ffa"])
@pytest.mark.parametrize("private", [False, True])
def test_a_client_trains_and_noises_its_slice_alone(
    adapter: str, private: bool, job: dict[str, Any], home: Path
) -> None:
    wanted = {**RANKS, "model.adapter": adapter, "algorithm.name": "slices", **(EXAMPLE if private else {})}
    assembly = assemble(load_config(job, wanted))
    parts = Parts(assembly, "slice", SeededEntropy(1))
    model, layout = assembly.model, assembly.model.layout
    try:
        from securefed.algorithms.ranks import held

        keep = held(layout, model.part_of, 1)
        rng = np.random.default_rng(0)
        start = (rng.normal(size=layout.size) * keep).astype(np.float32)
        names = tuple(layout.names)
        outcome = parts.runner.run_job(ClientJob(0, 0, names, names, start, 1.0, holds=keep))
    finally:
        parts.close()
    assert outcome.update is not None
    assert not outcome.update.vector[keep == 0].any()
    assert (outcome.update.vector[keep == 1] != 0).mean() > 0.9


def test_slices_under_masking_are_those_in_the_clear(job: dict[str, Any], home: Path, tmp_path: Path) -> None:
    masking = {"name": "masking", "below_table": True}
    for name, protection in (("plain", "plain"), ("masking", masking)):
        run(job, {**RANKS, "algorithm.name": "slices", "protection": protection}, folder=tmp_path / name)
    np.testing.assert_allclose(model_of(tmp_path / "masking"), model_of(tmp_path / "plain"), atol=1e-4)


@pytest.mark.parametrize("way", ["flexlora", "flora"])
@pytest.mark.parametrize("protection", ["masking", "ckks"])
def test_products_in_a_secure_sum_end_where_single_updates_end(
    way: str, protection: str, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    """Three rounds: the second starts from what the first joined, and B of the first is zero."""
    secure: dict[str, Any] = {
        "name": protection,
        **({"below_table": True} if protection == "masking" else {}),
    }
    wanted = {**RANKS, "rounds": 3, "algorithm.name": way, "model.merged": True}
    plain = wanted if way == "flora" else {**wanted, "model.merged": False}
    run(job, plain, folder=tmp_path / "clear")
    run(job, {**wanted, "algorithm.products": True, "protection": secure}, folder=tmp_path / "sum")
    one, other = (load_result(tmp_path / name / "adapter") for name in ("clear", "sum"))
    names = one.layout.names
    assert set(names) <= set(other.layout.names)
    moved = 0.0
    for name in names:
        mine, its = one.parameters[name].detach(), other.parameters[name].detach()
        torch.testing.assert_close(mine, its, atol=3e-3, rtol=0)
        moved = max(moved, float(mine.abs().max()))
    assert moved > 0.03


@pytest.mark.parametrize("unit", ["example", "client"])
def test_products_are_sent_under_differential_privacy_of_either_unit(
    unit: str, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    noise = EXAMPLE if unit == "example" else {"privacy.unit": "client", "privacy.noise_multiplier": 1.0}
    way = {"algorithm.name": "flexlora", "algorithm.products": True, "model.merged": True}
    wanted = {**RANKS, **way, **noise, "privacy.delta": 1e-3}
    result = run(job, wanted, folder=tmp_path / "a")
    assert result.ledger is not None
    assert result.ledger.epsilon(1e-3) > 0


def test_a_rule_that_compares_rows_withstands_a_liar_among_unlike_ranks(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    """One of three sends its product a thousandfold: the mean follows it, the median does not."""
    way = {**RANKS, "algorithm.name": "flexlora", "algorithm.products": True, "model.merged": True}
    lie = {"attack": {"name": "sign_flip", "f": 1, "options": {"scale": 1000.0}}}
    found = {}
    for rule in ("mean", "median"):
        run(job, {**way, **lie, "aggregator": rule}, folder=tmp_path / rule)
        found[rule] = float(np.abs(model_of(tmp_path / rule)).max())
    assert found["mean"] > 10 * found["median"]


def test_base_weights_that_never_change_are_not_counted_as_sent_down(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    way = {**RANKS, "algorithm.name": "flexlora"}
    run(job, way, folder=tmp_path / "factors")
    run(job, {**way, "algorithm.products": True, "model.merged": True}, folder=tmp_path / "products")
    one, two = (
        json.loads((tmp_path / name / "bytes.json").read_text(encoding="utf-8"))
        for name in ("factors", "products")
    )
    assert two["mib_down"] == one["mib_down"]
    assert two["mib_up"] > one["mib_up"]


@pytest.mark.parametrize("private", [False, True])
def test_a_client_whose_last_ranks_shrink_goes_on_without_them(
    private: bool, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    """B begins at zero, so nobody prunes in the first round; a heavy penalty then makes everybody who can."""
    pruning = {**RANKS, "algorithm.name": "hetlora", "algorithm.prune": 0.5, "algorithm.penalty": 0.99}
    wanted = {
        **pruning,
        **(EXAMPLE if private else {}),
        "privacy.noise_multiplier": 0.01 if private else None,
    }
    wanted = {k: v for k, v in wanted.items() if v is not None}
    for rounds, ranks in ((1, [1, 2, 4]), (2, [1, 1, 2])):
        folder = tmp_path / f"{rounds}"
        run(job, {**wanted, "rounds": rounds}, folder=folder)
        state = load_file(sorted((folder / "checkpoint").glob("round-*"))[-1] / "state.safetensors")
        assert [int(v) for k in state if k.endswith(KEY) for v in state[k]] == ranks


@pytest.mark.parametrize(
    "wanted",
    [
        {"protection": {"name": "masking", "below_table": True}},
        {"privacy.unit": "client", "privacy.noise_multiplier": 1.0, "privacy.delta": 0.01},
        {"compression": "top_k"},
    ],
)
def test_ranks_that_records_choose_are_refused_where_something_hides_them(
    wanted: dict[str, Any], job: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="lets a client's records choose its rank"):
        load_config(job, {**RANKS, "algorithm.name": "hetlora", "algorithm.prune": 0.5, **wanted})


@pytest.mark.parametrize("way", ["slices", "flexlora", "fedex"])
def test_unlike_ranks_run_under_example_level_noise(
    way: str, job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    result = run(job, {**RANKS, **WAYS[way], **EXAMPLE, "algorithm.name": way}, folder=tmp_path / "a")
    assert result.ledger is not None
    assert result.rounds == 2


@pytest.mark.parametrize(
    "wanted", [{"model.adapter": "ia3"}, {**RANKS, "algorithm.name": "slices", "model.ranks": [1]}]
)
def test_an_honest_model_passes_the_clients_inspection(
    wanted: dict[str, Any], job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    inspected = {**wanted, "train.inspect_model": True, "rounds": 1}
    assert run(job, inspected, folder=tmp_path / "a").rounds == 1


def test_a_rank_above_the_matrix_is_refused(job: dict[str, Any], home: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.rank=40 is above the width of .*, 16; lower model\.rank"):
        assemble(load_config(job, {"model.adapter": "lora", "model.rank": 40}))
