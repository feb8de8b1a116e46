"""`audit`: from what was handed over to a report, section by section, within a time budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from securefed.errors import AuditError
from securefed_attacks.audit.attribution import by_layer, by_layer_and_round, by_round
from securefed_attacks.audit.base import open_target
from securefed_attacks.audit.candidates import read_candidates
from securefed_attacks.audit.captured import Captured, capture
from securefed_attacks.audit.clock import Clock, Progress
from securefed_attacks.audit.columns import columns
from securefed_attacks.audit.epsilon import bound_epsilon
from securefed_attacks.audit.epsilon import judge as judge_epsilon
from securefed_attacks.audit.folder import is_run, open_run
from securefed_attacks.audit.mitigation import mitigate
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.reconstruction import judge as judge_reconstruction
from securefed_attacks.audit.report import AuditReport
from securefed_attacks.audit.sections import (
    Given,
    Rounds,
    ask_membership,
    expose_round,
    facts,
    gaps,
    missing,
    nothing_moved,
    read_labels,
    rebuild,
    texts,
    warnings,
)
from securefed_attacks.audit.states import name_arrays, read_state
from securefed_attacks.audit.target import Target


def audit(
    before: Any = None,
    after: Any = None,
    *,
    base: Any = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    candidates: Any = None,
    is_member: Any = None,
    claimed_epsilon: float | None = None,
    others: Sequence[Any] = (),
    tokenizer: Any = None,
    coins: bool = False,
    fpr: float = 0.01,
    shadows: int = 16,
    time_budget_s: float | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    show_text: bool = False,
    sample: int = 1000,
    client: int | None = None,
    text_column: str = "text",
    label_column: str = "label",
    member_column: str = "member",
) -> AuditReport:
    """What the update between two states tells about the records behind it.

    Works on anything captured anywhere: state dicts, modules, PEFT folders, safetensors, torch or NumPy files,
    Flower's lists of arrays (named after the base module); or lists of them, one pair a round of the same client.

    Args:
        before, after: the two states; or a run's folder and None. base: the model (a module), a zoo name or a folder; an adapter's own
            base by default. tokenizer: of a module that reads tokens.
        recipe: how the update was made (`Recipe`, or a mapping of its fields). Nothing is assumed in its place.
        candidates: a CSV or JSONL file, texts, or (inputs, labels); is_member: one boolean a record, or the file's column.
        claimed_epsilon: to be refuted, at recipe.delta. coins: membership was a fair coin for each record.
        others: other clients' states after the same round, for the sum.
        fpr: smallest false positive rate that the verdict must judge. shadows: models for LiRA; 0 for none.
        time_budget_s: what does not fit is left out by name. show_text: print the members' tokens on the page.
        sample: of a run's folder, how many records are asked, half of them members. client: of a run with kept
            views, whose records; by default the largest whose updates were seen, its group, or all in a sum.

    Raises:
        AuditError: input that cannot be audited: shapes that differ, NaN, quantized weights, another model's base.
        ModelError: a base that does not exist.
    """
    clock = Clock(time_budget_s, progress)
    _check(claimed_epsilon, fpr, shadows, time_budget_s)
    made = Recipe.of(recipe)
    clock.tell("reading")
    rows = read_candidates(
        candidates, is_member, text=text_column, label=label_column, member=member_column, coins=coins
    )
    note, groups, beside = "", "", list[Captured]()
    if after is None and is_run(before):
        run = open_run(Path(before), sample, seed, client)
        base, made = base or run.base, made if recipe else run.recipe
        if rows is None:
            rows, note = run.candidates, run.sampled
        claimed_epsilon = run.claimed if claimed_epsilon is None else claimed_epsilon
        rounds, names, groups = run.rounds, run.names, run.groups
    else:
        before, after = name_arrays(before, base, "before"), name_arrays(after, base, "after")
        others = [name_arrays(o, base, f"others[{k}]") for k, o in enumerate(others)]
        rounds, beside = _rounds(before, after, others, made, seed)
        names = tuple(f"round {k + 1}" for k in range(len(rounds)))
    target = open_target(base, rounds[0][0], rows, made, tokenizer)
    return report(
        Given(
            recipe=made,
            rows=rows,
            rounds=rounds,
            target=target,
            clock=clock,
            claimed=claimed_epsilon,
            fpr=fpr,
            shadows=shadows,
            seed=seed,
            show_text=show_text,
            sampled=note,
            groups=groups,
            beside=beside,
            names=names,
        )
    )


def _check(claimed: float | None, fpr: float, shadows: int, budget: float | None) -> None:
    if claimed is not None and not claimed >= 0:
        raise AuditError(f"claimed_epsilon={claimed!r} must be a number of at least 0")
    if not 0 < fpr < 1:
        raise AuditError(f"fpr={fpr!r} must lie strictly between 0 and 1; 0.01 needs 100 non-members")
    if shadows < 0 or shadows % 2:
        raise AuditError(f"shadows={shadows} come in pairs, in and out: an even number, 0 for none")
    if budget is not None and not budget > 0:
        raise AuditError(f"time_budget_s={budget!r} must be above 0 seconds")


def _rounds(
    before: Any, after: Any, others: Sequence[Any], recipe: Recipe, seed: int
) -> tuple[Rounds, list[Captured]]:
    """The rounds in which something moved (the first where none did), and the other clients' of the first."""
    if before is None or after is None:
        raise AuditError("two states are needed, before and after the round; or the folder of a run, alone")
    olds, news = _listed(before), _listed(after)
    if len(olds) != len(news):
        raise AuditError(f"one state before and one after each round: found {len(olds)} and {len(news)}")
    alpha = recipe.lora_alpha
    starts = [read_state(old, "before", lora_alpha=alpha) for old in olds]
    pairs = [
        capture(start, read_state(new, "after", lora_alpha=alpha))
        for start, new in zip(starts, news, strict=True)
    ]
    beside = [
        capture(starts[0], read_state(o, f"others[{k}]", lora_alpha=alpha)) for k, o in enumerate(others)
    ]
    moved = [k for k, pair in enumerate(pairs) if pair.names]
    found: Rounds = []
    for k in moved or [0]:
        generator = torch.Generator().manual_seed(seed + k)
        shown = columns(pairs[k], recipe, beside if k == 0 else [], generator) if pairs[k].names else []
        found.append((pairs[k], shown))
    return found, beside if not moved or moved[0] == 0 else []


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def report(given: Given) -> AuditReport:
    """Every section that the input allows, in order; what it does not allow is named."""
    if not any(captured.names for captured, _ in given.rounds):
        return nothing_moved(given)
    _keep_prefix(given)
    exposure = expose_round(given)
    rebuilt, exposure = rebuild(given, exposure)
    measured, found = ask_membership(given)
    labels = read_labels(given)
    covered = {c.name for c in given.rounds[0][1] if c.claimed}
    claim = bound_epsilon(
        found.results if found else (),
        given.rows,
        given.claimed,
        given.recipe.delta,
        covered,
        found.shift if found else None,
    )
    trials = mitigate(given, rebuilt, found)
    findings = [
        *judge_reconstruction(rebuilt),
        *(found.findings if found else ()),
        *judge_epsilon(claim),
    ]
    given.clock.tell("done")
    return AuditReport(
        findings=(*findings, *gaps(given, findings, exposure, found.not_made if found else {})),
        facts=facts(given),
        columns=tuple(given.rounds[0][1]),
        exposure=exposure,
        reconstruction=tuple(rebuilt),
        labels=labels,
        membership=found,
        epsilon=claim,
        layers={} if measured is None else by_layer(measured, given.rows),
        rounds=() if measured is None else by_round(measured, given.rows),
        grid=() if measured is None else by_layer_and_round(measured, given.rows),
        round_names=() if measured is None else tuple(given.names[k] for k in measured.asked),
        mitigation=tuple(trials),
        warnings=warnings(given, found),
        missing=missing(given),
        left_out=tuple(dict.fromkeys(given.clock.left_out)),
        seconds=given.clock.spent,
        texts=texts(given),
    )


def _keep_prefix(given: Given) -> None:
    """Layers that no state changes run once (`frozen_prefix`)."""
    if not isinstance(given.target, Target) or not given.has_loss:
        return
    first = given.rounds[0][0].before.tensors
    moved = {
        name
        for captured, _ in given.rounds
        for name, value in captured.before.tensors.items()
        if name in captured.names or not torch.equal(value, first[name])
    }
    seen = [c.update for _, made in given.rounds for c in made if c.update is not None]
    summed = {name for update in seen for name, change in update.items() if bool(change.any())}
    given.target.keep_prefix(first, moved | summed)  # other clients in a sum may move what this one did not
