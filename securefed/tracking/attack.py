"""The report's section on simulated liars: who they were, what they did, and whether it worked."""

from __future__ import annotations

from securefed.tracking import html, numbers
from securefed.tracking.files import RunFiles, read_json

STAMP = (
    "These liars were part of the simulation, drawn from its public seed. Nothing here detects a real attack."
)


def attack(run: RunFiles) -> str:
    """What the simulated liars were, beside the f that the rule was told; absent where there were none."""
    found = (read_json(run.folder / "run.json") or {}).get("attack")
    if not found:
        return ""
    options = ", ".join(f"{k} = {v}" for k, v in found["options"].items())
    sent = f"{found['name']}" + (f" ({options})" if options else "") if found["name"] else "what they trained"
    told = found["declared_f"]
    facts = [
        (
            "Liars",
            f"{found['f']} of {numbers.count(len(run.shards), 'client')}: "
            + ", ".join(map(run.client_name, map(str, found["liars"]))),
        ),
        ("They send", sent),
        (
            "They train on",
            f"records changed by {found['poison']}" if found["poison"] else "their own records",
        ),
        (
            "They know",
            {"own data": "their own data", "none": "nothing"}.get(found["knowledge"], "every honest update"),
        ),
        (
            "They lie",
            f"{'together' if found['colluding'] else 'each alone'}, in a round with probability {found['participation']:g}",
        ),
        (
            "The rule was told",
            "no f"
            if told is None
            else f"f = {told}" + ("" if told == found["f"] else ", which is wrong on purpose"),
        ),
    ]
    success = run.metrics.get("attack_success")
    if success is not None:
        facts.append(
            (
                "Attack success",
                f"{numbers.score(success)} of the test records with the trigger get the liars' label",
            )
        )
    return html.section("Simulated attack", html.paragraph(STAMP, "note"), html.facts(facts))
