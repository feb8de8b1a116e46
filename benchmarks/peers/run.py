"""The same work by other libraries, side by side with ours: `make bench-peers`, or `python benchmarks/peers/run.py`.

    python benchmarks/peers/run.py [PEER ...] [--quick] [--repeats 3] [--envs build/peers] [--out FILE]

Makes an environment for each peer (once), plays each peer's script `--repeats` times, and writes every figure as theirs
over ours: the median of the repeats with the smallest and the largest, above 1 where ours costs less. Both sides run in turn within
one script, mostly in one process, and count CPU seconds, so others on the machine disturb both. A peer that cannot be
installed or does not start is skipped, with the reason in the result.

A peer's packages are installed without their dependencies where those would bring another torch; its environment
then reads this interpreter's packages (`.pth`). Flower has one of its own, since it pins other versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OURS = (ROOT, ROOT / "attacks", ROOT / "defenses", ROOT / "benchmarks")
Figures = Iterator[tuple[str, float]]
"""(name, theirs over ours)"""


@dataclass(frozen=True)
class Peer:
    """One library.

    Attributes:
        installs: arguments of each pip install. work: what is compared, in words. command, quick: arguments behind the
            interpreter, the second at reduced size; "{python}" is the peer's own. read: a line of its output -> figures.
        alone: the environment sees none of ours, and our own interpreter runs the command.
    """

    name: str
    work: str
    installs: tuple[tuple[str, ...], ...]
    command: tuple[str, ...]
    quick: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Figures]
    alone: bool = False


class Skipped(Exception):
    """A peer that is not here, and why."""


def _rules(line: Mapping[str, Any]) -> Figures:
    if "times_faster" in line:
        yield str(line["benchmark"]), float(line["times_faster"])


def _flower(line: Mapping[str, Any]) -> Figures:
    for which, facts in line.items():
        if isinstance(facts, dict) and "client_times_cheaper" in facts:
            yield f"client, {which}", float(facts["client_times_cheaper"])
            yield f"server, {which}", float(facts["server_times_cheaper"])


def _ratio(name: str) -> Callable[[Mapping[str, Any]], Figures]:
    """Of a script whose `ratio` is theirs over ours already."""

    def read(line: Mapping[str, Any]) -> Figures:
        if "ratio" in line:
            case = " ".join(str(line[k]) for k in ("accountant", "noise_rate_steps") if k in line)
            yield f"{name} {case}".strip(), float(line["ratio"]["median"])

    return read


def _pfl(line: Mapping[str, Any]) -> Figures:
    if "ratio_of_runs" in line:
        yield "a round", float(line["ratio"]["median"])
        yield (
            "a whole run, start-up and end of each in it",
            float(line["ratio_of_runs"]["median"]),
        )


def _simulation(line: Mapping[str, Any]) -> Figures:
    if "ratio_by_clock" in line:
        many = str(line["benchmark"]).rpartition(", ")[2]
        yield f"a round, CPU seconds of all processes, {many}", float(line["ratio"]["median"])
        yield f"a round by the clock, {many}", float(line["ratio_by_clock"]["median"])


def _opacus(line: Mapping[str, Any]) -> Figures:
    if "ratio" in line:
        yield "a record of LoRA on MiniLM under DP-SGD", 1 / float(line["ratio"]["median"])


def _breaching(line: Mapping[str, Any]) -> Figures:
    if "ratio_per_iteration" in line:
        yield f"an iteration, {line['activation']}", 1 / float(line["ratio_per_iteration"]["median"])


def _nvflare(line: Mapping[str, Any]) -> Figures:
    if "round_ratio" in line:
        name = str(line["benchmark"]).rpartition(": ")[2]
        yield f"encryption, {name}", float(line["encryption_speedup"]["median"])
        yield f"a whole round, {name}", 1 / float(line["round_ratio"]["median"])
        yield f"bytes, {name}", float(line["their_bytes_per_parameter"]) / float(line["bytes_per_parameter"])


PEERS = (
    Peer(
        "byzfl",
        "robust rules on 20 vectors, 4 liars",
        (("--no-deps", "byzfl==0.0.11"),),
        ("-m", "securefed_benchmarks.byzantine_rules"),
        (
            "-m",
            "securefed_benchmarks.byzantine_rules",
            "--d",
            "100000",
            "--repeats",
            "2",
            "--only",
            "median,krum,geometric_median,nnm",
        ),
        _rules,
    ),
    Peer(
        "flower",
        "a round of secure sums, SecAgg+ against masking",
        (("flwr==1.41.0",),),
        (
            "-m",
            "securefed_benchmarks.masking_vs_flower",
            "--flower",
            "{python}",
            "--cases",
            "100:20:100000:0",
            "100:20:100000:10",
        ),
        (
            "-m",
            "securefed_benchmarks.masking_vs_flower",
            "--flower",
            "{python}",
            "--cases",
            "20:10:20000:0",
            "--repeats",
            "1",
            "--bits",
            "32",
        ),
        _flower,
        alone=True,
    ),
    Peer(
        "flower-simulation",
        "a round of FedAvg, MLP, 10 clients of 320 images, in Flower's simulation on Ray",
        (
            ("flwr==1.41.0",),
            ("ray==2.60.0",),
            ("-c", str(ROOT / "constraints.txt"), "torch==2.13.0", "numpy"),
        ),
        ("-m", "securefed_benchmarks.fedavg_vs_flower", "--flower", "{python}"),
        (
            "-m",
            "securefed_benchmarks.fedavg_vs_flower",
            "--flower",
            "{python}",
            "--rounds",
            "8",
            "--repeats",
            "1",
            "--cores",
            "1",
        ),
        _simulation,
        alone=True,
    ),
    Peer(
        "pfl",
        "a round of FedAvg, MLP, 10 clients of 320 images",
        (
            (
                "--no-deps",
                "pfl==0.6.0",
                "dp-accounting==0.6.0",
                "attrs",
                "dm-tree",
                "absl-py",
                "mpmath",
                "prv-accountant",
                "multiprocess",
                "dill",
            ),
        ),
        ("benchmarks/peers/pfl_fedavg.py",),
        ("benchmarks/peers/pfl_fedavg.py", "--rounds", "3", "--repeats", "1"),
        _pfl,
    ),
    Peer(
        "nvflare",
        "an encrypted sum, TenSEAL as NVFLARE 2.9 calls it",
        (("--no-deps", "tenseal==0.3.18", "zstandard"),),
        ("-m", "securefed_benchmarks.ckks_vs_nvflare"),
        (
            "-c",
            "from securefed_benchmarks.ckks_vs_nvflare import compare; compare('40,960 parameters', (4096,) * 10)",
        ),
        _nvflare,
    ),
    Peer(
        "breaching",
        "gradient inversion of one image, published settings",
        (("--no-deps", "breaching==0.1.2", "hydra-core", "omegaconf", "antlr4-python3-runtime==4.9.3"),),
        ("benchmarks/peers/breaching_inversion.py",),
        ("benchmarks/peers/breaching_inversion.py", "--iterations", "60", "--repeats", "1"),
        _breaching,
    ),
    Peer(
        "opacus",
        "make_private against Opacus' own loop",
        (),
        ("-m", "securefed_benchmarks.make_private_step"),
        (
            "-m",
            "securefed_benchmarks.make_private_step",
            "--records",
            "96",
            "--length",
            "32",
            "--repeats",
            "2",
        ),
        _opacus,
    ),
    Peer(
        "dp-accounting",
        "the epsilon of DP-SGD",
        (("--no-deps", "dp-accounting==0.6.0", "attrs", "dm-tree", "absl-py", "mpmath"),),
        ("benchmarks/peers/dp_accounting_pld.py",),
        ("benchmarks/peers/dp_accounting_pld.py", "--repeats", "1"),
        _ratio("epsilon"),
    ),
)


def environment(peer: Peer, folder: Path) -> str:
    """The peer's interpreter; its environment is made where it is not there yet.

    Raises:
        Skipped: it cannot be made; pip's last line says why.
    """
    home = folder / peer.name
    python = home / "bin" / "python"
    ready = home / ".ready"
    if ready.exists():
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", str(home)], "no environment")
    for arguments in peer.installs:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        _run(command, "cannot be installed")
    if not peer.alone:
        site = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        seen = [sysconfig.get_paths()["purelib"], *map(str, OURS)]
        (site / "zz_ours.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
    ready.touch()
    return str(python)


def _run(command: Sequence[str], what: str) -> str:
    paths = os.pathsep.join(map(str, OURS))
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    if found.returncode:
        last = (found.stderr.strip() or found.stdout.strip() or "no word").splitlines()[-1]
        raise Skipped(f"{what}: {last[:300]}")
    return found.stdout


def compare(peer: Peer, folder: Path, repeats: int, quick: bool) -> dict[str, Any]:
    """The peer's figures, or why there are none."""
    try:
        theirs = environment(peer, folder)
        python = sys.executable if peer.alone else theirs
        words = [word.format(python=theirs) for word in (peer.quick if quick else peer.command)]
        found: dict[str, list[float]] = {}
        for _ in range(repeats):
            for line in _run([python, *words], "does not run").splitlines():
                if line.startswith("{"):
                    for name, value in peer.read(json.loads(line)):
                        found.setdefault(name, []).append(value)
        if not found:
            raise Skipped("its script gave no figure")
    except Skipped as reason:
        return {"peer": peer.name, "work": peer.work, "skipped": str(reason)}
    figures = {name: spread(values) for name, values in found.items()}
    return {"peer": peer.name, "work": peer.work, "command": " ".join(words), "theirs_over_ours": figures}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest, and of how many."""
    facts = {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}
    return {name: round(value, 3) for name, value in facts.items()}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| peer | work | figure | theirs / ours | range |", "| --- | --- | --- | --- | --- |"]
    for one in results:
        if "skipped" in one:
            lines.append(f"| {one['peer']} | {one['work']} | skipped: {one['skipped']} | | |")
        for name, facts in one.get("theirs_over_ours", {}).items():
            ends = f"{facts['min']:g} to {facts['max']:g}, {facts['runs']} runs"
            lines.append(f"| {one['peer']} | {one['work']} | {name} | {facts['median']:g} | {ends} |")
    return "\n".join(lines)


def keep(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes the results; those of peers that were not played this time stay as they are."""
    old = json.loads(out.read_text(encoding="utf-8"))["results"] if out.is_file() else []
    named = {one["peer"] for one in results}
    order = [peer.name for peer in PEERS]
    merged = [one for one in old if one["peer"] in order and one["peer"] not in named] + list(results)
    facts = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "results": sorted(merged, key=lambda one: order.index(one["peer"])),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays the peers that were named, or all; 1 if every one was skipped."""
    known = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="reduced sizes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--envs", type=Path, default=ROOT / "build" / "peers", help="where environments are made"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    wanted = parser.parse_args(arguments)
    if unknown := sorted(set(wanted.peers) - set(known)):
        parser.error(f"no peer {', '.join(unknown)}; known: {', '.join(known)}")
    results = []
    for peer in PEERS:
        if wanted.peers and peer.name not in wanted.peers:
            continue
        sys.stderr.write(f"{peer.name}: {peer.work}\n")
        found = compare(peer, wanted.envs.resolve(), wanted.repeats, wanted.quick)
        results.append(found | {"quick": wanted.quick, "load": round(os.getloadavg()[0], 1)})
        keep(results, wanted.out)
    sys.stdout.write(table(results) + "\n")
    return int(all("skipped" in one for one in results))


if __name__ == "__main__":
    raise SystemExit(main())
