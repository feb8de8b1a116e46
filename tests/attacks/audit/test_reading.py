"""What the report reads from an update: full and LoRA, gradients and deltas, encoders and decoders, SGD and AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from securefed_attacks.audit import AuditReport, audit
from securefed_attacks.audit.exposure import Exposure
from securefed_attacks.audit.reconstruction import Guess, Named, Reconstruction
from tests.attacks.audit import words

MINE, OTHERS = words.texts(2, 7, 0), words.texts(40, 7, 1)


def audited(
    folder: Path, steps: int, *, optimizer: str = "sgd", rate: float = 0.1, **more: Any
) -> AuditReport:
    recipe = {
        "optimizer": optimizer,
        "steps": steps,
        "learning_rate": rate,
        "batch_size": 2,
        "weight_decay": 0.01 if optimizer == "adamw" else 0.0,
    }
    return audit(
        folder / "before",
        folder / "after",
        base=str(folder / "base"),
        recipe=recipe,
        candidates=[{"text": t, "label": k % 2} for k, t in enumerate([*MINE, *OTHERS])],
        is_member=[1, 1, *[0] * len(OTHERS)],
        shadows=0,
        **more,
    )


def raw(report: AuditReport) -> Reconstruction:
    return next(r for r in report.reconstruction if r.view == "raw update")


def verdicts(report: AuditReport) -> dict[str, str]:
    return {f.view: f.verdict for f in report.findings if f.section == "reconstruction"}


@pytest.mark.parametrize("kind", words.KINDS)
@pytest.mark.parametrize(("adapter", "steps"), [("full", 1), ("lora", 1), ("lora", 6)])
def test_tokens_are_read_exactly_from_gradients_and_deltas(
    tmp_path: Path, kind: str, adapter: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefed_attacks.audit.reading.ORDER_S", 300.0)  # a slow machine is not a bug
    folder = words.capture(tmp_path, kind, MINE, adapter=adapter, steps=steps)
    report = audited(folder, steps)
    found = raw(report)
    lost = len(MINE) if kind == "llama" else 0  # a language model's last tokens leave no trace
    assert found.exact.ours == Guess(found.tokens - lost, found.tokens - lost)
    assert verdicts(report)["raw update"] == "LEAKS"
    assert report.exposure is not None
    assert report.exposure.proof is not None
    assert report.exposure.proof.leaks == "exact"
    assert report.exposure.proof.holds
    if adapter == "full" or (kind == "llama" and steps == 1):
        assert found.whole == 2, "one gradient proves whole texts, in order"


@pytest.mark.parametrize("kind", words.KINDS)
def test_adamw_ends_the_exact_test_and_not_the_ranking(tmp_path: Path, kind: str) -> None:
    folder = words.capture(tmp_path, kind, MINE, optimizer="adamw", steps=6, rate=1e-3)
    report = audited(folder, 6, optimizer="adamw", rate=1e-3)
    found = raw(report)
    assert found.exact.ours.hits == 0
    assert found.nearest.ours.hits > found.tokens / 2
    assert found.nearest.wrong is not None
    assert found.nearest.wrong.hits <= 3
    assert found.used is found.nearest
    assert report.exposure is not None
    assert report.exposure.budget is not None
    assert report.exposure.budget.verdict == "ranking"


def test_a_round_that_begins_elsewhere_is_read_with_the_model_as_it_was_then(tmp_path: Path) -> None:
    """Full fine-tuning moves the embeddings; the base model's would be the wrong candidates in a later round."""
    folder = words.capture(tmp_path, "llama", MINE, adapter="full", steps=1)
    change = {}
    for name in ("before", "after"):
        path = folder / name / "model.safetensors"
        state = load_file(path)
        generator = torch.Generator().manual_seed(4)
        for key in sorted(state):
            if "embed" in key:
                change[key] = change.get(key, 0.3 * torch.randn(state[key].shape, generator=generator))
                state[key] = state[key] + change[key]
        save_file(state, path)
    from securefed_attacks.audit.base import open_target
    from securefed_attacks.audit.captured import capture
    from securefed_attacks.audit.reading import reader_of
    from securefed_attacks.audit.recipe import Recipe
    from securefed_attacks.audit.states import read_state
    from securefed_attacks.audit.target import Target

    pair = capture(read_state(folder / "before", "before"), read_state(folder / "after", "after"))
    target = open_target(str(folder / "base"), pair, None, Recipe())
    assert isinstance(target, Target)
    now, then = reader_of(target, pair.before.tensors), reader_of(target, {})
    assert not isinstance(now, str)
    assert not isinstance(then, str)
    few = torch.arange(6)
    assert not torch.allclose(now.first(few), then.first(few), atol=0.1)
    assert torch.equal(target.own["model.embed_tokens.weight"], then.model.get_input_embeddings().weight)  # type: ignore[operator]


def test_the_wrong_update_goes_through_the_same_views(tmp_path: Path) -> None:
    folder = words.capture(tmp_path, "bert", MINE)
    recipe = {"max_grad_norm": 1.0, "noise_multiplier": 0.01}
    report = audit(
        folder / "before",
        folder / "after",
        base=str(folder / "base"),
        recipe={"optimizer": "sgd", "steps": 6, "learning_rate": 0.1, "batch_size": 2, **recipe},
        candidates=[{"text": t, "label": k % 2} for k, t in enumerate([*MINE, *OTHERS])],
        is_member=[1, 1, *[0] * len(OTHERS)],
        shadows=0,
    )
    found = {r.view: r for r in report.reconstruction}
    assert found["raw update"].nearest.wrong is not None
    assert found["noised"].nearest.wrong is not None
    assert found["clipped"].exact == found["raw update"].exact, "clipping is a matter of length"
    assert verdicts(report)["noised"] != "LEAKS"
    trials = {t.name: t for t in report.mitigation if t.measure == "tokens named"}
    assert any(t.enough for t in trials.values())
    assert next(iter(trials)) == "secure sum of 10 clients", "what costs no accuracy comes first"


def test_an_adapter_without_first_layer_names_no_token_and_says_so(tmp_path: Path) -> None:
    folder = words.capture(tmp_path, "llama", MINE)
    for name in ("before", "after"):
        path = folder / name / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(path).items() if "layers.0." not in k}, path)
    report = audited(folder, 6)
    assert isinstance(report.exposure, Exposure)
    assert "nothing of the first attention layer" in report.exposure.reason
    assert not report.reconstruction


def test_a_record_that_the_controls_recover_as_well_is_no_leak() -> None:
    named = Named(Guess(20, 20), Guess(0, 20), None, recovered=2, by_controls=2, p_value=1e-9)
    assert not named.leaks(0.01)
    assert Named(Guess(20, 20), Guess(0, 20), None, 2, 1, 1e-9).leaks(0.01)
    assert not Named(Guess(20, 20), None, None, 2, 0, None).leaks(0.01), "no control, no leak"
