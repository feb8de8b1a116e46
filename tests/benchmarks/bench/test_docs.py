"""The page on reading the numbers: its code runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "reading-the-numbers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_code_block_runs(block: str) -> None:
    exec(compile(block, str(PAGE), "exec"), {})


def test_there_is_a_code_block() -> None:
    assert BLOCKS
