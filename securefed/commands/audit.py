"""`securefed audit`: what the update between two states tells, as a verdict that a CI step can ask for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

NAME = "audit"
SUMMARY = "say what an update (two checkpoints, or a run's folder) tells about the records behind it"
EXAMPLE = "securefed audit before/ after/ --base minilm --candidates mails.jsonl --fail-on LEAKS"
FOUND = 1
"""Exit code where the verdict is the one asked for with --fail-on, or worse."""
VERDICTS = ("FAIL", "LEAKS", "UNDERPOWERED", "NO EVIDENCE")
OPTIONS = (
    "--base",
    "--candidates",
    "--others",
    "--optimizer",
    "--steps",
    "--learning-rate",
    "--batch-size",
    "--momentum",
    "--observed",
    "--max-grad-norm",
    "--noise-multiplier",
    "--lora-alpha",
    "--max-length",
    "--claimed-epsilon",
    "--coins",
    "--client",
    "--sample",
    "--fpr",
    "--shadows",
    "--time-budget",
    "--seed",
    "--show-text",
    "--output",
    "--fail-on",
    "--text-column",
    "--label-column",
    "--member-column",
)
RECIPE = (
    *("optimizer", "steps", "learning_rate", "batch_size", "momentum", "observed", "max_grad_norm"),
    *("noise_multiplier", "lora_alpha", "max_length", "delta"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two states or a run, the recipe, the records, the claim, and what to do with the answer."""
    parser.add_argument(
        "before", help="a PEFT folder, a .safetensors or torch file; or a run's result folder, alone"
    )
    parser.add_argument("after", nargs="?", help="the same after the round")
    parser.add_argument(
        "--base", help="base model: a zoo name or a folder (default: the one the adapter names)"
    )
    parser.add_argument("--candidates", help="CSV or JSONL: text, label, member (1 or 0)")
    for name in ("text", "label", "member"):
        parser.add_argument(f"--{name}-column", default=name, metavar="NAME", help=f"default: {name}")
    parser.add_argument(
        "--others", nargs="+", default=(), help="other clients' states after the same round, for the sum"
    )
    _recipe(parser)
    parser.add_argument("--claimed-epsilon", type=float, metavar="E", help="to be refuted, at --delta")
    parser.add_argument("--coins", action="store_true", help="membership was a fair coin for each record")
    parser.add_argument(
        "--client", type=int, metavar="K", help="of a run that kept views: whose records to ask about"
    )
    parser.add_argument(
        "--sample", type=int, default=1000, metavar="N", help="records of a run to ask about (default 1000)"
    )
    parser.add_argument(
        "--fpr", type=float, default=0.01, help="smallest false positive rate to judge (default 0.01)"
    )
    parser.add_argument(
        "--shadows", type=int, default=16, help="models for LiRA, even; 0 for none (default 16)"
    )
    parser.add_argument(
        "--time-budget", type=float, metavar="S", help="seconds; what does not fit is left out by name"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the experiment's draws")
    parser.add_argument(
        "--show-text", action="store_true", help="print the members' tokens on the page: private text"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("audit.html"), help="the page (default audit.html)"
    )
    parser.add_argument(
        "--fail-on",
        default="FAIL",
        metavar="VERDICT",
        help=f"exit with {FOUND} on this verdict or worse: {', '.join(VERDICTS)} (default FAIL)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--optimizer", help="the client's: sgd, adamw ...; left out, what depends on it is not judged"
    )
    parser.add_argument("--steps", type=int, help="local steps in the round")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="of the local steps")
    parser.add_argument("--batch-size", type=int, metavar="B", help="of the local steps")
    parser.add_argument("--momentum", type=float, help="of SGD")
    parser.add_argument(
        "--observed",
        choices=("update", "clipped", "noised", "sum", "final"),
        help="what was captured (default update)",
    )
    parser.add_argument("--max-grad-norm", type=float, metavar="C", help="clipping norm of the whole update")
    parser.add_argument("--noise-multiplier", type=float, metavar="Z", help="noise over the clipping norm")
    parser.add_argument("--lora-alpha", type=float, metavar="A", help="of bare LoRA tensors")
    parser.add_argument(
        "--max-length", type=int, metavar="T", help="tokens of a record that were read (default 64)"
    )
    parser.add_argument("--delta", type=float, help="of the claimed epsilon (default 1e-5)")


def play(args: argparse.Namespace) -> int:
    """Audits, writes the page, prints the verdict and its reasons; the exit code is the answer to --fail-on."""
    from securefed.auditing import audit
    from securefed.commands.output import say, say_json
    from securefed.commands.quiet import own_log, quiet_libraries, stdout_for
    from securefed.errors import AuditError

    bound = args.fail_on.upper().replace("-", " ").replace("_", " ")
    if bound not in VERDICTS:
        raise AuditError(f"--fail-on {args.fail_on!r} is no verdict; one of {', '.join(VERDICTS)}")
    with own_log(args.quiet), quiet_libraries(), stdout_for(args.json):
        report = audit(args.before, args.after, **_given(args))
        page = report.save(args.output)
    if args.json:
        say_json({**report.to_json(), "page": str(page)})
    else:
        say(report.text())
        say(f"page: {page}")
    return FOUND if report.is_at_least(bound) else 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    recipe = {name: value for name in RECIPE if (value := getattr(args, name)) is not None}
    return {
        "base": args.base,
        "recipe": recipe,
        "candidates": args.candidates,
        "claimed_epsilon": args.claimed_epsilon,
        "others": tuple(args.others),
        "coins": args.coins,
        "client": args.client,
        "sample": args.sample,
        "fpr": args.fpr,
        "shadows": args.shadows,
        "time_budget_s": args.time_budget,
        "seed": args.seed,
        "show_text": args.show_text,
        "progress": None if args.quiet else _tell,
        "text_column": args.text_column,
        "label_column": args.label_column,
        "member_column": args.member_column,
    }


def _tell(seconds: float, what: str) -> None:
    """A line for people, on standard error."""
    sys.stderr.write(f"[{seconds:5.0f} s] {what}\n")
    sys.stderr.flush()
