"""Pieces of the report's page: style, numbers, tables, bars. Whatever comes in as text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape
from typing import Any

from securefed.tracking import numbers
from securefed.tracking.plots import CLASSES

STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--soft:#5b6472;--line:#dfe3e8;--ground:#fff;--panel:#f5f7f9;--accent:#0072b2;--second:#c04f00;--warn:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#a3abb8;--line:#374151;--ground:#111827;--panel:#1b2433;--accent:#56b4e9;--second:#f0883e;--warn:#fbbf24}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
main{max-width:64rem;margin:0 auto;padding:1.6rem 1.2rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.2rem;line-height:1.3;margin:2.6rem 0 .8rem;padding-bottom:.35rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}.soft{color:var(--soft)}small,.small{font-size:.875rem}
.note{border-left:4px solid var(--warn);background:var(--panel);padding:.6rem .9rem;margin:1rem 0;border-radius:0 .4rem .4rem 0;max-width:none}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.6rem,1fr));gap:.7rem;margin:1.2rem 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
.card b{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums}
.card span{display:block;color:var(--soft);font-size:.85rem;line-height:1.35}
dl{display:grid;grid-template-columns:10.5rem 1fr;gap:.35rem 1rem;margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0}dd ul{margin:0;padding-left:1.1rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:50%}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{color:var(--soft);font-weight:600}td.n,th.n{text-align:right}
.bars{display:grid;grid-template-columns:minmax(5rem,max-content) 1fr max-content;gap:.28rem .8rem;align-items:center;font-size:.9rem;max-width:46rem}
.bars>span{overflow:hidden;text-overflow:ellipsis;max-width:13rem;line-height:1.3}.bars>b{font-weight:400;text-align:right;font-variant-numeric:tabular-nums}
.bars .own{font-weight:600}
.track{position:relative;height:.95rem;background:var(--panel);border-radius:.2rem;display:flex;overflow:hidden}
.track i{display:block;height:100%;background:var(--soft);opacity:.65}.track i.own{background:var(--accent);opacity:1}.track i.part{opacity:1}
.track u{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:var(--ink);box-shadow:0 0 0 1.5px var(--ground)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.85rem;margin:.3rem 0 .6rem}.legend i{display:inline-block;width:.8em;height:.8em;border-radius:.15rem;margin-right:.4em;vertical-align:-.05em}
.legend u{display:inline-block;height:.9em;width:2px;background:var(--ink);margin-right:.5em;vertical-align:-.1em}
.pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem;margin:1rem 0}
.pictures svg{width:100%;height:auto;max-width:34rem;display:block}
pre{background:var(--panel);border:1px solid var(--line);border-radius:.4rem;padding:.7rem .9rem;font-size:.85rem;line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--accent)}
.flag{display:inline-block;font-size:.75rem;font-weight:600;color:var(--warn);border:1px solid var(--warn);border-radius:1rem;padding:.02rem .6rem;margin-left:.5rem;vertical-align:.12em;white-space:nowrap}
@media(max-width:34rem){main{padding:1.1rem .8rem 3rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.55rem}.bars>span{max-width:8rem}.flag{margin-left:0}h2 .flag{display:table;margin-top:.3rem}}
@media print{details{display:none}body{font-size:11pt}}
"""


@dataclass(frozen=True)
class Bar:
    """One bar: `value` in the scale of its chart; `own` ones are highlighted."""

    name: str
    value: float
    text: str
    own: bool = False


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """The whole document. It loads nothing: style and pictures are inside, there is no script.

    Args:
        style: rules of this page alone, after those of all pages.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}{style}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def section(title: str, *parts: str, flag: str = "") -> str:
    """A headed section; nothing at all where its parts are empty."""
    pill = f' <span class="flag">{escape(flag)}</span>' if flag else ""
    return f"\n<h2>{escape(title)}{pill}</h2>\n{''.join(parts)}" if any(parts) else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_kind(kind)}>{escape(text)}</p>" if text else ""


def details(summary: str, content: str) -> str:
    """Content that is folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def preformatted(text: str) -> str:
    """Text as it is, wrapped where a line is too long."""
    return f"<pre>{escape(text)}</pre>"


def facts(pairs: Iterable[tuple[str, str | Sequence[str]]]) -> str:
    """Named facts; a sequence becomes a list, an empty one is left out."""
    lines = []
    for name, value in pairs:
        if not value:
            continue
        text = (
            escape(value)
            if isinstance(value, str)
            else f"<ul>{''.join(f'<li>{escape(v)}</li>' for v in value)}</ul>"
        )
        lines.append(f"<dt>{escape(name)}</dt><dd>{text}</dd>")
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def cards(pairs: Iterable[tuple[str, str]]) -> str:
    """The few numbers that a reader looks for first."""
    inside = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in pairs)
    return f'<div class="cards">{inside}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of text and numbers; numbers stand right, and a missing one is a dash."""
    listed = list(rows)
    if not listed:
        return ""
    numeric = [all(_is_number(row[i]) for row in listed) for i in range(len(head))]
    top = "".join(
        f"<th{_kind('n' if n else '')}>{escape(h)}</th>" for h, n in zip(head, numeric, strict=True)
    )
    lines = ["".join(_cell(v, n) for v, n in zip(row, numeric, strict=True)) for row in listed]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def bars(rows: Sequence[Bar], high: float, mark: float | None = None, plain: bool = False) -> str:
    """Horizontal bars from 0 to `high`, with a line at `mark` in each; `plain`: none stands back."""
    line = "" if mark is None else f'<u style="left:{_share(mark, high)}"></u>'
    lines = []
    for bar in rows:
        own = ' class="own"' if bar.own else ""
        fill = ' class="own"' if bar.own or plain else ""
        lines.append(
            f'<span{own} title="{escape(bar.name)}">{escape(bar.name)}</span><div class="track"><i{fill} '
            f'style="width:{_share(bar.value, high)}"></i>{line}</div><b{own}>{escape(bar.text)}</b>'
        )
    return f'<div class="bars">{"".join(lines)}</div>' if lines else ""


def stacked(rows: Sequence[tuple[str, Mapping[str, float], str]], high: float) -> str:
    """Bars (name, part -> amount, text) whose parts lie behind each other, all on the scale 0 to `high`."""
    lines = []
    for name, parts, text in rows:
        pieces = "".join(
            f'<i class="part" style="width:{_share(v, high)};background:{CLASSES[k % len(CLASSES)]}" '
            f'title="{escape(part)}: {v:,.0f}"></i>'
            for k, (part, v) in enumerate(parts.items())
        )
        lines.append(
            f'<span title="{escape(name)}">{escape(name)}</span><div class="track">{pieces}</div><b>{escape(text)}</b>'
        )
    return f'<div class="bars">{"".join(lines)}</div>' if lines else ""


def legend(names: Sequence[str]) -> str:
    """Which colour of `stacked` is which part."""
    items = (
        f'<span><i style="background:{CLASSES[k % len(CLASSES)]}"></i>{escape(n)}</span>'
        for k, n in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>' if len(names) > 1 else ""


def mark_legend(text: str) -> str:
    """What the line of `bars` is."""
    return f'<div class="legend"><span><u></u>{escape(text)}</span></div>'


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any, numeric: bool) -> str:
    if numeric and isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    return f"<td{_kind('n' if numeric else '')}>{escape(numbers.score(value) if _is_number(value) else str(value))}</td>"


def _share(value: float, high: float) -> str:
    """A width in percent; whatever the value, inside the track."""
    share = value / high if high > 0 and math.isfinite(value) else 0.0
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
