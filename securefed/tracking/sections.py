"""What the report says, section by section, in the order in which a newcomer asks."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from typing import Any

from securefed.tracking import html, numbers
from securefed.tracking.files import RunFiles, number
from securefed.tracking.html import Bar
from securefed.tracking.plots import baseline_name, by_class, main_score
from securefed.tracking.tracker import UNTRAINED

STAMP = (
    "Simulated in one process: this process held all keys and data; no protection between clients was in force. "
    "What is stated below holds for what each party would have sent and received."
)
PRIVATE_FLAG = "computed on private data"
NEVER_SENT = (
    "Computed on the clients' private records; a real client never sends these, and no epsilon covers them."
)
ENDS = {
    "rounds": "all planned rounds were played",
    "budget": "stopped because the privacy budget was spent",
    "converged": "stopped because the watched score no longer improved",
    "interrupted": "interrupted; it can be resumed",
}
SHOWN_CLIENTS = 24


def head(run: RunFiles) -> str:
    """Name, how it ended, the stamp, and the few numbers that a reader looks for first."""
    data, model = run.facts["dataset"], run.facts["model"]
    planned = run.config["rounds"]
    ended = ENDS.get(
        run.summary.get("stopped", ""), "it has not ended; these are the rounds on record so far"
    )
    intro = (
        f"{model['name']} tuned on {data['name']} by {numbers.count(len(run.shards), 'client')}, "
        f"{len(run.rounds)} of {planned} rounds: {ended}."
    )
    title = f"<h1>{html.escape(str(run.facts['name']))}</h1>"
    return title + html.paragraph(intro) + html.paragraph(STAMP, "note") + html.cards(_key_numbers(run))


def _key_numbers(run: RunFiles) -> list[tuple[str, str]]:
    found = [
        (numbers.score(run.metrics[name]), f"{name.replace('_', ' ')}, global test set")
        for name in ("accuracy", "balanced_accuracy", "perplexity")
        if run.metrics.get(name) is not None
    ]
    statement = run.summary.get("statement")
    if statement:
        text = f"epsilon at delta {numbers.small(statement['delta'])}, per {'record' if statement['unit'] == 'example' else 'client'}"
        found.append((numbers.spent(statement["epsilon"]), text))
    elif run.private and run.rounds and run.rounds[-1]["epsilon"] is not None:
        found.append((numbers.spent(run.rounds[-1]["epsilon"]), "epsilon so far"))
    found.append((numbers.mib(run.total("mib_up")), "sent by all clients"))
    found.append((numbers.clock(run.summary.get("seconds", run.total("seconds"))), "wall-clock time"))
    return found


def what_ran(run: RunFiles) -> str:
    """Model, data, clients and rule in a sentence each."""
    model, data, job = run.facts["model"], run.facts["dataset"], run.config
    share = model["trainable"] / max(1, model["parameters"])
    train, test = sum(s["train"] for s in run.shards), data["test"]
    return html.section(
        "What ran",
        html.facts(
            [
                (
                    "Model",
                    f"{model['name']}, {model['parameters']:,} parameters; {model['trainable']:,} of them trained "
                    f"({share:.2%}), adapter {job['model']['adapter']}",
                ),
                (
                    "Data",
                    f"{data['name']}: {train:,} training records at the clients, {test:,} public test records",
                ),
                ("Source", str(data["source"])),
                ("Licence", str(data["licence"])),
                ("A round", _a_round(run)),
                ("Algorithm", "" if run.algorithm == "fedavg" else run.algorithm),
            ]
        ),
    )


def _a_round(run: RunFiles) -> str:
    """Who does what in a round, and what becomes of it, as the algorithm has it."""
    job, n = run.config, len(run.shards)
    steps, epochs = job["train"]["steps"], job["train"]["epochs"]
    work = numbers.count(steps, "step") if steps else numbers.count(epochs, "epoch")
    cohort = f"{job['clients_per_round'] or n} of {numbers.count(n, 'client')}"
    mechanism = run.facts["mechanism"] or {}
    if run.algorithm == "fedbuff":
        cohort = f"the next {cohort} that are ready"
    elif mechanism.get("unit") == "client" and mechanism["sample_rate"] < 1:
        cohort = f"about {cohort}, each drawn by itself in secret"
    rule, server = job["aggregator"]["name"], job["server"]["optimizer"]
    if run.algorithm == "fedsgd":
        return (
            f"{cohort} send the sum of their records' clipped gradients, with which {server} takes one step"
        )
    local = f"{cohort}, {work} each with {job['train']['optimizer']}"
    if run.algorithm == "distill":
        told = job["distill"]
        return (
            f"{local} on models of their own; {rule} of their {told['send']} on {told['records']:,} public records, which the "
            f"server's student learns in {numbers.count(told['student_steps'], 'step')}"
        )
    late = "; in the last rounds everybody trains at home and sends nothing"
    return f"{local}; {rule} of their updates, applied by {server}" + (
        late if run.algorithm == "finetune" else ""
    )


def scores(run: RunFiles, inline: Mapping[str, str]) -> str:
    """The score beside the baselines, all scores in a table, and the curves."""
    name = main_score([run.metrics])
    if name is None:
        return ""
    rivals = {baseline_name(k): v for k, v in run.baselines.items()}
    compared = [("this run", run.metrics, True), *((k, v, False) for k, v in rivals.items())]
    rows = [
        Bar(k, number(v[name]), numbers.score(v[name]), own)
        for k, v, own in compared
        if v.get(name) is not None
    ]
    high = 1.0 if name == "accuracy" else max(b.value for b in rows)
    keys = [k for k in run.metrics if k != "n"]
    whole = html.table(
        ["", *(k.replace("_", " ") for k in keys)], [[n, *(v.get(k) for k in keys)] for n, v, _ in compared]
    )
    note = (
        "The baselines are trained without privacy on all clients' records in one place: a bar that no real "
        "federation can compute" + (", and that no epsilon covers." if run.private else ".")
    )
    if set(run.baselines) == {UNTRAINED}:
        note = "Before training: the same model on the same records, before a step was taken."
    pictures = "".join(f"<div>{inline[n]}</div>" for n in ("accuracy", "epsilon") if n in inline)
    return html.section(
        f"The {name} beside what {'it was' if UNTRAINED in run.baselines else 'is easy'}"
        if rivals
        else f"The {name}",
        html.bars(rows, high),
        html.paragraph(note, "soft small") if rivals else "",
        f'<div class="pictures">{pictures}</div>' if pictures else "",
        html.details("all scores", whole),
    )


def clients(run: RunFiles) -> str:
    """Every client's score on its own test records: mean, worst, spread, and a bar each."""
    per, name = run.client_metrics, main_score(list(run.client_metrics.values()))
    if name is None:
        return ""
    better = name == "accuracy"
    ordered = sorted(per, key=lambda k: number(per[k][name]), reverse=not better)
    values = [number(per[k][name]) for k in ordered]
    mean, spread = statistics.fmean(values), statistics.pstdev(values)
    found = [
        (numbers.score(mean), f"mean {name} over {numbers.count(len(values), 'client')}"),
        (numbers.score(values[0]), f"worst: {run.client_name(ordered[0])}"),
        (numbers.score(values[-1]), f"best: {run.client_name(ordered[-1])}"),
        (numbers.score(spread), "standard deviation over clients"),
    ]
    rows = [Bar(run.client_name(k), v, numbers.score(v)) for k, v in zip(ordered, values, strict=True)]
    high = 1.0 if better else max(values)
    more = f"The {SHOWN_CLIENTS} worst of {len(rows)} clients." if len(rows) > SHOWN_CLIENTS else ""
    return html.section(
        "Client by client",
        html.cards(found),
        html.paragraph(more, "soft small"),
        html.bars(rows[:SHOWN_CLIENTS], high, mean, plain=True),
        html.mark_legend(f"mean {numbers.score(mean)}"),
        _warning(run),
        flag=PRIVATE_FLAG if run.private else "",
    )


def _warning(run: RunFiles) -> str:
    return html.paragraph(NEVER_SENT, "soft small") if run.private else ""


def data(run: RunFiles) -> str:
    """What each client holds: a bar of its classes, and the counts."""
    classes = by_class(run.shards, run.facts["dataset"]["classes"])
    names = [str(s["name"]) for s in run.shards]
    held = [float(s["train"]) for s in run.shards]
    rows = [
        (name, {c: column[i] for c, column in classes.items()}, f"{held[i]:,.0f}")
        for i, name in enumerate(names)
    ]
    more = f"The first {SHOWN_CLIENTS} of {len(rows)} clients." if len(rows) > SHOWN_CLIENTS else ""
    columns = list(classes) if len(classes) > 1 else []
    counts = [
        [s["client"], s["name"], s["train"], s["test"], *(int(classes[c][i]) for c in columns)]
        for i, s in enumerate(run.shards)
    ]
    return html.section(
        "Who holds what",
        html.legend(list(classes)),
        html.paragraph(more, "soft small"),
        html.stacked(rows[:SHOWN_CLIENTS], max(held, default=0.0)),
        html.details(
            "counts", html.table(["client", "name", "training records", "test records", *columns], counts)
        ),
        _warning(run),
        flag=PRIVATE_FLAG if run.private else "",
    )


def cost(run: RunFiles) -> str:
    """Bytes, time and memory."""
    if not run.rounds:
        return ""
    n, up, down = len(run.rounds), run.total("mib_up"), run.total("mib_down")
    seconds, training = run.summary.get("seconds", run.total("seconds")), run.total("train_seconds")
    members = sum(len(r["cohort"]) for r in run.rounds) or 1
    pairs = [
        ("To the server", f"{numbers.mib(up)}; {numbers.mib(up / members)} by a client in a round"),
        ("To the clients", f"{numbers.mib(down)}; {numbers.mib(down / members)} to a client in a round"),
        ("Time", f"{numbers.clock(seconds)}; {numbers.clock(run.total('seconds') / n)} a round"),
        ("Local training", f"{numbers.clock(training)} over all clients"),
    ]
    if run.rounds[-1].get("sim_seconds") is not None:
        told = f"{numbers.clock(run.rounds[-1]['sim_seconds'])} on the job's simulated clock"
        pairs.append(("Simulated time", told))
    if run.summary.get("peak_mib"):
        pairs.append(("Peak memory", numbers.mib(run.summary["peak_mib"])))
    return html.section("What it cost", html.facts(pairs))


def missing(run: RunFiles) -> str:
    """Updates that were refused, and clients that did not answer; absent where all went well."""
    rows: list[list[Any]] = []
    for r in run.rounds:
        rows += [[r["round"] + 1, run.client_name(k), f"refused: {why}"] for k, why in r["refused"].items()]
        silent = set(r["cohort"]) - set(r["survivors"]) - {int(k) for k in r["refused"]}
        rows += [[r["round"] + 1, run.client_name(str(k)), "did not answer"] for k in sorted(silent)]
    listed = html.table(["round", "client", "what happened"], rows)
    return html.section(
        "Who was missing",
        html.paragraph(f"Not in the model: {numbers.count(len(rows), 'update')}.") if rows else "",
        listed if len(rows) <= 12 else html.details("one by one", listed),
    )


def diagnostics(run: RunFiles) -> str:
    """Training diagnostics round by round, folded away and flagged."""
    told = [r for r in run.rounds if r["diagnostics"]]
    keys = sorted({k for r in told for k in r["diagnostics"]})
    rows = [[r["round"] + 1, r["phase"], *(r["diagnostics"].get(k) for k in keys)] for r in told]
    whole = html.table(["round", "phase", *(k.replace("_", " ") for k in keys)], rows)
    note = NEVER_SENT if run.private else "Means over the clients of a round, measured while they trained."
    return html.section(
        "Simulation diagnostics",
        html.paragraph(note) if rows else "",
        html.details("round by round", whole),
        flag=PRIVATE_FLAG if run.private else "",
    )


def again(run: RunFiles) -> str:
    """The next commands to type, and what the run was made with."""
    made = run.environment
    packages = ", ".join(f"{k} {v}" for k, v in (made.get("packages") or {}).items() if v)
    pairs = [
        ("Made with", f"Python {made.get('python')}, {made.get('platform')}, {made.get('cores')} cores"),
        ("Commit", str(made.get("commit") or "unknown")),
        ("Packages", packages),
        ("Run", str(run.facts["run"])),
    ]
    return html.section(
        "Next",
        html.preformatted("\n".join(_commands(run))),
        html.facts(pairs),
        html.details("the job, resolved", html.preformatted(run.config_text)),
    )


def _commands(run: RunFiles) -> list[str]:
    folder = run.folder.name if run.folder.is_absolute() else str(run.folder)  # no home folder in a report
    here, job = shlex.quote(folder), shlex.quote(f"{folder}/config.toml")
    commands: list[tuple[str, str]] = []
    if run.summary.get("stopped") not in ("rounds", "converged"):
        commands.append((f"securefed resume {here}", "go on with it"))
    if run.private:
        commands.append((f"securefed epsilon {here} --delta 1e-6", "the whole statement, at any delta"))
        asked = run.config["privacy"].get("epsilon")
        more = 2 * run.facts["mechanism"]["noise_multiplier"] or 1.0
        change = f"privacy.epsilon={asked / 2:g}" if asked else f"privacy.noise_multiplier={more:g}"
        commands.append((f"securefed run {job} {change}", "what more privacy costs"))
    commands.append((f"securefed run {job} seed={int(run.config.get('seed', 0)) + 1}", "how much is chance"))
    return [f"# {why}\n{command}" for command, why in commands]
