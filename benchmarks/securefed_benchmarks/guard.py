"""Has anything got slower? A few ratios, measured in turn within one process, beside the stored ones: `make bench-quick`.

A ratio compares ours with something that does not change when our code does (a hand-written loop, a raw product, a raw
cipher), so a slow machine gives the same number as a fast one. Others on the machine can only add to CPU seconds (they
empty caches), so a ratio is the smallest of ours over the smallest of the yardstick's, of `PAIRS` plays of each in turn; `BLOCKS` of
these, one after the other, show the spread. A loss is told where even the best block is worse than the stored median by more
than `SLACK` of it beyond the stored spread, and is so again when it is measured a second time.

    python -m securefed_benchmarks.guard             # compare; exit code 1 on a loss, 2 where a pair has no stored ratio
    python -m securefed_benchmarks.guard --store     # keep this machine's as the new ones
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STORED = Path(__file__).resolve().parents[1] / "results" / "guard.json"
BLOCKS, PAIRS = 5, 8
SLACK = 0.3
Play = Callable[[], Any]


@dataclass(frozen=True)
class Loss:
    """A ratio that got worse beyond noise."""

    name: str
    stored: float
    bound: float
    best: float

    def __str__(self) -> str:
        return f"{self.name}: best ratio {self.best:.3f}, stored {self.stored:.3f}, allowed {self.bound:.3f}"


def pairs() -> dict[str, Callable[[], tuple[Play, Play]]]:
    """Name -> makes (ours, the yardstick), ready to be called again and again."""
    return {
        "geometric median": _rule,
        "mask stream": _masks,
        "secure sum": _secure_sum,
        "accounting": _accounting,
    }


def measure(make: Callable[[], tuple[Play, Play]], blocks: int = BLOCKS, pairs: int = PAIRS) -> list[float]:
    """Ratios of CPU seconds, ours over the yardstick's, smallest over smallest of each block, after one warm-up."""
    ours, yardstick = make()
    _cpu(ours), _cpu(yardstick)
    found = []
    for _ in range(blocks):
        took = [(_cpu(ours), _cpu(yardstick)) for _ in range(pairs)]
        found.append(min(a for a, _ in took) / min(b for _, b in took))
    return found


def losses(stored: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]) -> list[Loss]:
    """What got slower: its best ratio now lies above the stored median, its spread and the slack."""
    found = []
    for name, before in stored.items():
        if name not in now:
            continue
        usual = statistics.median(before)
        bound = (usual + (max(before) - min(before)) / 2) * (1 + SLACK)
        if min(now[name]) > bound:
            found.append(Loss(name, usual, bound, min(now[name])))
    return found


def _cpu(play: Play) -> float:
    began = time.process_time()
    play()
    return max(time.process_time() - began, 1e-6)


def _rule() -> tuple[Play, Play]:
    """A robust rule beside the bare product of its rows."""
    import torch

    from securefed_defenses import AGGREGATORS

    torch.set_num_threads(1)
    rows = torch.randn(20, 400_000, generator=torch.Generator().manual_seed(0))
    rule = AGGREGATORS["geometric_median"]()
    return lambda: rule(rows), lambda: [rows @ rows.T for _ in range(2)]


def _masks() -> tuple[Play, Play]:
    """Ten masks added to a vector beside the raw cipher on as many bytes."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from securefed.crypto.prg import add_masks

    words = np.zeros(400_000, np.uint32)
    keys = [(bytes([k]) * 32, 1) for k in range(10)]

    def raw() -> None:
        zeros = bytes(words.nbytes)
        for _ in keys:
            Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor().update(zeros)

    return lambda: add_masks(words, keys), raw


def _secure_sum() -> tuple[Play, Play]:
    """A secure sum of five short vectors, keys and signatures included, beside as many bare key agreements."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    import securefed as sf

    vectors = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)

    def agreements() -> None:
        mine, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
        for _ in range(200):
            mine.exchange(theirs)

    return lambda: sf.secure_sum(vectors, value_range=8.0), agreements


def _accounting() -> tuple[Play, Play]:
    """An epsilon by PLD, of a noise never asked before, beside plain Fourier transforms of its size."""
    from securefed.privacy.accounting import epsilon_of
    from securefed.privacy.events import SampledGaussian

    drawn = np.random.default_rng()  # from the system's: a second look asks for other noises than the first
    signal = np.random.default_rng(0).normal(size=1 << 18)

    def ours() -> None:
        epsilon_of([SampledGaussian(1.0 + 1e-3 * drawn.random(), 0.05, 500)], 1e-5, "pld")

    return ours, lambda: [np.fft.irfft(np.fft.rfft(signal)) for _ in range(4)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line a ratio; 1 if one got worse beyond noise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", action="store_true", help="keep what is measured as the new ratios")
    parser.add_argument("--file", type=Path, default=STORED, help="where they are stored")
    wanted = parser.parse_args(arguments)
    now = {name: measure(make) for name, make in pairs().items()}
    for name, found in now.items():
        sys.stdout.write(f"{name}: {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})\n")
    if wanted.store:
        facts = {
            "machine": platform.machine(),
            "ratios": {n: [round(r, 4) for r in v] for n, v in now.items()},
        }
        wanted.file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return 0
    if not wanted.file.is_file():
        sys.stderr.write(f"nothing stored in {wanted.file}; run with --store first\n")
        return 2
    stored = json.loads(wanted.file.read_text(encoding="utf-8"))["ratios"]
    if odd := sorted(stored.keys() ^ now.keys()):
        sys.stderr.write(
            f"{odd[0]} is stored or measured, not both, and so never compared; run with --store\n"
        )
        return 2
    worse = losses(stored, now)
    if worse:  # once more, later: what disturbed every block may be gone
        worse = losses(stored, {loss.name: measure(pairs()[loss.name]) for loss in worse})
    for loss in worse:
        sys.stderr.write(f"slower: {loss}\n")
    return int(bool(worse))


if __name__ == "__main__":
    raise SystemExit(main())
