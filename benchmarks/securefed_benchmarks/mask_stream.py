"""The rate of masks beside the raw rate of AES-256-CTR: what the adds, the blocks and Python cost.

A client with k = 20 neighbours adds 21 streams to its vector. Raw is the cipher alone on as many bytes: in
one call over the whole vector into memory of its own, and in calls of our block's size, which stay in
the cache. CPU seconds of this process, variants in turn.

    python -m securefed_benchmarks.mask_stream
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securefed.crypto.prg import BLOCK_WORDS, add_masks
from securefed_benchmarks.timing import ratio, report

STREAMS, WORDS, REPEATS = 21, 10_000_000, 5


def _raw(zeros: memoryview, out: memoryview, chunk: int) -> None:
    """As many keystreams of the vector's size, `chunk` bytes a call, each call into the same buffer."""
    for _ in range(STREAMS):
        stream = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        for at in range(0, 4 * WORDS, chunk):
            n = min(chunk, 4 * WORDS - at)
            stream.update_into(zeros[:n], out[:n])


def _cpu(call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    """Prints one JSON line: gigabytes a second of each and the rate of masks over each raw rate."""
    words = np.zeros(WORDS, np.uint32)
    zeros, out = memoryview(bytes(4 * WORDS)), memoryview(bytearray(4 * WORDS))
    keys = [(os.urandom(32), 1 if i % 2 else -1) for i in range(STREAMS)]
    variants: dict[str, Callable[[], None]] = {
        "masks, 32 bits": lambda: add_masks(words, keys),
        "masks, 20 bits": lambda: add_masks(words, keys, bits=20),
        "masks, 16 bits": lambda: add_masks(words, keys, bits=16),
        "raw, one call": lambda: _raw(zeros, out, 4 * WORDS),
        "raw, our blocks": lambda: _raw(zeros, out, 4 * BLOCK_WORDS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(REPEATS + 1):
        for name, call in variants.items():
            spent = _cpu(call)
            if turn:  # the first warms up
                seconds[name].append(spent)
    whole = 4 * WORDS * STREAMS / 1e9
    rates = {name: round(whole / min(s), 2) for name, s in seconds.items()}
    rates["masks, 16 bits"] = round(rates["masks, 16 bits"] / 2, 2)  # two bytes a word
    report(
        "mask streams against raw AES-256-CTR",
        {
            "GB_per_s": rates,
            "over raw, one call": ratio(seconds["raw, one call"], seconds["masks, 32 bits"]),
            "over raw, our blocks": ratio(seconds["raw, our blocks"], seconds["masks, 32 bits"]),
        },
    )


if __name__ == "__main__":
    main()
