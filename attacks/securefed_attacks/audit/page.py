"""The page of an audit: one file, no script, nothing loaded; the verdict first, then what it rests on.

No record's text is on it unless the audit was asked to show it: tokens are blocks, records are row numbers.
A digest of a token would be no mask, since a vocabulary is small enough to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from securefed.tracking import html, numbers
from securefed.tracking.html import escape
from securefed_attacks.audit.belonging import Belonging, Membership
from securefed_attacks.audit.columns import SEES
from securefed_attacks.audit.exposure import Exposure
from securefed_attacks.audit.page_causes import attribution, mitigation
from securefed_attacks.audit.pictures import epsilon_picture, roc_picture, token_picture
from securefed_attacks.audit.reconstruction import Guess, Reconstruction
from securefed_attacks.audit.report import AuditReport
from securefed_attacks.audit.verdict import MEANS, VERDICTS, Verdict, strongest

STYLE = """
:root{--fail:#b42318;--leaks:#b54708;--weak:#475467;--none:#0072b2}
@media(prefers-color-scheme:dark){:root{--fail:#f97066;--leaks:#fdb022;--weak:#98a2b3;--none:#56b4e9}}
.verdict{border:1px solid var(--line);border-left:.55rem solid var(--tone);border-radius:.5rem;background:var(--panel);padding:1rem 1.2rem;margin:1.1rem 0}
.verdict b{display:block;color:var(--tone);font-size:1.9rem;line-height:1.15;letter-spacing:.02em}.verdict p{margin:.35rem 0 0}
.v0{--tone:var(--fail)}.v1{--tone:var(--leaks)}.v2{--tone:var(--weak)}.v3{--tone:var(--none)}
.pill{display:inline-block;color:var(--tone);border:1px solid currentColor;border-radius:1rem;padding:.02rem .6rem;font-size:.75rem;font-weight:600;white-space:nowrap}
.findings{list-style:none;padding:0;margin:.8rem 0}.findings li{display:grid;grid-template-columns:9.2rem 1fr;gap:.1rem .9rem;padding:.5rem 0;border-bottom:1px solid var(--line);align-items:baseline}
.findings small{color:var(--soft)}.findings .pill{justify-self:start}
.picture{width:100%;height:auto;max-width:38rem;display:block;margin:.5rem 0;font:12px system-ui,sans-serif}
.picture text{fill:var(--soft)}.grid{stroke:var(--line)}.chance{stroke:var(--soft);stroke-dasharray:5 4}.asked{stroke:var(--warn);stroke-dasharray:2 3}
.unseen{fill:var(--soft);opacity:.12}.hit,.cell{fill:var(--accent)}.band{opacity:.13}.miss{fill:none;stroke:var(--line)}.whole{stroke:var(--second);stroke-width:2}svg .track{fill:var(--line)}.claim{stroke:var(--second);stroke-width:2.5}
.tokens{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 1.6rem}
.tokens h3{margin:.4rem 0 0}.tokens .picture{margin-top:.2rem}
mark{background:var(--accent);color:var(--ground);border-radius:.2rem;padding:0 .15rem}
td.why{color:var(--soft);white-space:normal;min-width:16rem}
.views td:first-child{font-weight:600}.views small{display:block;font-weight:400;color:var(--soft);white-space:normal;min-width:9rem;line-height:1.3}
@media(max-width:34rem){.findings li{grid-template-columns:1fr}.verdict b{font-size:1.5rem}}
"""
UNITS = {"exact": "tokens found exactly", "ranking": "tokens ranked first", "nothing": "nothing"}


def render(report: AuditReport) -> str:
    """The whole document."""
    return html.page(
        f"{report.verdict}: SecureFed audit",
        (
            _head(report),
            _findings(report),
            _views(report),
            _exposure(report),
            _reconstruction(report),
            _labels(report),
            _membership(report),
            _epsilon(report),
            attribution(report),
            mitigation(report),
            _limits(report),
        ),
        STYLE,
    )


def _head(report: AuditReport) -> str:
    tone = VERDICTS.index(report.verdict)
    band = f'<div class="verdict v{tone}"><b>{report.verdict}</b><p>{escape(MEANS[report.verdict])}</p></div>'
    warned = "".join(html.paragraph(w, "note") for w in report.warnings)
    intro = "What the update between two model states tells about the records behind it, view by view."
    return (
        f"<h1>Leakage audit</h1>{html.paragraph(intro, 'soft')}{band}{html.cards(_cards(report))}{warned}"
        + html.facts(report.facts.items())
    )


def _cards(report: AuditReport) -> Iterator[tuple[str, str]]:
    best = (
        max(report.membership.results, key=lambda r: r.auc.value, default=None) if report.membership else None
    )
    if report.reconstruction:
        first = report.reconstruction[0]
        yield (
            f"{first.used.ours.hits} of {first.tokens}",
            f"tokens of the members' records named, {first.view}",
        )
    if best is not None and report.membership is not None and report.membership.detectable is not None:
        yield f"{best.auc.value:.3f}", f"AUC of {best.attack}, {best.view}; chance is 0.5"
        at = best.rates[0]
        yield f"{at.tpr.value:.1%}", f"of members recognized at {at.fpr:.0%} false positives by the same"
    if report.epsilon is not None and report.epsilon.bound is not None:
        claim = f", claimed {report.epsilon.claimed:g}" if report.epsilon.claimed is not None else ""
        yield f"{report.epsilon.bound:.2f}", f"lower bound on epsilon{claim}"
    yield numbers.clock(report.seconds), "the audit took"


def _pill(verdict: Verdict) -> str:
    return f'<span class="pill v{VERDICTS.index(verdict)}">{escape(verdict)}</span>'


def _findings(report: AuditReport) -> str:
    ordered = sorted(report.findings, key=lambda f: VERDICTS.index(f.verdict))
    items = "".join(
        f"<li>{_pill(f.verdict)}<div>{escape(f.reason)}<br><small>{escape(f.section + (', ' + f.view if f.view else ''))}</small></div></li>"
        for f in ordered
    )
    return html.section("Why", f'<ul class="findings">{items}</ul>' if items else "")


def _views(report: AuditReport) -> str:
    """The same columns for every view; one that could not be made says why."""
    rebuilt = {r.view: r for r in report.reconstruction}
    lines = []
    for column in report.columns:
        name = f"<td>{escape(column.name)}<small>{escape(SEES[column.name])}</small></td>"
        if column.update is None:
            lines.append(
                f'<tr>{name}<td class="why" colspan="6">not made: {escape(column.why_not)}</td></tr>'
            )
            continue
        best = report.membership.best(column.name) if report.membership else None
        cells = [str(column.clients), *_tokens(rebuilt.get(column.name)), *_rates(best, report.membership)]
        found = [f for f in report.findings if f.view == column.name]
        cell = "".join(f'<td class="n">{escape(c)}</td>' for c in cells)
        lines.append(f"<tr>{name}{cell}<td>{_pill(strongest(found)) if found else ''}</td></tr>")
    if not lines:
        return ""
    head = ("view", "clients", "tokens", "controls", "best AUC", "TPR at 1 %", "verdict")
    top = "".join(f"<th{'' if k in (0, 6) else ' class=n'}>{h}</th>" for k, h in enumerate(head))
    table = f'<div class="scroll"><table class="views"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    note = "Who sees which view stands under its name. Controls: the better of the no-update baseline and the wrong update, with as many guesses."
    return html.section("The same attacks on every view", table, html.paragraph(note, "soft small"))


def _tokens(r: Reconstruction | None) -> tuple[str, str]:
    if r is None:
        return "", ""
    best = max(r.used.controls, key=lambda c: c.precision or 0.0, default=None)
    ours = r.used.ours
    return f"{ours.hits} of {ours.guesses}", "" if best is None else f"{best.hits} of {best.guesses}"


def _rates(best: Membership | None, found: Belonging | None) -> tuple[str, str]:
    """Numbers that could have been a verdict; of fewer records they are in the table of attacks, with their intervals."""
    if best is None or found is None:
        return "", ""
    if found.detectable is None:
        return "too few", "too few"
    at = next(a for a in best.rates if a.fpr == 0.01)
    return f"{best.auc.value:.3f}", f"{at.tpr.value:.1%}" if at.resolved else "too few"


def _exposure(report: AuditReport) -> str:
    found = report.exposure
    if found is None:
        return ""
    verdict = UNITS[found.budget.verdict] if found.budget else "not counted"
    kind = f"LoRA of rank {found.rank}" if found.low_rank else f"all weights, {found.rank} wide"
    facts = [
        ("Prediction", verdict),
        ("Why", found.reason),
        (
            "Unknowns",
            ""
            if found.tokens is None
            else f"{found.tokens} different tokens in the members' records, {found.inputs} different inputs of the first layer",
        ),
        (
            "Equations",
            "" if found.budget is None else f"{found.budget.equations} combinations of them are shown",
        ),
        ("Proof", _proof(found)),
        ("Read from", f"{', '.join(found.readers)}: {kind}" if found.readers else ""),
    ]
    note = "Counted before any attack: whether the first layer's share of the update can be inverted at all."
    return html.section("Exposure budget", html.paragraph(note, "soft small"), html.facts(facts))


def _proof(found: Exposure) -> str:
    proof = found.proof
    if proof is None:
        return ""
    held = "as predicted" if proof.holds else f"predicted was: {UNITS[proof.budget.verdict]}"
    return (
        f"the update gave {UNITS[proof.leaks]}, {held}. Its span has rank {proof.rank}; {proof.found} true and "
        f"{proof.false} false tokens found, {proof.ranked:.0%} of the truth among the nearest, {proof.control:.0%} of others' tokens"
    )


def _reconstruction(report: AuditReport) -> str:
    if not report.reconstruction:
        return ""
    rows = [
        [r.view, r.exact.ours.hits, r.exact.ours.guesses - r.exact.ours.hits, r.nearest.ours.hits, _of(r.used.prior),
         _of(r.used.wrong), r.tokens, r.used.recovered, r.whole, "" if r.used.p_value is None else f"{r.used.p_value:.2g}"]
        for r in report.reconstruction
    ]  # fmt: skip
    head = [
        "view",
        "found exactly",
        "false",
        "nearest",
        "baseline",
        "wrong update",
        "of tokens",
        "records",
        "in order",
        "p",
    ]
    pictures = "".join(
        f"<div><h3>{escape(r.view)}</h3>{token_picture(r.hits, r.view, r.wholes)}</div>"
        for r in report.reconstruction
    )
    words = "".join(_words(report, r) for r in report.reconstruction[:1]) if report.texts else ""
    masked = (
        ""
        if report.texts
        else "Each line is a member's record by its row in the file, each block a token, filled where it was named; the words are not on this page."
    )
    return html.section(
        "Reconstruction",
        html.table(head, rows),
        html.paragraph(
            "Nearest: hits among as many guesses as there are true tokens. Baseline: the non-members' most frequent "
            "tokens. Wrong update: the same attack on the same view of training with other records. Records: those with "
            "half their tokens named; in order: those read whole, which the second layer's update proves. p: that the "
            "controls do as well.",
            "soft small",
        ),
        html.paragraph(masked, "small"),
        f'<div class="tokens">{pictures}</div>',
        words,
    )


def _of(guess: Guess | None) -> str:
    return "" if guess is None else f"{guess.hits} of {guess.guesses}"


def _words(report: AuditReport, r: Reconstruction) -> str:
    lines = []
    for row, hits in r.hits:
        words = report.texts.get(row, ())
        marked = " ".join(
            f"<mark>{escape(w)}</mark>" if hit else escape(w) for w, hit in zip(words, hits, strict=False)
        )
        lines.append(f"<p class='small'><b>{row + 1}</b> {marked}</p>")
    return html.details("the records' own words (private; you asked for them)", "".join(lines))


def _labels(report: AuditReport) -> str:
    found = report.labels
    if found is None:
        return ""
    if found.error is None:
        return html.section("Labels", html.paragraph(f"Not read: {found.why_not}."))
    rows = [
        (str(k), f"{e:.3f}", f"{t:.3f}")
        for k, (e, t) in enumerate(zip(found.estimated, found.true, strict=True))
    ]
    said = (
        f"Class shares read from the last layer's bias are off by {found.error:.3f} (0 is exact); "
        f"the non-members' shares, a guess without the update, by {found.prior_error:.3f}."
    )
    return html.section(
        "Labels",
        html.paragraph(said),
        html.details("class by class", html.table(["class", "read", "true"], rows)),
    )


def _membership(report: AuditReport) -> str:
    found = report.membership
    if found is None:
        return ""
    views = dict.fromkeys(r.view for r in found.results)
    curves = [(f"{v}: {b.attack}", b.curve) for v in views if (b := found.best(v)) is not None]
    rows = [
        [r.view, r.attack, str(r.auc), *(f"{a.tpr.value:.1%} ({a.tpr.low:.1%} to {a.tpr.high:.1%})" if a.resolved else "too few non-members" for a in r.rates)]
        for r in found.results
    ]  # fmt: skip
    rates = [a.fpr for a in found.results[0].rates] if found.results else []
    return html.section(
        "Membership",
        html.paragraph(_sample(found)),
        html.legend([n for n, _ in curves]) if len(curves) > 1 else "",
        roc_picture(curves, [r for r in rates if r >= found.smallest_fpr]),
        html.paragraph(
            "Best attack of each view, with the 95 % interval of its true positive rate. Dashed: chance. Dotted: where the verdict asks. Shaded: false positive rates "
            f"below 1 / {found.others} cannot be shown by this sample.",
            "soft small",
        ),
        html.table(["view", "attack", "AUC", *(f"TPR at {r:.3g}" for r in rates)], rows),
        html.facts([("Not played", [f"{k}: {v}" for k, v in found.not_made.items()])]),
    )


def _sample(found: Belonging) -> str:
    shift = found.shift.auc if found.shift is not None else None
    blind = (
        f" A classifier that never saw the model tells them apart with AUC {shift}."
        if shift is not None
        else ""
    )
    seen = (
        f" A true positive rate of {found.detectable:.3f} at {found.smallest_fpr:.3g} false positives would have been called LEAKS."
        if found.detectable is not None
        else ""
    )
    return (
        f"{found.members} members and {found.others} non-members, every model in evaluation mode. Intervals hold at 95 % each; "
        f"LEAKS asks for 95 % over all {found.tests} tests together.{seen}{blind}"
    )


def _epsilon(report: AuditReport) -> str:
    found = report.epsilon
    if found is None or (found.claimed is None and found.bound is None):
        return ""
    facts = [
        ("Claimed", "" if found.claimed is None else f"{found.claimed:g} at delta {found.delta:g}"),
        ("Refuted below", "" if found.bound is None else f"{found.bound:.2f} with 95 % confidence ({found.by})"),
        ("Ceiling", "" if found.ceiling is None else f"{found.ceiling:.2f}: the most that {found.records} records could have shown"),
        ("Records needed", "" if not found.needed else f"{found.needed} put in or left out by fair coins could refute the claim at best"),
        ("Not made", "" if found.bound is not None else found.unfair or "membership was not decided by fair coins, so no bound holds"),
    ]  # fmt: skip
    return html.section(
        "Epsilon", epsilon_picture(found.claimed, found.bound, found.ceiling), html.facts(facts)
    )


def _limits(report: AuditReport) -> str:
    parts: list[tuple[str, str | Sequence[str]]] = [
        ("Hand over", report.missing),
        ("Left out", report.left_out),
        (
            "Never said",
            "that it is safe: stronger attacks exist, and other records, rounds and adversaries were not tried",
        ),
    ]
    return html.section("What this audit cannot say", html.facts(parts))
