"""What many clients cost on one machine: memory, growth, start-up, and what a pool of two processes gains.

Each figure is taken from a process of its own that plays a real job, so that one job's memory is not another's:

- `memory`: peak resident memory of a MiniLM LoRA job with the same sentences cut among 2 and among 100 clients;
- `growth`: 1,000 clients, 100 rounds of an MLP: resident memory after the 10th and after the last round;
- `start`: seconds from the interpreter's start to the first round, by the clock and of CPU, with all that an earlier run leaves
  in the caches, without baselines: a LoRA job, and a private head on frozen features whose states are in the store. The job
  ends there, and each part's share is told;
- `pool`: a round of eight CNN clients in this process and in two workers, one thread each: by the clock, and by CPU
  seconds, which do not depend on who else uses the machine: alone over (this process' own + the busier worker's).

    python -m securefed_benchmarks.scale [--repeats 3]
    python -m securefed_benchmarks.scale start pool
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securefed_benchmarks.process_tree import children_of, cpu_of
from securefed_benchmarks.timing import ratio, report

if TYPE_CHECKING:
    from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary

LIBRARIES = {
    "torch": "torch",
    "bert": "torch, transformers.models.bert.modeling_bert",
    "bert_peft": "torch, transformers.models.bert.modeling_bert, peft",
    "bert_opacus": "torch, transformers.models.bert.modeling_bert, opacus",
}
"""What a job on MiniLM loads, alone and together."""

QUIET: dict[str, Any] = {
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
    "engine": {"threads": 1},
}


def lora(clients: int) -> dict[str, Any]:
    """Two rounds of LoRA on every layer of MiniLM, two clients a round, out of `clients`."""
    return QUIET | {
        "name": "lora",
        "rounds": 2,
        "clients_per_round": 2,
        "data": {
            "name": "sentiment",
            "clients": clients,
            "partition": "iid",
            "max_length": 48,
            "limit": 4000,
        },
        "model": {"name": "minilm", "adapter": "rolora"},
        "train": {"steps": 2, "batch_size": 16},
    }


def head() -> dict[str, Any]:
    """The head of `configs/quickstart.toml` alone: DP-SGD on the features of MiniLM's top four layers."""
    return QUIET | {
        "name": "head",
        "rounds": 3,
        "weights": "size",
        "data": {"name": "sentiment", "clients": 12, "max_length": 48, "limit": 4000},
        "model": {"name": "minilm", "adapter": "head", "head_layers": 4, "head_centre": True},
        "train": {"learning_rate": 16.0, "label_smoothing": 0.1, "steps": 1},
        "privacy": {"unit": "example", "noise_multiplier": 1.0, "max_grad_norm": 0.5, "sample_rate": 0.4},
    }


def mlp() -> dict[str, Any]:
    """100 rounds of an MLP, ten of 1,000 clients a round."""
    return QUIET | {
        "name": "mlp",
        "rounds": 100,
        "clients_per_round": 10,
        "data": {"name": "fashion-mnist", "clients": 1000, "partition": "iid", "min_examples": 10},
        "model": {"name": "mlp", "adapter": "full"},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.05},
    }


def cnn(workers: int) -> dict[str, Any]:
    """Four rounds of a CNN, eight clients a round, all of them."""
    return QUIET | {
        "name": "cnn",
        "rounds": 4,
        "data": {"name": "fashion-mnist", "clients": 8, "partition": "iid", "limit": 8000},
        "model": {"name": "cnn", "adapter": "full"},
        "train": {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
        "engine": {"threads": 1, "workers": workers},
    }


def played(job: Mapping[str, Any], until: float = math.inf) -> dict[str, Any]:
    """The job in a process of its own: seconds to the first round, seconds a round, memory in MiB.

    `resident_mib` has one entry a round, `peak_mib` is the largest ever of the process (not of its workers). It ends
    after `until` rounds, if that is sooner.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "securefed_benchmarks.scale",
            "--play",
            json.dumps([job, None if math.isinf(until) else until]),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SECUREFED_BENCH_BEGAN": repr(time.time())},
    )
    if done.returncode:
        raise RuntimeError(f"{job['name']}: the job failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Enough(BaseException):
    """The job has shown what was asked of it. No `Exception`, for those of a tracker do not stop a run."""


class Watch:
    """A tracker that reads the clock and /proc at the start and after every round.

    Args:
        began: when the interpreter was started. until: the job ends after so many rounds, without a last evaluation.
    """

    def __init__(self, began: float, until: float = math.inf) -> None:
        self.began, self.until = began, until
        self.start_s = self.start_cpu_s = 0.0
        self.seconds: list[float] = []
        self.cpu: list[tuple[float, list[float]]] = []
        self.resident: list[float] = []

    def start(self, info: RunInfo) -> None:
        """The last thing before the first round."""
        self.start_s, self.start_cpu_s = time.time() - self.began, time.process_time()

    def round(self, record: RoundRecord) -> None:
        """After each round."""
        self.seconds.append(record.seconds)
        self.resident.append(memory("VmRSS"))
        self.cpu.append((time.process_time(), children_cpu()))
        if len(self.seconds) >= self.until:
            raise Enough

    def end(self, summary: RunSummary) -> None:
        """Nothing to close."""

    def close(self) -> None:
        """Nothing to close."""


def memory(field: str) -> float:
    """MiB of this process: VmRSS (now) or VmHWM (the most ever); Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status; the memory figures need Linux")


def children_cpu() -> list[float]:
    """CPU seconds of each process that this one has started and that still lives, in the order of their ids."""
    return [cpu_of(pid)[0] for pid in sorted(set(children_of(os.getpid())))]


def critical_path(cpu: list[tuple[float, list[float]]]) -> float:
    """CPU seconds from the first round's end to the last's that nothing can run beside: own + the busiest child's."""
    (own, theirs), (own_end, theirs_end) = cpu[0], cpu[-1]
    return own_end - own + max((b - a for a, b in zip(theirs, theirs_end, strict=True)), default=0.0)


def play(job: Mapping[str, Any], until: float = math.inf) -> dict[str, Any]:
    """Plays the job here, and says what `played` hands over."""
    began = float(os.environ.get("SECUREFED_BENCH_BEGAN", time.time()))
    import securefed as sf

    watch = Watch(began, until)
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(Enough):
        sf.run(job, folder=Path(scratch) / "run", trackers=[watch])
    return {
        "start_s": watch.start_s,
        "start_cpu_s": watch.start_cpu_s,
        "seconds": watch.seconds,
        "resident_mib": watch.resident,
        "cpu": watch.cpu,
        "peak_mib": memory("VmHWM"),
    }


def memory_figure(repeats: int) -> dict[str, Any]:
    """Peak memory of 100 clients over that of two."""
    few, many = ([played(lora(n))["peak_mib"] for _ in range(repeats)] for n in (2, 100))
    return {"mib_2": round(min(few)), "mib_100": round(min(many)), "ratio": ratio(many, few)}


def growth_figure(repeats: int) -> dict[str, Any]:
    """Memory after the last round over that after the tenth, and seconds a round."""
    found = played(mlp())
    seconds = found["seconds"]
    return {
        "mib_after_10": round(found["resident_mib"][9], 1),
        "mib_after_100": round(found["resident_mib"][-1], 1),
        "s_per_round_first_half": round(statistics.median(seconds[:50]), 4),
        "s_per_round_second_half": round(statistics.median(seconds[50:]), 4),
        "start_s": round(found["start_s"], 2),
    }


def start_figure(repeats: int) -> dict[str, Any]:
    """Seconds to the start of the first round and to its end, of both jobs; the first process of each warms the caches.

    Beside them, what importing the libraries alone takes: less is not to be had.
    """
    found: dict[str, Any] = {
        f"import_{name}_cpu_s": round(min(imports(modules) for _ in range(repeats)), 2)
        for name, modules in LIBRARIES.items()
    }
    for job in (lora(12), head()):
        runs = [played(job, 1) for _ in range(repeats + 1)][1:]
        ends = [run["cpu"][0][0] for run in runs]
        found[job["name"]] = {
            "start_s": round(min(run["start_s"] for run in runs), 2),
            "start_cpu_s": round(min(run["start_cpu_s"] for run in runs), 2),
            "round_ended_cpu_s": round(min(ends), 2),
            "round_ended_cpu_s_median": round(statistics.median(ends), 2),
        }
    return found


def imports(modules: str) -> float:
    """CPU seconds of a process that imports these modules and ends."""
    code = f"import time, {modules}; print(time.process_time())"
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def pool_figure(repeats: int) -> dict[str, Any]:
    """How many times faster a round is in two workers; the first round of each, which starts them, is left out."""
    alone, both = [], []
    for _ in range(repeats):
        alone.append(played(cnn(0)))
        both.append(played(cnn(2)))
    clock = [[statistics.median(f["seconds"][1:]) for f in side] for side in (alone, both)]
    cpu = [[critical_path(f["cpu"]) for f in side] for side in (alone, both)]
    return {
        "gain_by_cpu": ratio(*cpu),
        "gain_by_clock": ratio(*clock),
        "s_per_round_alone": round(min(clock[0]), 3),
        "s_pool": round(min(clock[1]), 3),
    }


FIGURES = {"memory": memory_figure, "growth": growth_figure, "start": start_figure, "pool": pool_figure}


def main() -> None:
    """Prints a JSON line for each figure asked for (all of them by default)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("figures", nargs="*", choices=[*FIGURES, []], help="which (all by default)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--play", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play:
        job, until = json.loads(asked.play)
        print(json.dumps(play(job, math.inf if until is None else until)))
        return
    for name in asked.figures or FIGURES:
        report(f"scale: {name}", FIGURES[name](asked.repeats))


if __name__ == "__main__":
    main()
