"""What an auditor may hand over, and the clear line for what cannot be audited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from securefed.errors import AuditError, ModelError
from securefed_attacks.audit import Recipe, audit
from securefed_attacks.audit.candidates import read_candidates
from securefed_attacks.audit.states import clean, read_state
from tests.attacks.audit import scenes

W = {"w": torch.zeros(2, 2)}
ONE = {"w": torch.ones(2, 2)}


@pytest.fixture(scope="module")
def scene() -> scenes.Scene:
    return scenes.memorized(steps=40)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (W, {"w": torch.zeros(2, 3)}, r"w has shape \(2, 2\) before and \(2, 3\) after"),
        (W, {"v": torch.zeros(2, 2)}, "only in one state, the first is v"),
        (W, {"w": torch.full((2, 2), torch.nan)}, "after: w holds 4 values that are not finite"),
        ({"w": torch.full((2, 2), torch.inf)}, ONE, "before: w holds 4 values that are not finite"),
        (W, {"w": torch.zeros(2, 2, dtype=torch.uint8)}, r"w is quantized \(uint8\)"),
        (W, {"w": torch.zeros(2, 2, dtype=torch.int8)}, r"w is quantized \(int8\)"),
        ({}, {}, "no float tensors"),
        (W, None, "two states are needed"),
        (W, [ONE, ONE], "one state before and one after each round: found 1 and 2"),
        ("nowhere", ONE, "nothing at nowhere"),
    ],
)
def test_states_that_cannot_be_compared_are_refused_with_the_reason(
    before: Any, after: Any, words: str
) -> None:
    with pytest.raises(AuditError, match=words):
        audit(before, after)


def test_an_update_of_zeros_is_underpowered_and_says_so() -> None:
    report = audit(W, {"w": torch.zeros(2, 2)})
    assert report.verdict == "UNDERPOWERED"
    assert "equal in every tensor" in report.text()
    assert report.to_json()["verdict"] == "UNDERPOWERED"


def test_without_a_base_model_the_report_says_what_is_missing() -> None:
    report = audit(W, ONE, candidates=["a b", "c d"], is_member=[1, 0])
    assert report.verdict == "UNDERPOWERED"
    assert "the base model (base=, or --base)" in report.text()


def test_a_base_model_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        audit(W, ONE, base="/nowhere/at/all")


def test_a_base_that_the_states_do_not_belong_to_is_refused(scene: scenes.Scene) -> None:
    with pytest.raises(AuditError, match="name the base it was trained from"):
        audit(scene.before, scene.after, **scene.given(base=torch.nn.Linear(3, 3)))
    wrong = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    with pytest.raises(AuditError, match=r"the base model shape \(64, 16\)"):
        audit(scene.before, scene.after, **scene.given(base=wrong))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"candidates": None}, "no candidate records"),
        ({"is_member": None}, "nobody says which candidates are members"),
        ({"is_member": np.ones(240, bool)}, "all 240 candidates are members"),
        ({"is_member": np.zeros(240, bool)}, "none of the 240 candidates is a member"),
        ({"candidates": (torch.randn(240, 32), None)}, "labels are missing"),
    ],
)
def test_records_that_carry_no_verdict_are_underpowered(
    scene: scenes.Scene, more: dict[str, Any], words: str
) -> None:
    given = scene.given(**more)
    if given["candidates"] is None:
        given["is_member"] = None
    report = audit(scene.before, scene.after, **given)
    assert report.verdict == "UNDERPOWERED"
    assert words in report.text()


def test_an_optimizer_that_is_not_named_is_not_guessed(scene: scenes.Scene) -> None:
    report = audit(scene.before, scene.after, **scene.given(recipe={"steps": 40}, shadows=4))
    assert "optimizer" in report.text()
    assert report.membership is not None
    assert report.membership.not_made["LiRA"] == "shadows need optimizer, learning_rate, batch_size"
    assert report.labels is not None
    assert "plain SGD" in report.labels.why_not


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"optimizer": "lion"}, "'lion' is not known"),
        ({"optimiser": "sgd"}, "did you mean optimizer"),
        ({"steps": 0}, "whole number >= 1"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"observed": "nothing"}, "must be one of"),
        ({"delta": 1.0}, "between 0 and 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(AuditError, match=words):
        Recipe.of(recipe)


@pytest.mark.parametrize(
    "more",
    [
        {"fpr": 0.0},
        {"claimed_epsilon": -1.0},
        {"claimed_epsilon": float("nan")},
        {"shadows": 3},
        {"time_budget_s": 0},
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        audit(W, ONE, **more)


# ------------------------------------------------------------------------------------------------ files


def test_the_same_update_is_read_from_dicts_modules_safetensors_torch_files_and_arrays(
    scene: scenes.Scene, tmp_path: Path
) -> None:
    save_file(scene.after, tmp_path / "after.safetensors")
    torch.save({"state_dict": scene.after, "epoch": 3}, tmp_path / "after.pt")
    scene.model.load_state_dict(scene.after)
    arrays = {k: v.numpy() for k, v in scene.after.items()}  # as Flower sends them
    compiled = {f"_orig_mod.module.{k}": v for k, v in scene.after.items()}
    for given in (tmp_path / "after.safetensors", tmp_path / "after.pt", scene.model, arrays, compiled):
        state = read_state(given, "after")
        assert all(torch.equal(state.tensors[k], v) for k, v in scene.after.items())
    scene.model.load_state_dict(scene.before)


def test_a_torch_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(AuditError, match=r"cannot read evil\.pt"):
        read_state(tmp_path / "evil.pt", "after")
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_quantized_weights_and_other_adapters_are_refused(tmp_path: Path) -> None:
    save_file(W, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    with pytest.raises(AuditError, match="weights are quantized"):
        read_state(tmp_path, "before")
    with pytest.raises(AuditError, match="DoRA"):
        read_state({"x.lora_magnitude_vector": torch.ones(2)}, "before")
    with pytest.raises(AuditError, match="embedding"):
        read_state({"x.lora_embedding_A": torch.ones(2, 2)}, "before")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AuditError, match="neither adapter_config"):
        read_state(tmp_path / "empty", "before")


def test_names_of_peft_are_cleaned() -> None:
    assert clean("base_model.model.a.query.lora_A.default.weight") == "a.query.lora_A"
    assert clean("base_model.model.a.query.lora_B.weight") == "a.query.lora_B"
    assert clean("base_model.model.a.query.base_layer.weight") == "a.query.weight"
    assert clean("base_model.model.classifier.modules_to_save.default.bias") == "classifier.bias"
    assert clean("encoder.weight") == "encoder.weight"


# ------------------------------------------------------------------------------------------- candidates


def test_candidates_are_read_from_csv_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text,label,member\na b,0,1\nc,1,no\n", encoding="utf-8")
    (tmp_path / "r.jsonl").write_text('{"body": "a b", "in": true}\n\n{"body": "c", "in": false}\n')
    found = read_candidates(tmp_path / "r.csv")
    assert found is not None
    assert (found.texts, found.labels is not None, found.members.tolist()) == (("a b", "c"), True, [0])
    found = read_candidates(tmp_path / "r.jsonl", text="body", member="in")
    assert found is not None
    assert (found.labels, found.others.tolist()) == (None, [1])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", '{"text": "secret words"}\nnot json secret\n', "line 2 of r.jsonl is no JSON"),
        ("r.jsonl", '["secret words"]\n', "no JSON object"),
        ("r.csv", "body,member\nsecret words,1\n", "record 1 has no text in column 'text'"),
        ("r.csv", "text,member\nsecret words,perhaps\n", "neither yes nor no"),
        ("r.csv", "text,label\nsecret words,high\n", "whole numbers"),
        ("r.csv", "text\n \n", "every text is empty"),
    ],
)
def test_unreadable_candidates_are_named_by_row_and_never_quoted(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(AuditError, match=words) as caught:
        read_candidates(tmp_path / name)
    assert "secret" not in str(caught.value)


def test_memberships_and_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AuditError, match="2 records and 1 memberships"):
        read_candidates(["a", "b"], [1])
    with pytest.raises(AuditError, match="3 inputs and 2 labels"):
        read_candidates((torch.zeros(3, 2), [0, 1]))
    with pytest.raises(AuditError, match="not finite"):
        read_candidates((torch.full((3, 2), torch.nan), [0, 1, 1]))
    assert read_candidates([]) is None


def test_lists_of_arrays_as_flower_sends_them_are_named_after_the_module(
    scene: scenes.Scene, tmp_path: Path
) -> None:
    names = list(scene.model.state_dict())
    before, after = ([s[n].numpy() for n in names] for s in (scene.before, scene.after))
    report = audit(before, after, **scene.given())
    expected = audit(scene.before, scene.after, **scene.given())
    assert report.to_json()["findings"] == expected.to_json()["findings"]
    assert audit([before, after], [after, before], **scene.given()).facts["Rounds"] == "2"
    np.savez(tmp_path / "after.npz", **{n: scene.after[n].numpy() for n in names})
    assert torch.equal(read_state(tmp_path / "after.npz", "after").tensors[names[0]], scene.after[names[0]])
    with pytest.raises(AuditError, match="give the module itself as base="):
        audit(before, after)
    with pytest.raises(AuditError, match="a list of 3 arrays and the base model holds 4 tensors"):
        audit(before[:3], after, base=scene.model)


def test_a_decoders_head_from_before_its_pooling_changed_is_not_asked(tmp_path: Path) -> None:
    from securefed.config import ModelConfig
    from securefed.models import load_model
    from tests.securefed.models import tiny

    name = str(tiny.tiny_llama(tmp_path / "llama"))
    model = load_model(ModelConfig(name=name, rank=2), classes=2, max_length=16)
    model.save_adapter(tmp_path / "before")
    noise = np.random.default_rng(0).normal(0, 0.1, model.layout.size).astype(np.float32)
    model.write(model.read(model.layout) + noise, model.layout)
    model.save_adapter(tmp_path / "after")
    given: dict[str, Any] = {"base": name, "candidates": list(tiny.TEXTS), "shadows": 0}
    assert audit(tmp_path / "before", tmp_path / "after", **given).verdict == "UNDERPOWERED"
    for folder in ("before", "after"):
        sidecar = tmp_path / folder / "securefed.json"
        found = json.loads(sidecar.read_text())
        assert found.pop("pooled")
        sidecar.write_text(json.dumps(found))
    with pytest.raises(AuditError, match="another pooling"):
        audit(tmp_path / "before", tmp_path / "after", **given)
