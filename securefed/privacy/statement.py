"""An epsilon with everything a reader must know beside it, in plain words."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from dataclasses import dataclass

from securefed.privacy.events import Accountant, Unit, covers
from securefed.privacy.exposure import exposures, site_cases, worst
from securefed.privacy.plain_words import ACCOUNTANTS, amplification, reading, trust_model, tuning
from securefed.privacy.records import RunRow, find_runs, find_shards
from securefed.privacy.site import Exposure
from securefed.privacy.words import describe, held_against, is_one_noise, relation_of
from securefed.types import SERVER

_ADVERSARY: dict[Unit, str] = {
    "example": (
        "against everyone who sees this client's updates, the server included: each client adds its own "
        "noise before sending"
    ),
    "client": "against other clients and outsiders, not against the server, which sees updates before it adds the noise",
}
_OWN_NOISE = "against everyone who sees the updates, the server included: each client adds its own noise before sending"
_ONE_HOLDER = (
    "against everyone who sees what leaves the training (updates, or the model after any step): noise is in it "
    "before it leaves"
)
_NOT_COVERED = (
    "the choice of hyper-parameters: every run that was tried on these records and is not in the ledger",
    "the same records under another data set name, in a file that has changed since, or at another site",
    "what a person's other records reveal about them",
)
_K_TIMES = "for k of them epsilon is k times as large, and delta k e^((k - 1) epsilon) times"
"""Group privacy: k steps from neighbour to neighbour."""
_KEPT = (
    "what a client keeps to itself (a model or a part of its own), once its owner shows it: no noise is in it"
)
_UNIT_WORDS: dict[Unit, str] = {"example": "one record", "client": "everything of one client"}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a run has spent, and what that means. Every field is safe to print.

    Attributes:
        run, dataset: whose spending. unit: what a neighbour adds or removes. relation: which neighbours.
        epsilon, delta: the guarantee; epsilon may be infinite. accountant: the one that gave it.
        adversary: against whom it holds. holds_for: for whom, and how clients were combined.
        clients: holders of shards. disjoint: whether no record lies in two of them.
        mechanism: the events of the worst-off client, merged, in words.
        steps_reserved, steps_settled: over all clients; all reserved steps are charged.
        unfinished: reservations without an end (crashed attempts), charged in full.
        site_epsilon: over all `site_runs` runs of this site on this data set.
        caveats: true remarks on this very run. not_covered: what no number here speaks about.
        trust: who must be honest. amplification: whether secret sampling is counted. tuning: whether the
            choice of hyper-parameters is.
    """

    run: str
    dataset: str
    unit: Unit
    relation: str
    epsilon: float
    delta: float
    accountant: Accountant
    adversary: str
    holds_for: str
    clients: int
    disjoint: bool
    mechanism: str
    steps_reserved: int
    steps_settled: int
    unfinished: int
    site_epsilon: float
    site_runs: int
    caveats: tuple[str, ...]
    not_covered: tuple[str, ...]
    trust: str
    amplification: str
    tuning: str

    def text(self) -> str:
        """The statement for a person, a few lines."""
        lines = [
            f"Differential privacy of run {self.run} on data set {self.dataset}",
            f"  epsilon = {_number(self.epsilon)} at delta = {self.delta:g}, by {self.accountant.upper()} (an upper bound)",
            f"  that is: {reading(self.epsilon, self.delta, self.unit)}",
            f"  unit: {_UNIT_WORDS[self.unit]} ({self.unit} level); neighbours: {self.relation}",
            f"  holds {self.adversary}",
            f"  trust: {self.trust}",
            f"  for whom: {self.holds_for}",
            f"  mechanism: {self.mechanism}",
            f"  amplification by sampling: {self.amplification}",
            f"  search for hyper-parameters: {self.tuning}",
            f"  accountant: {ACCOUNTANTS[self.accountant]}",
            f"  steps: {self.steps_reserved} reserved and charged, {self.steps_settled} settled, "
            f"{self.unfinished} reservation(s) unfinished",
            f"  all {self.site_runs} run(s) of this site on this data set: epsilon = {_number(self.site_epsilon)}",
            *(f"  note: {caveat}" for caveat in self.caveats),
            *(f"  not covered: {matter}" for matter in self.not_covered),
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same facts as JSON; an infinite epsilon is the string "infinity"."""
        tree = {"version": 1, **dataclasses.asdict(self)}
        for key in ("epsilon", "site_epsilon"):
            if math.isinf(tree[key]):
                tree[key] = "infinity"
        return json.dumps(tree, indent=1)


def make_statement(
    connection: sqlite3.Connection, row: RunRow, delta: float, accountant: Accountant | None
) -> Statement:
    """The statement of one run, read in one consistent state of the ledger."""
    met = exposures(connection, row)
    spent = worst(met.values(), delta, accountant)
    worst_off = next((e for e in met.values() if worst([e], delta, accountant) == spent), ())
    shards = find_shards(connection, row.run)
    # a server's own mechanism is one entry, whose records are the clients
    clients = shards[SERVER].records if SERVER in shards else len(shards)
    reserved, settled, unfinished, local = connection.execute(
        "SELECT coalesce(sum(steps), 0), coalesce(sum(steps_taken), 0), coalesce(sum(settled_at IS NULL), 0),"
        " count(*) > 0 AND min(client) > ? FROM reservations WHERE run = ?",
        (SERVER, row.run),
    ).fetchone()
    return Statement(
        run=row.run,
        dataset=row.dataset,
        unit=row.unit,
        relation=relation_of(worst_off),
        epsilon=spent.epsilon,
        delta=delta,
        accountant=spent.accountant,
        adversary=_adversary(row, clients, bool(local), worst_off),
        holds_for=_holds_for(row, clients),
        clients=clients,
        disjoint=row.disjoint,
        mechanism=_mechanism(worst_off),
        steps_reserved=reserved,
        steps_settled=settled,
        unfinished=unfinished,
        site_epsilon=worst(site_cases(connection, row.dataset, row.unit), delta, accountant).epsilon,
        site_runs=len(find_runs(connection, row.dataset, row.unit)),
        caveats=_caveats(
            row,
            delta,
            accountant or ("pld" if covers("pld", worst_off) else "rdp"),
            spent.accountant,
            [key.records for key in shards.values()],
        ),
        not_covered=(
            *_other_unit(connection, row),
            *_overlap(row, clients, worst_off),
            *((_KEPT,) if row.unit == "client" else ()),
            *_NOT_COVERED,
        ),
        trust=trust_model(row.unit, clients, bool(local), worst_off),
        amplification=amplification(row.unit, clients, bool(local), worst_off),
        tuning=tuning(worst_off),
    )


def _adversary(row: RunRow, clients: int, own_noise: bool, exposure: Exposure) -> str:
    if (told := held_against(exposure)) is not None:
        return told
    if row.unit == "client":
        return _OWN_NOISE if own_noise else _ADVERSARY["client"]
    return _ONE_HOLDER if clients == 1 else _ADVERSARY["example"]


def _holds_for(row: RunRow, clients: int) -> str:
    if row.unit == "client":
        return f"every one of the {clients} clients"
    if not row.disjoint:
        return f"every record, even one held by all {clients} clients: their events are composed"
    if clients == 1:
        return "every record of the data set"
    return f"every record of the {clients} clients: the maximum over clients, whose shards are disjoint"


def _other_unit(connection: sqlite3.Connection, row: RunRow) -> tuple[str, ...]:
    other: Unit = "client" if row.unit == "example" else "example"
    count = len(find_runs(connection, row.dataset, other))
    return (
        (f"{count} run(s) of this site on this data set at {other} level: another ledger",) if count else ()
    )


def _overlap(row: RunRow, clients: int, exposure: Exposure) -> tuple[str, ...]:
    """What it means that clients share records, or people."""
    if clients < 2:
        return ()
    if row.unit == "client":
        return (f"a person whose records lie at k clients, beyond one of them: {_K_TIMES}",)
    if is_one_noise(exposure):
        return (f"a record that lies at k clients, under the one noise of all: {_K_TIMES}",)
    if row.disjoint:
        return ("a record that appears at several clients: it spends the sum of what they spend",)
    return ()


def _mechanism(exposure: Exposure) -> str:
    return "; ".join(describe(event) for event in exposure) or "nothing released yet"


def _caveats(
    row: RunRow, delta: float, asked: Accountant, used: Accountant, records: list[int]
) -> tuple[str, ...]:
    caveats = []
    if used != asked:
        caveats.append(f"the accountant {asked} failed here; {used} gives a cruder upper bound")
    population = min((n for n in records if n > 0), default=0) if row.unit == "example" else len(records)
    if population and delta >= 1 / population:
        caveats.append(
            f"delta = {delta:g} is not below 1/{population}: it allows a whole {row.unit} to be released"
        )
    return tuple(caveats)


def _number(epsilon: float) -> str:
    return "infinity" if math.isinf(epsilon) else f"{epsilon:.4g}"
