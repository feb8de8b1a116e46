"""The report: self-contained, well-formed, escaped, honest about what is private, and never half empty."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import load_config
from securefed.errors import CheckpointError
from securefed.tracking import numbers
from securefed.tracking.files import read_json, write_json
from securefed.tracking.folder import FolderTracker
from securefed.tracking.report import write_report
from securefed.tracking.tracker import RunInfo
from tests.securefed.tracking import fakes

VOID = {"meta", "link", "br", "hr", "img", "input", "use", "path", "rect", "stop"}
EVIL = '<script>alert("x")</script>&$\\frac{'


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and keeps headings, ids, links and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.ids += [i for i in [found.get("id")] if i]
        self.loads += [
            v for k, v in attrs if v and k in ("src", "href", "xlink:href", "data", "poster", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(folder: Path, told: RunInfo | None = None, end: bool = True) -> tuple[str, Page]:
    fakes.play(FolderTracker(folder), told or fakes.info(folder), end)
    if not end:
        write_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_it_is_one_well_formed_page_that_loads_nothing(tmp_path: Path) -> None:
    text, page = report(tmp_path)
    assert text.startswith("<!doctype html>")
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(target.startswith("#") for target in page.loads)
    assert not re.search(r"url\((?!#)|@import|javascript:|\son\w+=", text)
    assert len(page.ids) == len(set(page.ids))  # two pictures on a page must not share clip paths
    assert "prefers-color-scheme:dark" in text
    assert len(text) < 200_000


def test_it_answers_what_a_newcomer_asks(tmp_path: Path) -> None:
    _, page = report(tmp_path)
    for answer in (
        "minilm",
        "sentiment",
        "MIT",
        "this process held all keys and data; no protection between clients was in force",
        "The server sees each client's update, one by one (protection: plain)",
        "epsilon at most 7.99 at delta 1e-5, by PLD",
        fakes.STATEMENT["adversary"],
        fakes.STATEMENT["holds_for"],
        fakes.STATEMENT["not_covered"][1],
        "1 unfinished attempt",
        "epsilon at most 12.45 over 3 runs",
        "majority class",
        "TF-IDF",
        "frozen probe",
        "standard deviation over clients",
        "12.7 MiB",
        "Python 3.11.9",
        "refused: update is not finite",
        "did not answer",
        "securefed epsilon",
        "privacy.epsilon=4",
    ):
        assert re.sub(r"\s+", " ", answer) in page.text, answer


def test_names_from_jobs_and_data_are_escaped_everywhere(tmp_path: Path) -> None:
    told = fakes.info(tmp_path)
    shards = [{**s, "name": f"{EVIL}{s['client']}"} for s in told.shards]
    told = fakes.replace(
        told,
        name=EVIL.replace("/", ""),
        shards=shards,
        dataset={
            **told.dataset,
            "name": EVIL,
            "source": EVIL,
            "licence": EVIL,
            "classes": [EVIL, f"{EVIL}2"],
        },
        model={**told.model, "name": EVIL},
        baselines={EVIL: {"accuracy": 0.5}},
        environment={**told.environment, "commit": EVIL, "packages": {EVIL: EVIL}},
    )
    shards[0]["counts"] = {EVIL: 3, f"{EVIL}2": 4}
    text, page = report(tmp_path, told)
    assert "<script" not in text
    assert "script" not in page.tags
    assert EVIL in page.text


def test_what_is_private_is_flagged_under_dp_and_only_there(tmp_path: Path) -> None:
    for name, private in (("dp", True), ("none", False)):
        folder = tmp_path / name
        folder.mkdir()
        text, page = report(folder, fakes.info(folder, fakes.job(private=private)))
        flagged = re.findall(r"<h2>([^<]*) <span class=\"flag\">computed on private data</span>", text)
        wanted = ["Client by client", "Who holds what", "Simulation diagnostics"] if private else []
        assert flagged == wanted
        assert ("a real client never sends these" in page.text) == private
        assert ("No differential privacy" in page.text) != private


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 5])
def test_an_unfinished_run_has_a_report_without_empty_sections(
    tmp_path: Path, private: bool, keep: int
) -> None:
    fakes.play(FolderTracker(tmp_path), fakes.info(tmp_path, fakes.job(private=private)), end=False)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:keep]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert not re.search(r"</h2>\s*(<h2|$)|<dl></dl>|<tbody></tbody>|nan|None", text)
    assert "it has not ended" in page.text
    assert "securefed resume" in page.text


def test_it_is_rebuilt_the_same_from_the_files_alone(tmp_path: Path) -> None:
    text, _ = report(tmp_path)
    for name in ("report.html", "plots/accuracy.png", "plots/epsilon.png", "plots/clients.png"):
        (tmp_path / name).unlink()
    assert write_report(tmp_path).read_text(encoding="utf-8") == text
    assert (tmp_path / "plots" / "accuracy.png").stat().st_size > 1000


def test_no_absolute_folder_is_in_it(tmp_path: Path) -> None:
    text, _ = report(tmp_path)
    assert str(tmp_path.parent) not in text


def test_a_folder_with_a_space_gives_commands_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    _, page = report(folder)
    assert "securefed epsilon 'my run'" in page.text


@pytest.mark.parametrize(
    ("changes", "a_round", "seen"),
    [
        (
            {},
            "12 of 12 clients, 1 step each with sgd; mean of their updates, applied by fedavg",
            "update, one by one",
        ),
        (
            {"algorithm": "securefed.algorithms.fedsgd:FedSGD"},
            "12 of 12 clients send the sum of their records' clipped gradients, with which fedavg takes one step",
            "sum of clipped gradients, one by one",
        ),
        (
            {"algorithm": "distill", "distill": {"send": "votes", "records": 1200}},
            "mean of their votes on 1,200 public records, which the server's student learns in 200 steps",
            "answers, one by one",
        ),
        (
            {
                "algorithm": {"name": "fedbuff", "concurrency": 6},
                "clients_per_round": 3,
                "clock": {"seconds": 9.0},
            },
            "the next 3 of 12 clients that are ready, 1 step each",
            "update, one by one",
        ),
        (
            {"algorithm": "finetune", "rounds": 4},
            "applied by fedavg; in the last rounds everybody trains at home and sends nothing",
            "update, one by one",
        ),
    ],
)
def test_it_says_what_a_round_is_and_what_is_sent_under_every_algorithm(
    tmp_path: Path, changes: dict[str, Any], a_round: str, seen: str
) -> None:
    config = fakes.job(**{"rounds": 3, "model": {"adapter": "head"}, **changes})
    _, page = report(tmp_path, fakes.info(tmp_path, config))
    assert a_round in page.text
    assert f"The server sees each client's {seen} (protection: plain)" in page.text
    assert ("their updates" in page.text) is (config.algorithm.name in ("fedavg", "fedbuff", "finetune"))


def test_clients_that_are_drawn_in_secret_are_about_so_many(tmp_path: Path) -> None:
    told = fakes.info(tmp_path, fakes.job(rounds=2, clients_per_round=4))
    drawn = fakes.replace(told, privacy={**(told.privacy or {}), "unit": "client", "sample_rate": 1 / 3})
    assert "about 4 of 12 clients, each drawn by itself in secret" in report(tmp_path, drawn)[1].text


def test_the_next_commands_are_another_seed_and_more_noise_than_this_runs(tmp_path: Path) -> None:
    tree = {"train": {"steps": 1}, "seed": 1, "rounds": 2}
    noisy = {"unit": "example", "noise_multiplier": 4.0, "delta": 1e-5}
    config = load_config({**tree, "privacy": noisy})
    told = fakes.info(tmp_path, config)
    told = fakes.replace(told, privacy={**(told.privacy or {}), "noise_multiplier": 4.0})
    _, page = report(tmp_path, told)
    assert "seed=2" in page.text
    assert "privacy.noise_multiplier=8" in page.text


def test_the_data_rooms_own_table_is_shown_class_by_class(tmp_path: Path) -> None:
    from securefed.data import shard_table
    from securefed.data.records import Examples, Shard

    records = Examples(texts=("a", "b", "c", "d"), labels=np.array([0, 1, 1, 1]))
    shard = Shard(client=0, name="one", train=records, test=records, digest="x")
    text, page = report(tmp_path, fakes.info(tmp_path, shards=shard_table([shard], ["negative", "positive"])))
    assert 'title="negative: 1"' in text
    assert 'title="positive: 3"' in text
    assert '<th class="n">positive</th>' in text
    assert "positive" in page.text


def test_many_clients_stay_readable(tmp_path: Path) -> None:
    text, page = report(tmp_path, fakes.info(tmp_path, clients=300))
    assert "The 24 worst of 300 clients" in page.text
    assert len(text) < 400_000


def test_an_infinite_epsilon_is_called_infinite(tmp_path: Path) -> None:
    report(tmp_path)
    summary: dict[str, Any] = read_json(tmp_path / "summary.json")
    summary["statement"]["epsilon"] = "infinity"
    write_json(tmp_path / "summary.json", summary)
    rounds = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({**r, "epsilon": "infinity"}) + "\n" for r in rounds)
    )
    text = write_report(tmp_path).read_text()
    assert "epsilon at most infinite" in Page(text).text


def test_a_language_model_without_classes_or_baselines_has_a_report(tmp_path: Path) -> None:
    told = fakes.info(tmp_path, fakes.job(rounds=4, private=False), clients=3)
    shards = [{**s, "counts": {}} for s in told.shards]
    told = fakes.replace(told, baselines={}, shards=shards, dataset={**told.dataset, "classes": []})
    tracker = FolderTracker(tmp_path)
    tracker.start(told)
    scores = {"loss": 3.1, "perplexity": 22.2}
    for record in fakes.records(told.config, 3):
        tracker.round(fakes.replace(record, metrics=scores, client_metrics={0: scores, 1: scores}))
    tracker.end(
        fakes.replace(
            fakes.summary(told.config, clients=3), metrics=scores, client_metrics={0: scores, 1: scores}
        )
    )
    tracker.close()
    page = Page((tmp_path / "report.html").read_text())
    assert "The perplexity" in page.text
    assert "22.200" in page.text


@pytest.mark.parametrize("broken", [None, "{", "[]"])
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, broken: str | None) -> None:
    if broken is not None:
        (tmp_path / "facts.json").write_text(broken)
        (tmp_path / "config.toml").write_text("rounds = 3\n")
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)


def test_numbers_are_written_for_people() -> None:
    assert [numbers.small(v) for v in (1e-5, 1e-4, 2.5e-6, 0.01, 0.0123)] == [
        "1e-5",
        "1e-4",
        "2.5e-6",
        "0.01",
        "0.0123",
    ]
    assert numbers.spent(7.981234) == "7.99"  # never less than what was spent
    assert numbers.spent("infinity") == "infinite"
    assert [numbers.mib(v) for v in (0.02, 0.5, 12.34, 2048)] == [
        "20.5 KiB",
        "0.50 MiB",
        "12.3 MiB",
        "2.0 GiB",
    ]
    assert [numbers.clock(v) for v in (1.23, 9.97, 59.6, 61, 3720)] == [
        "1.2 s",
        "10 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 2 min",
    ]
    assert [numbers.score(v) for v in (0.5, None, "infinity", 12345.6)] == [
        "0.500",
        "–",
        "infinity",
        "12,346",
    ]
    assert [numbers.count(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
