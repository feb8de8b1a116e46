"""The page: opened, sorted and filtered in a real browser, 10,000 rows at once; hostile names stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.commands.output import say
from securefed_benchmarks.bench import report as reports
from securefed_benchmarks.bench.report import write_bench_report
from securefed_benchmarks.bench.store import Store
from tests.benchmarks.bench import browser
from tests.benchmarks.bench.suites import row

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium on this machine")


def bench_folder(folder: Path, configurations: int, seeds: int, hostile: str = "") -> Path:
    """A folder as a bench leaves it, its numbers drawn."""
    rng = np.random.default_rng(0)
    defences, alphas = ["mean", "median", "krum", "nnm"], [10.0, 1.0, 0.1]
    attacks = [f"attack {k}" for k in range(-(-configurations // 12))]
    axes = {
        "heterogeneity": alphas,
        "attack": [*attacks, *([hostile] if hostile else [])],
        "defence": defences,
    }
    grid = {
        "name": "big",
        "about": hostile or "drawn",
        "job": {},
        "axes": axes,
        "seeds": list(range(seeds)),
        "measures": [],
    }
    store = Store(folder)
    store.note("suites", "s", {"name": "big", "about": hostile, "grids": [grid], "skipped": []}, "big")
    store.note("environments", "here", {"python": "3", "platform": "x", "cores": 2})
    chosen = [
        {"heterogeneity": a, "attack": t, "defence": d}
        for a in alphas
        for t in axes["attack"]
        for d in defences
    ][:configurations] + ([{"heterogeneity": 1.0, "attack": hostile, "defence": "mean"}] if hostile else [])
    with store._db:
        for k, labels in enumerate(chosen):
            for seed in range(seeds):
                accuracy = float(rng.uniform())
                scores = {"accuracy": accuracy, "best_accuracy": accuracy, "bytes_up": 2700.0}
                values: dict[str, Any] = {"labels": labels, "seed": seed, "scores": scores, "suite": "big"}
                changed = [f"data.alpha={labels['heterogeneity']}", "aggregator=" + labels["defence"]]
                values |= {"grid": "big", "key": f"{k}/{seed}", "changed": changed, "curves": {}}
                _insert(store, row(seed, **values))
    store.close()
    return folder


def _insert(store: Store, one: Any) -> None:
    """Without a transaction of its own: ten thousand of them take minutes."""
    import json

    values = [
        one.key,
        one.code,
        one.suite,
        one.grid,
        json.dumps(one.labels),
        one.seed,
        one.state,
        json.dumps(one.scores),
        "{}",
        "{}",
        json.dumps(one.changed),
        "",
        one.environment,
        one.commit,
        1.0,
        0.5,
        0.4,
    ]
    store._db.execute(f"insert into results values (null,{','.join('?' * len(values))})", values)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bench_report([bench_folder(tmp_path_factory.mktemp("big"), 2000, 5)]).page


@pytest.fixture
def opened(big: Path, tmp_path: Path) -> Iterator[browser.Page]:
    with browser.page(tmp_path / "profile") as page:
        page.open(big)
        yield page


def shown(page: browser.Page, column: int) -> list[str]:
    cells = f"[...document.querySelectorAll('.body .row')].map(r => r.children[{column}].textContent)"
    return list(page.run(cells))


def titles(page: browser.Page) -> list[str]:
    return list(page.run("[...document.querySelectorAll('.head button')].map(b => b.textContent)"))


@needs_browser
def test_ten_thousand_rows_open_in_two_seconds_and_nothing_is_complained_or_fetched(
    opened: browser.Page,
) -> None:
    opened.run("document.querySelector('[data-kind=runs]').click()")
    assert opened.run("document.getElementById('count').value") == "10,000 of 10,000"
    milliseconds = float(opened.run("document.body.dataset.ready"))
    assert milliseconds < 2000 * 4  # the goal is 2 s; four times as long on a machine that others use
    assert opened.run("document.querySelectorAll('.body .row').length") < 100  # a screenful, not ten thousand
    assert opened.complaints == []
    assert [u for u in opened.requests if not u.startswith(("file:", "data:"))] == []
    say(f"ready after {milliseconds:.0f} ms")


@needs_browser
def test_the_first_row_lies_below_the_headings(opened: browser.Page) -> None:
    edge = "document.querySelector('.grid .head').getBoundingClientRect().bottom"
    assert opened.run(f"document.querySelector('.body .row').getBoundingClientRect().top >= {edge} - 0.5")


@needs_browser
def test_a_heading_sorts_up_and_down(opened: browser.Page) -> None:
    column = titles(opened).index("accuracy, %")
    click = f"document.querySelectorAll('.head button')[{column}].click()"
    opened.run(click)
    down = [float(text.split(" ")[0]) for text in shown(opened, column)]
    assert down == sorted(down, reverse=True)
    opened.run(click)
    up = [float(text.split(" ")[0]) for text in shown(opened, column)]
    assert up == sorted(up)
    assert up[0] < down[0]
    state = f"document.querySelectorAll('.head [role=columnheader]')[{column}].getAttribute('aria-sort')"
    assert opened.run(state) == "ascending"


@needs_browser
def test_labels_that_are_numbers_sort_as_numbers(opened: browser.Page) -> None:
    column = titles(opened).index("heterogeneity")
    opened.run(f"document.querySelectorAll('.head button')[{column}].click()")
    assert set(shown(opened, column)) == {"0.1"}
    opened.run(f"document.querySelectorAll('.head button')[{column}].click()")
    assert set(shown(opened, column)) == {"10"}


@needs_browser
def test_filters_by_choice_by_number_and_by_word_join(opened: browser.Page) -> None:
    names = titles(opened)
    defence, accuracy = names.index("defence"), names.index("accuracy, %")
    act = "n.dispatchEvent(new Event(n.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))"
    opened.run(
        f"{{ const n = document.querySelectorAll('.filters select')[{defence}]; n.value = '=krum'; {act} }}"
    )
    assert set(shown(opened, defence)) == {"krum"}
    opened.run(
        f"{{ const n = document.querySelectorAll('.filters > *')[{accuracy}].firstChild; n.value = '> 60'; {act} }}"
    )
    assert all(float(text.split(" ")[0]) > 60 for text in shown(opened, accuracy))
    opened.run(
        "{ const n = document.getElementById('search'); n.value = 'attack 7'; n.dispatchEvent(new Event('input')) }"
    )
    assert all("attack 7" in text for text in shown(opened, names.index("attack")))
    opened.run(
        f"{{ const n = document.querySelectorAll('.filters > *')[{accuracy}].firstChild; n.value = '> 101'; {act} }}"
    )
    assert opened.run("document.querySelector('.none').textContent") == "Nothing fits these filters."
    assert opened.complaints == []


@needs_browser
def test_scrolling_to_the_end_shows_the_last_row(opened: browser.Page) -> None:
    opened.run("document.querySelector('[data-kind=runs]').click()")
    opened.run("{ const g = document.getElementById('table'); g.scrollTop = g.scrollHeight; g.onscroll() }")
    assert (
        opened.run("[...document.querySelectorAll('.body .row')].at(-1).getAttribute('aria-rowindex')")
        == "10000"
    )


@needs_browser
def test_a_number_leads_to_its_config_and_its_command(opened: browser.Page) -> None:
    href = opened.run("document.querySelector('.body .n a').getAttribute('href')")
    opened.run(
        f"new Promise(d => {{ addEventListener('hashchange', () => setTimeout(d)); location.hash = '{href}' }})"
    )
    text = opened.run("document.querySelector('dialog[open]').textContent")
    assert "securefed bench big --only grid=big" in text
    assert "securefed run jobs/big-big.toml data.alpha=10" in text
    assert "aggregator=mean" in text
    opened.run("document.querySelector('dialog .close').click()")
    assert opened.run("document.querySelector('dialog[open]')") is None
    assert opened.complaints == []


@needs_browser
def test_a_name_that_is_markup_stays_text(tmp_path: Path) -> None:
    path = write_bench_report([bench_folder(tmp_path / "b", 4, 2, HOSTILE)]).page
    assert HOSTILE not in path.read_text(encoding="utf-8")
    with browser.page(tmp_path / "profile") as page:
        page.open(path)
        assert "owned" not in page.run("document.title")
        assert page.run("document.querySelectorAll('img').length") == 0
        assert any("onerror" in text for text in shown(page, 1))
        assert page.complaints == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_never_wider_than_its_window(tmp_path: Path, big: Path, width: int) -> None:
    with browser.page(tmp_path / "profile", width) as page:
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        page.open(big)
        assert page.run("document.documentElement.scrollWidth") <= width


def test_the_page_loads_nothing(big: Path) -> None:
    text = big.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.findall(r'(?:src|href)="(?!#|data:,)', text) == []


def test_a_report_is_the_same_whatever_the_order_in_which_rows_came(tmp_path: Path) -> None:
    rows = [
        row(k % 3, labels={"attack": a, "defence": "mean"}, key=f"{a}{k}") for a in "ab" for k in range(3)
    ]
    grid = {"name": "small", "job": {}, "axes": {"attack": ["a", "b"]}, "seeds": [0, 1, 2], "measures": []}
    texts = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        store = Store(tmp_path / name)
        store.note("suites", "s", {"name": "tiny", "grids": [grid], "skipped": []}, "tiny")
        for one in order:
            store.append(one)
        store.close()
        write_bench_report([tmp_path / name])
        texts.append([(tmp_path / name / f).read_text() for f in ("tables.md", "tables.csv", "bench.html")])
    assert texts[0] == texts[1]
    assert reports.is_bench(tmp_path / "one")
    assert not reports.is_bench(tmp_path)
