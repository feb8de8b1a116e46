"""CPU time and memory of the robust rules beside ByzFL's, and where the two agree.

Both sides run in one process on the same float32 rows, in turn, on one thread; a time is the smallest of the
repeats in CPU seconds, memory is the peak over the input in a fresh process. `reading` is `x.sum()`.

    pip install --no-deps byzfl==0.0.11          # in an environment that has SecureFed
    python -m securefed_benchmarks.byzantine_rules --n 20 --f 4 --d 1000000

Without ByzFL only our own times are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securefed_benchmarks.timing import report

if TYPE_CHECKING:
    import torch

PEER = Path(__file__).parents[1] / "peers" / "byzfl_aggregators.py"
SLOW = {"mda"}
"""ByzFL lists all C(n, f) subsets for it: left out above n = 20."""


def ours(f: int) -> dict[str, Callable[[Any], Any]]:
    """Name -> our rule for f liars; every default that ByzFL has too is the same."""
    from securefed_defenses import AGGREGATORS, NNM, Pipeline, TrimmedMean

    single = ("trimmed_mean", "mea_med", "krum", "multi_krum", "mda", "monna", "caf")
    return {
        "median": AGGREGATORS["median"](),
        **{name: AGGREGATORS[name](f=f) for name in single},
        "geometric_median": AGGREGATORS["geometric_median"](),
        "centered_clipping": AGGREGATORS["centered_clipping"](radius=100.0, iterations=1),
        "nnm": NNM(f=f),
        "nnm + trimmed_mean": Pipeline(pre=(NNM(f=f),), rule=TrimmedMean(f=f)),
    }


def theirs(f: int) -> dict[str, Callable[[Any], Any]]:
    """Name -> ByzFL's rule, or nothing where it is not installed."""
    spec = importlib.util.spec_from_file_location("byzfl_aggregators", PEER)
    if spec is None or spec.loader is None or importlib.util.find_spec("byzfl") is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Callable[[Any], Any]] = module.rules(f)
    return found


def rows(n: int, d: int) -> torch.Tensor:
    """Standard normal rows, float32 (n, d), from a fixed seed."""
    import torch

    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def cpu_ms(play: Callable[[], Any], repeats: int) -> float:
    """The smallest CPU time of one call in milliseconds, after a warm-up."""
    play()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        play()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def _peak(side: str, name: str, n: int, f: int, d: int, queue: Any) -> None:
    import torch

    torch.set_num_threads(1)
    rule, x = (ours if side == "ours" else theirs)(f)[name], rows(n, d)
    rule(rows(n, 1000))  # what libraries load on first use is no part of the rule
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    rule(x)
    queue.put(_resident("VmHWM") - before)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def extra_gib(side: str, name: str, n: int, f: int, d: int) -> float | None:
    """Peak resident memory over the input, GiB, in a fresh process; None where there is no /proc."""
    if not sys.platform.startswith("linux"):
        return None
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(side, name, n, f, d, queue))
    process.start()
    kib: int = queue.get(timeout=600)
    process.join()
    return round(max(0, kib) / 2**20, 3)


def main() -> None:
    """Prints one JSON line a rule."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--f", type=int, default=4)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory (slow)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n, f, d = args.n, args.f, args.d
    x, peer = rows(n, d), theirs(f)
    reading = cpu_ms(x.sum, 5)
    for name, rule in ours(f).items():
        if args.only and name not in args.only.split(","):
            continue
        mine = cpu_ms(lambda rule=rule: rule(x), args.repeats)  # type: ignore[misc]  # mypy cannot infer this lambda
        facts: dict[str, Any] = {
            "n": n,
            "f": f,
            "d": d,
            "ms": round(mine, 1),
            "readings": round(mine / reading, 1),
        }
        if name in peer and not (name in SLOW and n > 20):
            other = cpu_ms(lambda name=name: peer[name](x), args.repeats)  # type: ignore[misc]  # as above
            gap = (rule(x) - peer[name](x)).norm() / peer[name](x).norm()
            facts |= {
                "byzfl_ms": round(other, 1),
                "times_faster": round(other / mine, 1),
                "difference": f"{gap:.1e}",
            }
        if args.memory:
            facts["extra_gib"] = extra_gib("ours", name, n, f, d)
            if name in peer and not (name in SLOW and n > 20):
                facts["byzfl_extra_gib"] = extra_gib("theirs", name, n, f, d)
        report(name, facts)


if __name__ == "__main__":
    main()
