"""The pages for readers, README.md and docs/, as blocks of code and lines of shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is its first line's number in the page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """The blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        indent, language, code = found.groups()
        if language in languages:
            code = re.sub(rf"^{indent}", "", code, flags=re.M)
            yield Block(page, text.count("\n", 0, found.start()) + 2, language, code)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block: comments gone, continued lines joined, `a && b; c` apart."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";&")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= {";", "&"}:
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def links(page: Path) -> Iterator[str]:
    """Files of the project that a page points to."""
    words = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", words)
