"""Robust rules over rows that lie on disk: time, and memory beyond one row.

Writes n files of d float32 numbers (standard normal; the last f of them ten times as large, the other way), reads
them through `FileRows`, and removes them. Each rule runs in a fresh process, so that its peak memory is its own;
a row is what the result takes.

    python -m securefed_benchmarks.streaming --n 20 --f 4 --d 100000000 --folder /tmp     # 8 GB on disk
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from securefed_benchmarks.timing import report

PIECE = 1 << 20
"""Numbers that are drawn and written at a time."""


def rules(f: int) -> dict[str, Any]:
    """Name -> rule for f liars: two on inner products, two on coordinates, one on both."""
    from securefed_defenses import NNM, GeometricMedian, Median, MultiKrum, Pipeline, TrimmedMean

    return {
        "multi_krum": MultiKrum(f=f),
        "geometric_median": GeometricMedian(),
        "median": Median(),
        "trimmed_mean": TrimmedMean(f=f),
        "nnm + trimmed_mean": Pipeline((NNM(f=f),), TrimmedMean(f=f)),
    }


def write(folder: Path, n: int, f: int, d: int) -> list[Path]:
    """The files, one a row."""
    import torch

    generator, files = torch.Generator().manual_seed(0), []
    for k in range(n):
        path = folder / f"row{k}.f32"
        with path.open("wb") as file:
            for start in range(0, d, PIECE):
                piece = torch.randn(min(PIECE, d - start), generator=generator)
                file.write((piece if k < n - f else -10 * (piece + 1)).numpy().tobytes())
        files.append(path)
    return files


def memory(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def play(name: str, files: list[Path], f: int, queue: Any) -> None:
    """One rule over the files; puts its figures into the queue."""
    import torch

    from securefed.rows import FileRows

    torch.set_num_threads(1)
    rule, small = rules(f)[name], torch.randn(len(files), 1000)
    rule(small)  # what libraries load on first use is no part of the rule
    Path("/proc/self/clear_refs").write_text("5")
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = rule(FileRows(files))
    queue.put(
        {
            "seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "gib_beyond_one_row": round((memory("VmHWM") - before - 4 * len(result)) / 2**30, 3),
            "mean_square": round(float(result.square().mean()), 4),
        }
    )


def main() -> None:
    """Prints one JSON line a rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--f", type=int, default=4)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="on a disk with room for n x d x 4 bytes")
    parser.add_argument("--only", default="", help="names, separated by commas")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = write(Path(folder), args.n, args.f, args.d)
        for name in rules(args.f):
            if args.only and name not in args.only.split(","):
                continue
            queue = context.Queue()
            process = context.Process(target=play, args=(name, files, args.f, queue))
            process.start()
            found: dict[str, Any] = queue.get(timeout=3600)
            process.join()
            report("streaming", {"rule": name, "n": args.n, "f": args.f, "d": args.d, **found})


if __name__ == "__main__":
    main()
