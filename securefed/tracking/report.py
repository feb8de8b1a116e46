"""`report.html`: one self-contained page that a newcomer can read, built from the folder's files alone.

No script, no network, no private text. Everything that comes from the job or the data is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from securefed.errors import CheckpointError
from securefed.tracking import plots
from securefed.tracking.folder import read_rounds, write_text

STYLE = """
:root{--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--ground:#fff;--panel:#f9fafb;--accent:#0072b2;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--ground:#111827;--panel:#1f2937;--accent:#56b4e9;--warn:#fbbf24}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
p{margin:.5rem 0}.soft{color:var(--soft)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1.2rem 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}.card b{display:block;font-size:1.45rem;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}td.n,th.n{text-align:right}
.note{border-left:4px solid var(--warn);background:var(--panel);padding:.6rem .9rem;margin:1rem 0;border-radius:0 .4rem .4rem 0}
pre{background:var(--panel);border:1px solid var(--line);border-radius:.4rem;padding:.7rem .9rem;overflow-x:auto;font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}
.picture{background:#fff;border-radius:.5rem;padding:.4rem;border:1px solid var(--line)}.picture svg{width:100%;height:auto;display:block}details{margin:.8rem 0}summary{cursor:pointer;color:var(--accent)}
"""

REVEALS = {"plain": "the server receives every client's update in the clear (protection: plain)"}


def write_report(folder: Path) -> Path:
    """Rebuilds the page and the pictures from the folder's files.

    Raises:
        CheckpointError: the folder is not one of a run that has begun.
    """
    facts, rounds = _read(folder, "facts.json"), read_rounds(folder)
    if facts is None:
        raise CheckpointError(
            f"{folder} holds no run (facts.json is missing); give the folder that securefed run printed"
        )
    summary, config = (
        _read(folder, "summary.json") or {},
        (folder / "config.toml").read_text(encoding="utf-8"),
    )
    baselines, shards = _read(folder, "baselines.json") or {}, _read(folder, "shards.json") or []
    names = {str(s["client"]): str(s["name"]) for s in shards}
    target = (facts["mechanism"] or {}).get("epsilon")
    pictures = {
        "accuracy": plots.scores(rounds, baselines) if rounds else None,
        "epsilon": plots.epsilon(rounds, target),
        "clients": plots.clients(summary.get("client_metrics") or {}, names),
    }
    inline: dict[str, str] = {}
    for name, figure in pictures.items():
        if figure is not None:
            inline[name] = f'<div class="picture">{plots.to_svg(figure, name)}</div>'
            plots.save_png(figure, folder / "plots" / f"{name}.png")
    body = [
        _head(facts, summary, rounds),
        _cards(facts, summary, rounds),
        _guarantee(facts, summary, config),
        _scores(summary, rounds, baselines, inline),
        _clients(summary, names, inline),
        _data(facts, shards, folder),
        _cost(summary, rounds),
        _diagnostics(rounds, facts),
        _again(folder, facts, config, _read(folder, "environment.json") or {}),
    ]
    title = escape(str(facts["name"]))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: SecureFed report</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _read(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return "&ndash;"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:.{digits}f}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose columns of numbers, headings included, stand to the right."""
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(head))]

    def line(values: Sequence[Any], tag: str) -> str:
        cells = []
        for value, numeric in zip(values, right, strict=True):
            text = _number(value) if _is_number(value) else escape(str(value))
            side = ' class="n"' if numeric else ""
            cells.append(f"<{tag}{side}>{text}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(head, "th")}{body}</table></div>'


def _head(facts: Mapping[str, Any], summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    data, model = facts["dataset"], facts["model"]
    ended = {
        "rounds": "all rounds were played",
        "budget": "it stopped because the privacy budget was spent",
        "converged": "it stopped because the watched score no longer improved",
        "interrupted": "it was interrupted and can be resumed",
    }.get(summary.get("stopped", ""), "it has not ended")
    return (
        f"<h1>{escape(str(facts['name']))}</h1><p class='soft'>run {escape(facts['run'])}; {len(rounds)} rounds, {ended}</p>"
        f"<p><b>{escape(str(model['name']))}</b> ({model['parameters']:,} parameters, {model['trainable']:,} of them trained) was tuned on "
        f"<b>{escape(str(data['name']))}</b>: {data['train']:,} training records held by clients, {data['test']:,} public test records.</p>"
        '<p class="note">Simulated in one process: this process held all data and keys, so no protection between clients '
        "was in force while it ran. What is said below holds for what was released.</p>"
    )


def _cards(facts: Mapping[str, Any], summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    metrics, statement = summary.get("metrics") or {}, summary.get("statement") or {}
    cards: list[tuple[str, str]] = []
    for name in ("accuracy", "balanced_accuracy", "perplexity"):
        if metrics.get(name) is not None:
            cards.append((_number(metrics[name]), name.replace("_", " ") + ", global test set"))
    if statement:
        cards.append(
            (
                _number(_float(statement["epsilon"]), 2),
                f"epsilon at delta {statement['delta']:g}, per {facts['mechanism']['unit']}",
            )
        )
    cards.append((f"{summary.get('mib_up', 0.0):.1f} MiB", "sent by all clients"))
    cards.append((_time(summary.get("seconds", 0.0)), "wall-clock time"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{v}</b><span>{escape(t)}</span></div>' for v, t in cards)
        + "</div>"
    )


def _float(value: Any) -> float:
    return float("inf") if value == "infinity" else float(value)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _guarantee(facts: Mapping[str, Any], summary: Mapping[str, Any], config: str) -> str:
    import tomllib

    job = tomllib.loads(config)
    name = job["protection"]["name"]
    seen = REVEALS.get(name, f"protection: {name}")
    if facts["mechanism"] is None:
        text = (
            "<p>No differential privacy: nothing bounds what an update or the model tells about a record.</p>"
        )
    else:
        text = f"<pre>{escape(summary.get('statement_text') or 'the run has not ended; see securefed epsilon')}</pre>"
    return f"<h2>Who is guaranteed what</h2>{text}<p>On the wire, {escape(seen)}.</p>"


def _scores(
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, Any],
    inline: Mapping[str, str],
) -> str:
    metrics = summary.get("metrics") or {}
    if not metrics:
        return ""
    keys = [
        k for k in ("accuracy", "balanced_accuracy", "f1", "loss", "perplexity") if metrics.get(k) is not None
    ]
    rows = [["this run", *(metrics[k] for k in keys)]]
    rows += [[n.replace("_", " "), *(b.get(k) for k in keys)] for n, b in baselines.items()]
    note = ""
    if baselines:
        note = "<p class='soft'>The baselines are trained without privacy on all clients' records in one place: a bar that a real federation could not compute.</p>"
    pictures = "".join(inline.get(n, "") for n in ("accuracy", "epsilon"))
    return f"<h2>What it reached, beside what is easy</h2>{_table(['', *(k.replace('_', ' ') for k in keys)], rows)}{note}{pictures}"


def _clients(summary: Mapping[str, Any], names: Mapping[str, str], inline: Mapping[str, str]) -> str:
    per = summary.get("client_metrics") or {}
    if not per:
        return ""
    key = next((n for n in ("accuracy", "perplexity", "loss") if all(n in s for s in per.values())), None)
    if key is None:
        return ""
    values = [s[key] for s in per.values()]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    worst = min(per, key=lambda k: per[k][key]) if key == "accuracy" else max(per, key=lambda k: per[k][key])
    line = f"{key}: mean {mean:.3f}, worst {per[worst][key]:.3f} ({escape(names.get(worst, worst))}), standard deviation {spread:.3f} over {len(values)} clients"
    return f"<h2>Client by client</h2><p>{line}</p>{inline.get('clients', '')}"


def _data(facts: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], folder: Path) -> str:
    data = facts["dataset"]
    labels = [str(c) for c in data["classes"]]
    rows = [[s["name"], s["train"], s["test"], *(s.get("counts") or {}).values()] for s in shards]
    width = max((len(r) for r in rows), default=3)
    table = _table(["client", "train", "test", *labels[: width - 3]], rows)
    wrapped = (
        f"<details><summary>{len(shards)} clients and what each holds</summary>{table}</details>"
        if len(shards) > 15
        else table
    )
    drawn = folder / "plots" / "shards.svg"
    picture = f'<div class="picture">{_inline_svg(drawn)}</div>' if drawn.exists() else ""
    origin = f"<p>{escape(str(data['source']))}. Licence: {escape(str(data['licence']))}.</p>"
    return f"<h2>The data</h2>{origin}{picture}{wrapped}"


def _inline_svg(path: Path) -> str:
    """The picture's SVG element, without the XML prologue that HTML does not want."""
    text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _cost(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> str:
    if not summary:
        return ""
    refused = sum(len(r["refused"]) for r in rounds)
    rows: list[list[Any]] = [
        ["sent to the server", f"{summary['mib_up']:.2f} MiB"],
        ["sent to the clients", f"{summary['mib_down']:.2f} MiB"],
        ["wall-clock time", _time(summary["seconds"])],
        ["of it in local training", _time(sum(r["train_seconds"] for r in rounds))],
        ["peak memory", f"{summary['peak_mib']:.0f} MiB"],
        ["refused updates", f"{refused}"],
    ]
    return f"<h2>What it cost</h2>{_table(['', ''], rows)}"


def _diagnostics(rounds: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    told = [r for r in rounds if r["diagnostics"]]
    if not told:
        return ""
    keys = sorted({k for r in told for k in r["diagnostics"]})
    rows: list[list[Any]] = [
        [r["round"] + 1, r["phase"], *(r["diagnostics"].get(k) for k in keys)] for r in told
    ]
    warning = "Computed on the clients' private records. A real client never sends these, and no epsilon covers them."
    table = _table(["round", "phase", *(k.replace("_", " ") for k in keys)], rows)
    return f"<h2>Simulation diagnostics</h2><p class='note'>{warning}</p><details><summary>round by round</summary>{table}</details>"


def _again(folder: Path, facts: Mapping[str, Any], config: str, environment: Mapping[str, Any]) -> str:
    here = escape(folder.name)
    commands = [f"securefed run {here}/config.toml", f"securefed resume {here}"]
    if facts["mechanism"] is not None:
        commands = [
            f"securefed epsilon {here} --delta 1e-6",
            f"securefed run {here}/config.toml privacy.epsilon=3",
            *commands,
        ]
    packages = ", ".join(f"{k} {v}" for k, v in (environment.get("packages") or {}).items() if v)
    made = f"Python {environment.get('python')}, {environment.get('platform')}, {environment.get('cores')} cores; commit {environment.get('commit') or 'unknown'}; {packages}"
    return (
        f"<h2>Again, or otherwise</h2><pre>{chr(10).join(commands)}</pre><p class='soft'>{escape(made)}</p>"
        f"<details><summary>the job, resolved</summary><pre>{escape(config)}</pre></details>"
    )
