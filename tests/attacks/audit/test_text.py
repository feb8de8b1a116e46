"""Text updates captured by PEFT itself: tokens come back where the budget says so, and the page does not hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from securefed_attacks.audit import AuditReport, audit
from tests.securefed.models import tiny

RECIPE = {"optimizer": "sgd", "steps": 10, "learning_rate": 0.1, "batch_size": 1, "lora_alpha": 12}
MEMBER = "the plot is thin but"
OTHERS = tuple(f"{w} never ends" for w in ("not", "bad", "dull", "long", "very"))


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama's LoRA adapter in the middle of its training (B is not zero), trained on one text by a plain loop."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("captured")
    base = tiny.tiny_llama(folder / "base")
    torch.manual_seed(0)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "k_proj", "v_proj"],
        lora_dropout=0.0,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "before")
    ids = AutoTokenizer.from_pretrained(base)(MEMBER, return_tensors="pt")["input_ids"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    model.eval()
    for _ in range(10):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "after")
    rows = [{"text": MEMBER, "member": 1}, *({"text": t, "member": 0} for t in OTHERS)]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def audited(folder: Path, **more: Any) -> AuditReport:
    given = {
        "recipe": RECIPE,
        "shadows": 0,
        "base": str(folder / "base"),
        "candidates": folder / "records.jsonl",
    }
    return audit(folder / "before", folder / "after", **{**given, **more})


@pytest.fixture(scope="module")
def report(captured: Path) -> AuditReport:
    return audited(captured, recipe={**RECIPE, "max_grad_norm": 1.0, "noise_multiplier": 1.0})


def test_the_budget_predicts_and_the_update_proves_it(report: AuditReport) -> None:
    assert report.exposure is not None
    assert report.exposure.budget is not None
    assert report.exposure.budget.verdict == "exact"
    assert len(report.exposure.readers) == 3
    assert report.exposure.proof is not None
    assert report.exposure.proof.leaks == "exact"
    assert report.exposure.proof.holds
    raw = next(r for r in report.reconstruction if r.view == "raw update")
    assert raw.exact.ours.hits >= raw.tokens - 1, "the last token has no loss on it"
    assert raw.exact.ours.guesses == raw.exact.ours.hits


def test_controls_do_not_find_them_and_noise_ends_it(report: AuditReport) -> None:
    raw, noised = (next(r for r in report.reconstruction if r.view == v) for v in ("raw update", "noised"))
    assert raw.exact.prior is not None
    assert raw.exact.wrong is not None
    assert max(raw.exact.prior.hits, raw.exact.wrong.hits) <= raw.exact.ours.hits / 2
    assert raw.exact.recovered == 1
    assert not noised.leaks


def test_five_tokens_cannot_be_told_from_luck_and_that_is_said(report: AuditReport) -> None:
    """Five of five right beside two of five: Fisher's test cannot exclude luck at the level of all views together."""
    found = {f.view: f for f in report.findings if f.section == "reconstruction"}
    raw = next(r for r in report.reconstruction if r.view == "raw update")
    assert raw.needed is None
    assert found["raw update"].verdict == "UNDERPOWERED"
    assert "even all 5 tokens could not be told" in found["raw update"].reason


def test_an_update_of_another_text_does_not_name_these_tokens(captured: Path) -> None:
    """The same update held against records that it was not trained on: nothing may be called reconstructed."""
    report = audited(captured, candidates=["good film good", *OTHERS], is_member=[1, 0, 0, 0, 0, 0])
    assert all(f.verdict != "LEAKS" for f in report.findings if f.section == "reconstruction")


def test_no_word_of_a_record_is_in_json_page_text_or_repr(report: AuditReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "a.html").read_text(encoding="utf-8")
    for text in (page, json.dumps(report.to_json()), report.text(), repr(report)):
        assert "plot" not in text
        assert not re.search(r"\bthin\b", text)
    assert 'class="hit"' in page


def test_words_are_shown_where_they_are_asked_for(captured: Path, tmp_path: Path) -> None:
    page = audited(captured, show_text=True).save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<mark>plot</mark>" in page


def test_the_page_loads_nothing(report: AuditReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert " src=" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0


def test_bare_lora_tensors_need_their_scale(captured: Path) -> None:
    from safetensors.torch import load_file

    states = [load_file(captured / w / "adapter_model.safetensors") for w in ("before", "after")]
    given = {"base": str(captured / "base"), "candidates": captured / "records.jsonl", "shadows": 0}
    with pytest.raises(ValueError, match="lora_alpha"):
        audit(*states, **given, recipe={**RECIPE, "lora_alpha": None})
    assert audit(*states, **given, recipe=RECIPE).reconstruction


def test_a_module_and_its_tokenizer_serve_as_well_as_a_folder(captured: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = captured / "base"
    module = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    one = audited(captured, base=module, tokenizer=AutoTokenizer.from_pretrained(base))
    two = audited(captured)
    assert [r.exact.ours for r in one.reconstruction] == [r.exact.ours for r in two.reconstruction]
    assert "tokenizer" in audited(captured, base=module).text()


def test_losses_under_the_target_are_those_of_the_peft_model(captured: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from securefed_attacks.audit.base import open_target
    from securefed_attacks.audit.candidates import read_candidates
    from securefed_attacks.audit.captured import capture
    from securefed_attacks.audit.recipe import Recipe
    from securefed_attacks.audit.states import read_state
    from securefed_attacks.audit.target import Target

    base = captured / "base"
    pair = capture(read_state(captured / "before", "before"), read_state(captured / "after", "after"))
    target = open_target(str(base), pair, read_candidates([MEMBER]), Recipe())
    assert isinstance(target, Target)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), captured / "after").eval()
    ids = AutoTokenizer.from_pretrained(base)(MEMBER, return_tensors="pt")["input_ids"]
    expected = float(model(input_ids=ids, labels=ids).loss.detach())
    assert target.score(pair.after.tensors).loss[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "ffa"])
def test_our_own_adapter_folders_are_read_with_their_head_and_score_as_the_task_model_does(
    tmp_path: Path, adapter: Any
) -> None:
    from securefed.config import ModelConfig
    from securefed.data.batch import collate
    from securefed.models import load_model
    from securefed_attacks.audit.base import open_target
    from securefed_attacks.audit.candidates import read_candidates
    from securefed_attacks.audit.captured import capture
    from securefed_attacks.audit.recipe import Recipe
    from securefed_attacks.audit.states import read_state
    from securefed_attacks.audit.target import Target

    base = tiny.tiny_bert(tmp_path / "base")
    model = load_model(
        ModelConfig(name=str(base), adapter=adapter, rank=2, head_layers=2, dropout=0.0),
        classes=2,
        max_length=16,
    )
    model.save_adapter(tmp_path / "before")
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_adapter(tmp_path / "after")
    pair = capture(read_state(tmp_path / "before", "before"), read_state(tmp_path / "after", "after"))
    records = read_candidates([{"text": t, "label": i % 2} for i, t in enumerate(tiny.TEXTS)])
    target = open_target(str(base), pair, records, Recipe(max_length=16))
    assert isinstance(target, Target)
    encoded = model.encode(tiny.examples(6), 16)
    expected = model.losses(collate(encoded, range(6))).detach().double().numpy()
    assert target.score(pair.after.tensors).loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.model
def test_a_minilm_adapter_of_one_text_leaks_and_says_where(
    require_model: Callable[[str], str], tmp_path: Path
) -> None:
    """Nothing trained by SecureFed: PEFT, a plain loop, two folders."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from securefed.models.zoo import find_model

    require_model("minilm")
    folder = find_model("minilm").folder
    torch.manual_seed(0)
    settings = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "key", "value"])
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(tmp_path / "before")
    text = "my doctor moved the appointment to friday morning"
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    model.eval()
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**ids).logits, torch.tensor([1])).backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "after")
    others = ["the invoice of last month is attached", "shall we meet at the station tonight"]
    report = audit(
        tmp_path / "before",
        tmp_path / "after",
        base="minilm",
        candidates=[{"text": t, "label": 1} for t in (text, *others)],
        is_member=[1, 0, 0],
        recipe={"optimizer": "sgd", "steps": 5, "learning_rate": 0.05, "batch_size": 1},
        shadows=0,
    )
    assert report.verdict == "LEAKS"
    raw = report.reconstruction[0]
    assert raw.used.recovered == 1
    assert any(t.enough for t in report.mitigation)
