"""Time to `import securefed` and to `securefed --help`, each in a fresh interpreter.

python -m securefed_benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from securefed_benchmarks.timing import alternate, report

COMMANDS = {
    "import securefed": [sys.executable, "-c", "import securefed"],
    "securefed --help": [sys.executable, "-m", "securefed.cli", "--help"],
    "import torch (for scale)": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Prints one JSON line with the seconds of each command."""

    def runner(command: list[str]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    seconds = alternate({name: lambda c=command: runner(c) for name, command in COMMANDS.items()})  # type: ignore[misc]  # default argument binds the loop variable
    facts = {
        name: {"median_s": round(statistics.median(s), 3), "min_s": round(min(s), 3)}
        for name, s in seconds.items()
    }
    report("start-up", facts)


if __name__ == "__main__":
    main()
