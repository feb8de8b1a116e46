"""The command, the documentation, the example, a run's folder and the time budget."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import securefed as sf
from securefed.cli import main
from securefed.commands.audit import VERDICTS as COMMANDS_VERDICTS
from securefed_attacks.audit import VERDICTS, audit
from securefed_attacks.audit.clock import Clock
from tests.attacks.audit import scenes
from tests.test_examples import example

ROOT = Path(__file__).parents[3]


def test_the_command_knows_the_same_verdicts() -> None:
    assert COMMANDS_VERDICTS == VERDICTS


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.zeros(2, 2)}, "a.safetensors")
    save_file({"w": torch.ones(2, 2)}, "b.safetensors")
    save_file({"w": torch.ones(3, 2)}, "c.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a.safetensors", "b.safetensors"], 0),
        (["a.safetensors", "b.safetensors", "--fail-on", "LEAKS"], 0),
        (["a.safetensors", "b.safetensors", "--fail-on", "UNDERPOWERED"], 1),
        (["a.safetensors", "b.safetensors", "--fail-on", "no-evidence"], 1),
        (["a.safetensors", "b.safetensors", "--fail-on", "SAFE"], 2),
        (["a.safetensors", "c.safetensors"], 2),
        (["a.safetensors"], 2),
        (["a.safetensors", "b.safetensors", "--base", "minilmm"], 2),
    ],
)
def test_the_exit_code_answers_fail_on(
    files: Path, words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *words, "--quiet"]) == code
    err = capsys.readouterr().err
    assert len(err.splitlines()) == (1 if code == 2 else 0)


def test_json_is_the_whole_report_and_nothing_else(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "a.safetensors", "b.safetensors", "--json"]) == 0
    out, err = capsys.readouterr()
    tree = json.loads(out)
    assert tree["verdict"] == "UNDERPOWERED"
    assert {"findings", "views", "membership", "epsilon", "missing", "left_out", "page"} <= tree.keys()
    assert (files / "audit.html").read_text().startswith("<!doctype html>")
    assert "reading" in err, "progress goes to standard error"


def test_an_audit_keeps_to_its_time_budget_and_names_what_it_left_out() -> None:
    scene = scenes.memorized(steps=60)
    told: list[str] = []
    report = audit(
        scene.before,
        scene.after,
        **scene.given(shadows=64, time_budget_s=1e-3, progress=lambda _, what: told.append(what)),
    )
    assert any("LiRA" in what for what in report.left_out)
    assert any("gradients" in what for what in report.left_out)
    assert report.membership is not None
    assert {(r.view, r.attack) for r in report.membership.results} == {
        ("raw update", "loss"),
        ("raw update", "calibrated loss"),
        ("final model", "loss"),  # the same update, so the same losses
    }
    late = [f for f in report.findings if f.verdict == "UNDERPOWERED"]
    assert any("LiRA was not played: the time budget" in f.reason for f in late), (
        "left out is not nothing found"
    )
    assert any("update cosine was not played" in f.reason for f in late)
    assert told[0] == "reading"
    assert told[-1] == "done"


def test_the_clock_counts_with_the_time_it_is_given() -> None:
    now = [0.0]
    clock = Clock(10.0, now=lambda: now[0])
    assert clock.allows(9.0, "a")
    now[0] = 5.0
    assert not clock.allows(6.0, "b")
    assert clock.left_out == ["b: needs about 6 s, 5 s of the time budget were left"]
    part = clock.part(0.4)
    assert part.left == pytest.approx(2.0)
    assert not part.allows(3.0, "d")
    assert clock.left_out[-1].startswith("d: ")
    assert Clock(None, now=lambda: 0.0).allows(1e9, "c")


def test_sums_are_made_from_other_clients_states_and_decrypted_ones_are_like_them() -> None:
    scene = scenes.memorized(steps=60)
    others = [scenes.train(scenes.net(), *scenes.noise(40, 100 + k), steps=60) for k in range(3)]
    report = audit(scene.before, scene.after, **scene.given(others=others))
    made = {c.name: c for c in report.columns}
    total, opened = made["sum"], made["decrypted"]
    assert total.update is not None
    assert total.clients == 4
    expected = (
        sum(((o["0.weight"] - scene.before["0.weight"]) for o in (scene.after, *others)), torch.zeros(())) / 4
    )
    assert torch.allclose(total.update["0.weight"], expected, atol=1e-6)
    if opened.update is None:
        assert "encrypted" in opened.why_not
    else:
        assert torch.allclose(opened.update["0.weight"], expected, atol=1e-4)
    assert made["clipped"].update is None
    assert "max_grad_norm" in made["clipped"].why_not


def test_several_rounds_are_judged_together_and_one_by_one() -> None:
    scene = scenes.memorized(steps=30)
    net = scenes.net()
    net.load_state_dict(scene.after)
    second = scenes.train(net, scene.x[:40], scene.y[:40], steps=30)
    report = audit([scene.before, scene.after], [scene.after, second], **scene.given())
    assert len(report.rounds) == 2
    assert report.membership is not None
    assert (
        "one round"
        in audit(
            [scene.before, scene.after], [scene.after, second], **scene.given(shadows=4)
        ).membership.not_made["LiRA"]
    )  # type: ignore[union-attr]


def test_layers_shares_add_up_and_mitigation_stops_at_the_first_that_is_enough() -> None:
    scene = scenes.memorized()
    report = audit(scene.before, scene.after, **scene.given())
    assert sum(share for _, share in report.layers.values()) == pytest.approx(1.0)
    assert [t.enough for t in report.mitigation][:-1] == [False] * (len(report.mitigation) - 1)
    assert report.mitigation[-1].enough
    assert report.mitigation[-1].leak_after < report.mitigation[-1].leak_before


def test_labels_are_read_from_the_bias_of_plain_sgd() -> None:
    x, _ = scenes.noise(260, 4)
    y = torch.cat([torch.zeros(30), torch.ones(10), torch.randint(0, 4, (220,))]).long()
    model = scenes.net()
    after = scenes.train(model, x[:40], y[:40], steps=1, batch=40)
    recipe = {"optimizer": "sgd", "steps": 1, "learning_rate": 0.5, "batch_size": 40}
    member = [k < 40 for k in range(260)]
    report = audit(
        model.state_dict(), after, base=model, recipe=recipe, candidates=(x, y), is_member=member, shadows=0
    )
    assert report.labels is not None
    assert report.labels.error is not None
    assert report.labels.prior_error is not None
    assert report.labels.error < 0.06 < 0.3 < report.labels.prior_error


# --------------------------------------------------------------------------------------- runs, examples, docs


def test_a_runs_folder_is_audited_alone(home: Path, tmp_path: Path) -> None:
    job = {"engine.checkpoint_every": 1, "rounds": 3, "output": str(tmp_path)}
    result = sf.run(ROOT / "configs" / "digits.toml", overrides=job, folder=tmp_path / "run")
    report = sf.audit(result.folder, sample=600)
    tree = report.to_json()
    assert tree["verdict"] == "NO EVIDENCE"
    assert len(tree["rounds"]) == 2
    assert {v["name"] for v in tree["views"] if v["made"]} == {"sum", "final model"}
    assert "seeded sample of 300" in tree["facts"]["Candidates"]


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.toml").write_text((ROOT / "configs" / "digits.toml").read_text())
    with pytest.raises(sf.AuditError, match="no checkpoint yet"):
        sf.audit(tmp_path)


def test_the_example_finds_a_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("audit_two_checkpoints").main(str(tmp_path)) == "LEAKS"
    assert "NO EVIDENCE  membership, noised" in capsys.readouterr().out
    assert (tmp_path / "audit.html").exists()


def test_every_block_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "audit.md", "exec"), scope)
    assert json.loads((tmp_path / "audit.json").read_text())["verdict"] == "LEAKS"


def test_every_command_of_the_documentation_is_understood() -> None:
    import shlex

    from securefed.cli import parse

    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    lines = [line.split("#")[0] for line in blocks.splitlines() if line.startswith("securefed")]
    assert len(lines) == 3
    for line in lines:
        assert parse(shlex.split(line)[1:]).command == "audit"
