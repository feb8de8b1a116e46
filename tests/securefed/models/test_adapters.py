from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from securefed.config import ModelConfig
from securefed.data.batch import collate
from securefed.errors import ModelError
from securefed.layout import Layout, vector_digest
from securefed.models import load_model
from tests.securefed.models import tiny

CAUSAL = ModelConfig(task="causal-lm", rank=4)


def test_names_are_clean_and_parts_are_known(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, layers=1), classes=2, max_length=16)
    stem = "encoder.layer.1.attention.self"
    assert model.part_of == {
        f"{stem}.query.lora_A": "A",
        f"{stem}.query.lora_B": "B",
        f"{stem}.value.lora_A": "A",
        f"{stem}.value.lora_B": "B",
        "head.weight": "head",
        "head.bias": "head",
    }
    assert set(model.layout.names) == set(model.parameters) == set(model.part_of)
    trained = {id(p) for p in model.module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.parameters.values()}


@pytest.mark.parametrize(
    ("kind", "stem"),
    [
        ("llama", "model.layers.0.self_attn.q_proj"),
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.v"),
    ],
)
def test_auto_targets_know_the_families(kind: str, stem: str, folders: dict[str, str]) -> None:
    task = "seq2seq" if kind == "t5" else "causal-lm"
    model = load_model(replace(CAUSAL, name=folders[kind], task=task), max_length=16)  # type: ignore[arg-type]  # parametrize gives plain strings
    assert f"{stem}.lora_A" in model.parameters
    assert not any(n.startswith("head.") for n in model.parameters)


def test_a_has_rows_of_norm_about_one_and_b_is_zero(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, rank=8), classes=2, max_length=16)
    rows = torch.cat([p for n, p in model.parameters.items() if model.part_of[n] == "A"]).norm(dim=1)
    assert 0.8 < rows.mean() < 1.2
    assert not any(p.any() for n, p in model.parameters.items() if model.part_of[n] == "B")


def test_ffa_freezes_an_a_with_orthonormal_rows(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, adapter="ffa", rank=4), classes=2, max_length=16)
    assert "A" not in model.part_of.values()
    assert len(model.frozen_adapter) == 4
    for a in model.frozen_adapter.values():
        assert not a.requires_grad
        torch.testing.assert_close(a @ a.T, torch.eye(4))
    with pytest.raises(ModelError, match=r"above the width of .*, 16"):
        load_model(ModelConfig(name=bert, adapter="ffa", rank=17), classes=2, max_length=16)


def test_the_start_depends_on_the_seed_and_not_on_the_process(bert: str) -> None:
    config = ModelConfig(name=bert, adapter="lora", seed=5)
    here = load_model(config, classes=2, max_length=16)
    torch.manual_seed(123)
    program = (
        "from securefed.models import load_model; from securefed.config import ModelConfig; "
        "from securefed.layout import vector_digest; import torch; torch.manual_seed(99); "
        f"m = load_model(ModelConfig(name={bert!r}, adapter='lora', seed=5), classes=2, max_length=16); "
        "print(vector_digest(m.read(m.layout)), m.layout.digest, m.base_digest)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = [sys.executable, "-c", program]
    there = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert there.split() == [vector_digest(here.read(here.layout)), here.layout.digest, here.base_digest]
    other = load_model(replace(config, seed=6), classes=2, max_length=16)
    assert not np.array_equal(here.read(here.layout), other.read(other.layout))
    assert other.base_digest == here.base_digest  # A travels, so its start is no part of the base


def test_the_base_digest_tells_apart_what_a_vector_does_not_say(bert: str, tmp_path: Path) -> None:
    base = ModelConfig(name=bert, adapter="ffa")

    def digest(config: ModelConfig) -> str:
        return load_model(config, classes=2, max_length=16).base_digest

    changed = tiny.tiny_bert(tmp_path / "other")
    weights = changed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    others = [
        replace(base, seed=1),
        replace(base, alpha=16.0),
        replace(base, dtype="bfloat16"),
        replace(base, name=str(changed)),
    ]
    digests = [digest(base), *map(digest, others)]
    assert len(set(digests)) == len(digests)
    assert digest(replace(base, name=str(tiny.tiny_bert(tmp_path / "same")))) == digests[0]


def test_loading_leaves_the_global_generators_alone(bert: str) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global state is what is looked at
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    load_model(ModelConfig(name=bert), classes=2, max_length=16)
    load_model(ModelConfig(name="mlp", adapter="full"), classes=2, image_shape=(1, 8, 8))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_alpha_rank_and_rslora_scale_the_adapter(bert: str) -> None:
    def logits(**changes: float) -> torch.Tensor:
        config = replace(ModelConfig(name=bert, rank=4, alpha=4.0), **changes)  # type: ignore[arg-type]  # floats and bools
        model = load_model(config, classes=2, max_length=16)
        rng = np.random.default_rng(0)
        model.write(rng.normal(0, 0.3, model.layout.size).astype(np.float32), model.layout)
        return model.logits(collate(model.encode(tiny.examples(), 16), range(6)))

    assert not torch.allclose(logits(), logits(alpha=8.0))
    torch.testing.assert_close(logits(rslora=True), logits(alpha=8.0))  # 4/sqrt(4) = 8/4
    torch.testing.assert_close(logits(), logits())


def test_layers_can_be_all_the_top_k_or_a_list(tmp_path: Path, t5: str) -> None:
    folder = str(tiny.tiny_bert(tmp_path / "deep", layers=12))

    def layers(value: object) -> set[int]:
        config = ModelConfig(name=folder, layers=value)  # type: ignore[arg-type]  # the three kinds of value
        model = load_model(config, classes=2, max_length=16)
        return {int(n.split(".")[2]) for n in model.parameters if n.startswith("encoder.")}

    assert layers("all") == set(range(12))
    assert layers(2) == {10, 11}
    assert layers((0, 1, 11)) == {0, 1, 11}
    with pytest.raises(ModelError, match="more than the 12 layers"):
        layers(13)
    with pytest.raises(ModelError, match="some of 0 to 11"):
        layers((3, 12))
    both = load_model(ModelConfig(name=t5, task="seq2seq", layers=1), max_length=16)
    assert {n.split(".")[0] for n in both.parameters} == {"encoder", "decoder"}
    assert {n.split(".")[2] for n in both.parameters} == {"1"}


def test_a_model_without_the_target_names_those_it_has(bert: str) -> None:
    with pytest.raises(ModelError, match=r"no module named 'q_proj'.*dense, key, query, value"):
        load_model(ModelConfig(name=bert, targets=("query", "q_proj")), classes=2, max_length=16)
    with pytest.raises(ModelError, match="LayerNorm, LoRA needs a linear layer"):
        load_model(ModelConfig(name=bert, targets=("LayerNorm",)), classes=2, max_length=16)


@pytest.mark.parametrize("unit", ["none", "example"])
def test_lora_on_an_embedding_is_refused_with_the_reason(unit: str, bert: str) -> None:
    with pytest.raises(ModelError, match=r"no per-sample gradient.*target linear projections"):
        load_model(ModelConfig(name=bert, targets=("word_embeddings",)), classes=2, unit=unit, max_length=16)


def test_a_dora_adapter_is_refused_with_the_reason(bert: str, tmp_path: Path) -> None:
    from securefed.models import load_result

    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    model.save_adapter(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ModelError, match=r"DoRA.*no per-sample gradient"):
        load_result(tmp_path)


def test_adapters_and_head_stay_float32_on_a_bfloat16_base(llama: str, bert: str) -> None:
    for model in (
        load_model(replace(CAUSAL, name=llama, dtype="bfloat16"), max_length=16),
        load_model(ModelConfig(name=bert, dtype="bfloat16"), classes=2, max_length=16),
    ):
        assert {p.dtype for p in model.parameters.values()} == {torch.float32}
        frozen = {p.dtype for p in model.module.parameters() if not p.requires_grad}
        assert frozen == {torch.bfloat16}


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_that_emulates_bfloat16_is_warned_about(
    fast: bool, bert: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefed.models.backbone._fast_bfloat16", lambda: fast)
    load_model(ModelConfig(name=bert, dtype="bfloat16", device="cpu"), classes=2, max_length=16)
    assert ("no bfloat16 arithmetic" in caplog.text) is not fast


def test_full_fine_tuning_freezes_broadcast_embeddings_under_example_level_dp(
    folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = {
        "bert": {"embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"},
        "gpt2": {"transformer.wpe.weight"},
        "llama": set(),
        "t5": {
            f"{s}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            for s in ("encoder", "decoder")
        }
        | {"shared.weight"},
    }
    tasks = {"bert": "classification", "t5": "seq2seq"}
    for kind, frozen in expected.items():
        config = ModelConfig(name=folders[kind], task=tasks.get(kind, "causal-lm"), adapter="full")  # type: ignore[arg-type]  # as above
        everything = load_model(config, classes=2, max_length=16)
        with caplog.at_level(logging.INFO, "securefed"):
            private = load_model(config, classes=2, unit="example", max_length=16)
        assert set(everything.parameters) - set(private.parameters) == frozen
        assert set(private.part_of.values()) <= {"base", "head"}
        assert all(name in caplog.text for name in frozen)


def test_full_fine_tuning_in_bfloat16_is_refused(bert: str) -> None:
    with pytest.raises(ModelError, match="float32"):
        load_model(ModelConfig(name=bert, adapter="full", dtype="bfloat16"), classes=2, max_length=16)


def test_head_trains_the_head_alone(bert: str) -> None:
    model = load_model(ModelConfig(name=bert, adapter="head"), classes=3, max_length=16)
    assert model.layout == Layout.of_shapes({"head.weight": (3, 16), "head.bias": (3,)})


def test_read_and_write_are_inverse_and_work_on_a_part(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    vector = np.random.default_rng(0).normal(size=model.layout.size).astype(np.float32)
    model.write(vector, model.layout)
    assert np.array_equal(model.read(model.layout), vector)
    part = model.layout.select(lambda n: model.part_of[n] == "B")
    model.write(np.zeros(part.size, np.float32), part)
    assert not model.read(part).any()
    rest = model.layout.select(lambda n: model.part_of[n] != "B")
    assert np.array_equal(model.read(rest), model.layout.gather(vector, rest))
    with pytest.raises(ModelError, match="not a trainable tensor"):
        model.write(np.zeros(1, np.float32), Layout.of_shapes({"stranger": (1,)}))
    with pytest.raises(ModelError, match="shape"):
        model.write(np.zeros(1, np.float32), Layout.of_shapes({"head.bias": (1,)}))


def test_set_trainable_means_exactly_these(bert: str) -> None:
    model = load_model(ModelConfig(name=bert), classes=2, max_length=16)
    model.set_trainable(["head.bias"])
    assert [n for n, p in model.parameters.items() if p.requires_grad] == ["head.bias"]
    assert sum(p.requires_grad for p in model.module.parameters()) == 1
    model.set_trainable(model.layout.names)
    assert all(p.requires_grad for p in model.parameters.values())
    with pytest.raises(ModelError, match="not a trainable tensor"):
        model.set_trainable(["stranger"])


@pytest.mark.model
def test_minilm_has_the_names_that_the_recipe_counts_on(require_model) -> None:  # type: ignore[no-untyped-def]  # fixture of the root conftest
    model = load_model(ModelConfig(name=require_model("minilm"), layers=3), classes=2)
    assert model.depth == 7
    assert model.cut(model.layout.names) == 3
    assert model.layout.size == 3 * 2 * 2 * 8 * 384 + 2 * 385
    assert "encoder.layer.3.attention.self.query.lora_A" in model.parameters
    batch = collate(model.encode(tiny.examples(), 64), range(6))
    rng = np.random.default_rng(0)
    model.write(rng.normal(0, 0.05, model.layout.size).astype(np.float32), model.layout)
    for cut in (3, 7):
        cached = replace(batch, input_ids=None, hidden=model.prefix(batch, cut), depth=cut)
        torch.testing.assert_close(model.logits(cached), model.logits(batch), rtol=1e-4, atol=1e-5)
