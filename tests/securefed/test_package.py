"""The package as a stranger meets it: its names, its speed, its tidiness."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import securefed

ROOT = Path(__file__).parents[2]
FOUR = ("securefed", "securefed_attacks", "securefed_defenses", "securefed_benchmarks")
HEAVY = ("torch", "transformers", "peft", "opacus", "sklearn", "matplotlib", "rich", "scipy", "numpy")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_every_public_name_can_be_had() -> None:
    missing = [name for name in securefed.__all__ if getattr(securefed, name, None) is None]
    assert missing == []
    assert set(dir(securefed)) == set(securefed.__all__)


def test_what_runs_and_what_type_checkers_see_are_the_same_names() -> None:
    tree = ast.parse(Path(securefed.__file__).read_text(encoding="utf-8"))
    seen: dict[str, str] = {}
    for block in tree.body:
        if isinstance(block, ast.If):
            for statement in block.body:
                assert isinstance(statement, ast.ImportFrom)
                assert statement.module
                seen |= {alias.asname or alias.name: statement.module for alias in statement.names}
    assert seen == securefed._HOME


def test_every_error_a_user_can_meet_is_public_and_has_one_root() -> None:
    from securefed import errors

    for name, kind in vars(errors).items():
        if isinstance(kind, type):
            assert getattr(securefed, name) is kind
            assert issubclass(kind, securefed.SecureFedError)
            assert kind("x").exit_code == 2


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = securefed.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = python(f"import sys, securefed; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_reading_a_job_does_not_load_torch() -> None:
    code = (
        "import sys, securefed; securefed.load_config({'train': {'steps': 1}})\n"
        f"print([m for m in {HEAVY} if m in sys.modules and m != 'numpy'])"
    )
    assert python(code).strip() == "[]"


def test_importing_the_package_takes_less_than_two_seconds() -> None:
    code = "import time; start = time.perf_counter(); import securefed; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(3)) < 2


def test_the_version_is_the_one_that_is_released() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert securefed.__version__ == project["version"]
    assert f"## {securefed.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_direct_dependency_has_its_tested_version_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    wanted = list(project["dependencies"])
    for extra in ("zoo", "dev", "tensorboard"):
        wanted += project["optional-dependencies"][extra]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names - pinned.keys() == set()
    assert pinned["torch"] == "2.13.0"  # no local suffix, so that every build of it satisfies the pin


@pytest.mark.parametrize("package", FOUR)
def test_each_package_says_what_it_is_and_carries_types(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert (Path(str(module.__file__)).parent / "py.typed").exists()


def test_the_outer_tables_are_what_their_catalogues_say() -> None:
    import securefed_attacks
    import securefed_defenses

    tables = {
        "attacks": set(securefed_attacks.BYZANTINE)
        | set(securefed_attacks.POISONS)
        | set(securefed_attacks.RECONSTRUCTIONS)
        | set(securefed_attacks.MEMBERSHIP),
        "defenses": set(securefed_defenses.AGGREGATORS) | set(securefed_defenses.PRE_AGGREGATORS),
    }
    for folder, names in tables.items():
        rows = re.findall(
            r"^\| `(\w+)(?:\(.*?\))?`",
            (ROOT / folder / "README.md").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        assert set(rows) == names
        assert not (ROOT / folder / "__init__.py").exists()


# ------------------------------------------------------------------------------------------ tidiness


def sources(*folders: str) -> list[Path]:
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def every_source() -> list[Path]:
    return sources("securefed", "attacks", "defenses", "benchmarks", "tests")


def unfinished(source: str) -> Iterator[str]:
    """Signs that something was left undone: markers in comments, methods that are not written."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX)\b", token.string):
            yield f"line {token.start[0]}: {token.string}"
        if token.type == tokenize.NAME and token.string == "NotImplementedError":
            yield f"line {token.start[0]}: {token.line.strip()}"


def untidy_test(source: str) -> Iterator[str]:
    """Sleeps, and tests switched off without saying why."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and id(node) not in called
            and ast.unparse(node).endswith(("mark.skip", "mark.xfail"))
        ):
            yield f"line {node.lineno}: {ast.unparse(node)} without a reason"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.endswith("time.sleep") or name == "sleep":
            yield f"line {node.lineno}: {name}"
        if name.endswith(("mark.skip", "mark.skipif", "mark.xfail")) and "reason" not in [
            k.arg for k in node.keywords
        ]:
            yield f"line {node.lineno}: {name} without a reason"
        if name in ("pytest.skip", "pytest.xfail") and not (node.args or node.keywords):
            yield f"line {node.lineno}: {name} without a reason"


@pytest.mark.parametrize("path", every_source(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_left_unfinished(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert list(unfinished(source)) == []
    if "tests" in path.relative_to(ROOT).parts:
        assert list(untidy_test(source)) == []


def test_what_is_unfinished_or_untidy_is_noticed() -> None:
    assert list(unfinished("x = 1  # TO" + "DO: more\n"))
    assert list(unfinished("def f():\n    raise Not" + "ImplementedError\n"))
    assert not list(unfinished("x = 'to do'  # done\n"))
    for source in (
        "time.sleep(1)",
        "from time import sleep\nsleep(1)",
        "@pytest.mark.skip\ndef test_a(): ...",
        "@pytest.mark.skip()\ndef test_a(): ...",
        "@pytest.mark.skipif(True)\ndef test_a(): ...",
        "@pytest.mark.xfail\ndef test_a(): ...",
        "pytest.skip()",
    ):
        assert list(untidy_test(source)), source
    assert not list(
        untidy_test("@pytest.mark.skipif(True, reason='no GPU')\ndef test_a(): ...\npytest.skip('no data')")
    )


def test_library_code_prints_nothing() -> None:
    for path in sources("securefed", "attacks/securefed_attacks", "defenses/securefed_defenses"):
        if path.relative_to(ROOT).parts[:2] in (("securefed", "cli.py"), ("securefed", "cli")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            calls_print = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            )
            assert not calls_print, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_the_readme_is_short_and_its_python_parses() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        ast.parse(block)


def test_the_readme_names_only_make_targets_and_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(
        re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)) <= targets
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
