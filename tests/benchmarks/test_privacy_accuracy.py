"""The first page's picture says what its table says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from securefed_benchmarks.privacy_accuracy import FIGURE, MARK, PAGE, Frame, draw, read

TABLE = f"""words before

{MARK}
| | epsilon 8 | 3 | without privacy |
| --- | --- | --- | --- |
| here | .8, .9 | .7, .8, .6 | |
| there & then | | | .95 |

| another | table |
"""


def test_the_table_is_read_draw_by_draw() -> None:
    here, there = read(TABLE)
    assert here.points == {8.0: (0.8, 0.9), 3.0: (0.7, 0.8, 0.6)}
    assert not here.level
    assert (there.name, there.points, there.level) == ("there & then", {}, (0.95,))


def test_a_page_without_the_table_and_a_row_without_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match="no table behind"):
        read("nothing here")
    with pytest.raises(ValueError, match="'there & then'"):
        read(TABLE.replace(".95", "much"))


def test_a_higher_accuracy_is_drawn_higher_and_every_draw_lies_inside() -> None:
    frame = Frame.around(read(TABLE))
    assert frame.low <= 0.6
    assert frame.high >= 0.95
    assert frame.y(0.9) < frame.y(0.8) < frame.y(0.6)
    assert frame.x(3.0) < frame.x(8.0)


def test_the_picture_is_svg_that_says_its_means_in_words() -> None:
    root = ET.fromstring(draw(read(TABLE)))
    title = root.findtext("{http://www.w3.org/2000/svg}title") or ""
    assert "here: 0.850 at epsilon 8, 0.700 at epsilon 3" in title
    assert "there & then, without privacy: 0.950" in title


def test_the_picture_in_the_docs_is_drawn_from_the_table_in_the_docs() -> None:
    assert FIGURE.read_text(encoding="utf-8") == draw(read(PAGE.read_text(encoding="utf-8"))), (
        "run: make figures"
    )


def test_its_letters_are_readable_on_a_telephone() -> None:
    text = FIGURE.read_text(encoding="utf-8")
    width = float(re.search(r'viewBox="0 0 (\d+)', text)[1])  # type: ignore[index]  # it is there, or the test fails
    sizes = [float(size) for size in re.findall(r'font-size="(\d+)"', text)]
    assert min(sizes) * 360 / width >= 11
