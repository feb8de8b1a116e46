"""README and docs/ keep their word: their Python runs as it stands there, and so does their shell.

Blocks of one page share their names, from top to bottom, as somebody who follows the page types them. A shell line is
played too; what takes minutes, or needs the network or your files, is in `NOT_PLAYED` with the reason, and then
is at least one that the program would take.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from securefed.cli import build_parser, main
from securefed.config import load_config
from securefed.models.zoo import is_small
from tests.pages import PAGES, ROOT, Block, blocks, commands, links

EXAMPLE_RUN = re.compile(r"^runs/[\w-]+-\d{8}-\d{6}/?$")
"""How pages name a run folder; the test puts a finished run there."""
SHORT = {
    "rounds": 2,
    "data.limit": 200,
    "data.clients": 4,
    "train.epochs": 0,
    "train.steps": 2,
    "tracking.keep_views": 2,
    "privacy.unit": "example",
    "privacy.epsilon": 8.0,
}
SKETCHES = {
    "transport.md": ("session.begin(round, model, connected_clients)", "while not session.closed"),
}
"""Page -> marks of Python blocks that leave out what is the reader's own; their names must still exist."""
NEEDS = {"sentiment": "dataset", "spam": "dataset", "fashion-mnist": "dataset", "minilm": "model"}
NOT_PLAYED: tuple[tuple[str, str], ...] = (
    (
        r"make (demo|install|dev|data|test|test-slow|fuzz|build|lint|format)\b",
        "installs, or takes minutes; CI plays it",
    ),
    (r"make (bench|docs)", "takes minutes, or needs tools that only developers have"),
    (r"securefed bench ", "takes minutes; tests/benchmarks/bench plays small ones"),
    (r"securefed audit (before|after)/", "its two folders are the reader's; tests/attacks/audit plays one"),
    (r"securefed data get .*--force", "downloads"),
    (r"python examples/sockets", "tests/test_sockets_example.py plays it"),
    (
        r"(python -m |\S*/)?(pip|venv) |npm |apt-get |git |tensorboard ",
        "needs the network, or another program",
    ),
    (r"python -m securefed_benchmarks\.|python benchmarks/", "measures for minutes"),
    (r"(cd|source|export) ", "changes the reader's shell, and nothing else"),
)
"""A command -> why the test does not play it. It is parsed, or its target looked for, all the same."""


def shell() -> Iterator[Any]:
    """Every command of every page, with the marks of what it needs."""
    for page in PAGES:
        for block in blocks(page, "bash", "sh", "shell", "console"):
            for k, words in enumerate(commands(block)):
                text = " ".join(words)
                marks = {mark for name, mark in NEEDS.items() if re.search(rf"\b{name}\b", text)}
                yield pytest.param(
                    block,
                    words,
                    id=f"{block}-{k}",
                    marks=[getattr(pytest.mark, mark) for mark in sorted(marks)],
                )


@pytest.fixture
def a_run(
    _sites: Callable[[], Path], made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], None]:
    """Puts a finished, private run of two rounds where a page has one, and this test on its site."""
    import securefed as sf

    def put(folder: Path) -> None:
        if not made:
            made["site"] = _sites()
        monkeypatch.setenv("SECUREFED_HOME", str(made["site"]))
        if "run" not in made:
            target = made["site"] / "a-run"
            made["run"] = sf.run(ROOT / "configs" / "digits.toml", overrides=SHORT, folder=target).folder
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(made["run"], target_is_directory=True)

    return put


@pytest.fixture(scope="module")
def made() -> dict[str, Path]:
    """The site and the run of `a_run`, made once."""
    return {}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project's own and may be written to; it is the current one."""
    for name in ("configs", "examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


# -------------------------------------------------------------------------------------------------- Python


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_python_block_runs(page: Path, project: Path) -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    if page.parent.name == "docs":
        exec("import securefed as sf", scope)  # as README's first block does
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if not any(mark in block.code for mark in SKETCHES.get(page.name, ())):
            exec(code, scope)


def test_sketches_name_nothing_that_is_not_there() -> None:
    import securefed as sf

    for page in PAGES:
        for block in blocks(page, "python"):
            for name in re.findall(r"\bsf\.([A-Za-z_]\w*)", block.code):
                assert hasattr(sf, name), f"{block} says sf.{name}"


# --------------------------------------------------------------------------------------------------- shell


@pytest.mark.parametrize(("block", "words"), shell())
def test_every_command_is_played_or_at_least_taken(
    block: Block,
    words: list[str],
    project: Path,
    a_run: Callable[[Path], None],
    require_dataset: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = " ".join(words)
    if any(re.match(pattern, text) for pattern, _ in NOT_PLAYED):
        taken(words)
        return
    if words[0] != "securefed":
        play_program(words)
        return
    for word in words:
        if EXAMPLE_RUN.match(word):
            a_run(project / word.rstrip("/"))
    if words[1:3] == ["data", "get"]:
        require_dataset(words[3])
    if words[1] == "run":
        play_run(words[2:])
    else:
        assert main(words[1:]) in good_exits(words), capsys.readouterr().err


def play_run(words: Sequence[str]) -> None:
    """Plays a job's first round; a language model's, which takes minutes, is only read and checked."""
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    config = load_config(words[0], overrides)
    if is_small(config.model.name):
        assert main(["run", *words, "rounds=1", "data.limit=400"]) == 0


def good_exits(words: Sequence[str]) -> tuple[int, ...]:
    """Exit codes of a command that does its work: an audit's is its verdict's too."""
    return (0, 1) if words[1] == "audit" else (0,)


def play_program(words: Sequence[str]) -> None:
    """A program other than securefed, with this interpreter as its `python`."""
    path = os.pathsep.join(str(ROOT / p) for p in (".", "attacks", "defenses", "benchmarks"))
    program = [sys.executable, *words[1:]] if words[0] in ("python", "python3") else list(words)
    found = subprocess.run(program, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def taken(words: Sequence[str]) -> None:
    """What is not played must still be there: the command's arguments, the target, the file, the module."""
    if words[:2] == ["securefed", "bench"]:
        assert main([*words[1:], "--dry-run", "--yes"]) == 0
    elif words[0] == "securefed":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.M), f"no target {target}"
    elif words[:2] == ["python", "-m"] and words[2].startswith("securefed"):
        import importlib.util

        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), f"no file {words[1]}"


def test_reasons_are_given_for_few_commands() -> None:
    """The list is for what takes minutes; a page is not silenced by it."""
    played = not_played = 0
    for parameter in shell():
        text = " ".join(parameter.values[1])
        if any(re.match(pattern, text) for pattern, _ in NOT_PLAYED):
            not_played += 1
        else:
            played += 1
    assert played >= 10
    assert not_played <= 2 * played


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    known = {p.values[1][1] for p in shell() if p.values[1][0] == "securefed"}
    assert len(known) >= 5
    for command in sorted(known):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "example" in capsys.readouterr().out.lower()


# --------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_a_page_points_to_exists(page: Path) -> None:
    for target in links(page):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


KNOWN_ELSEWHERE = {"privacy-robustness"}
"""Words of the threat model that are no promise: the name of a suite."""


def test_readme_stays_under_two_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_what_a_page_gets_wrong_is_noticed(tmp_path: Path) -> None:
    page = ROOT / "docs" / "planted.md"
    block = Block(page, 1, "bash", "securefed run configs/nowhere.toml\nmake nothing\n")
    run, make = commands(block)
    with pytest.raises(Exception, match="nowhere"):
        play_run(run[2:])
    with pytest.raises(AssertionError, match="no target nothing"):
        taken(make)
    with pytest.raises(SystemExit):
        taken(["securefed", "bench", "quick", "--jobbs", "2"])
    with pytest.raises(AssertionError):
        taken(["securefed", "bench", "quick", "--only", "grid=nothing"])


def test_the_threat_models_sections_are_securitys_and_every_row_has_one() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.split("## ")[0].splitlines() if line.startswith("|")
    ]
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (.*)$", security, re.M))
    assert len(rows) > 15
    for row in rows[2:]:
        assert row[-1] in sections, row
    for word in re.findall(
        r"`([^`]+)`", text
    ):  # a field or choice that SECURITY.md does not know is nobody's promise
        name = word.split(" = ")[0].split(".")[-1]
        assert name in security or (ROOT / word).exists() or name in KNOWN_ELSEWHERE, word
