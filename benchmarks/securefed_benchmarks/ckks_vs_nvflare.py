"""Our CKKS beside TenSEAL as NVFLARE 2.9 uses it, and beside masking and plain, for the same updates.

NVFLARE's defaults: degree 8192, chain [60, 40, 40], scale 2^40, one secret key at all clients, one vector
per tensor (`app_opt/he/model_encryptor.py`). Its steps are called here as it calls them; transport is left
out on both sides. Ours are whole rounds: sessions, signatures and the key holder's noise included.

    python -m securefed_benchmarks.ckks_vs_nvflare

Measured: bytes a parameter, parameters a second of one client's encryption (encrypt and serialize),
CPU seconds of a whole round (encrypt, send, add, decrypt), the error of the mean over value_range, and
the server's memory. CPU seconds of one thread, in turn within one process; ratios pair by pair.
"""

from __future__ import annotations

import contextlib
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange, opened
from securefed.protect.ckks import CKKS, OpenCKKS
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed.types import Collected, Protection, RoundParameters, Update
from securefed_benchmarks.timing import alternate, ratio, report

CLIENTS, REPEATS, SEED = 4, 4, 0
MINILM = (2, 768, *(3072 for _ in range(24)))
"""Tensors of MiniLM's rank-8 LoRA on query and value in all six layers, and a head of two classes."""
MILLION = (*(4096 for _ in range(244)), 576)
"""A million parameters in tensors of 4096, which suit the other side: nothing is lost to padding."""
ZERO = "00" * 32


@dataclass
class Nvflare:
    """One round as NVFLARE's encryptor, aggregator and decryptor make it."""

    shapes: Sequence[int]

    def __post_init__(self) -> None:
        import tenseal

        self.ts = tenseal
        symmetric = tenseal.ENCRYPTION_TYPE.SYMMETRIC
        context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=symmetric,
            n_threads=1,
        )
        context.global_scale = 2**40
        self.context = context
        self.bounds = np.cumsum([0, *self.shapes])

    def encrypt(self, vector: NDArray[np.float32]) -> list[bytes]:
        """One client's tensors, serialized."""
        pieces = zip(self.bounds, self.bounds[1:], strict=False)
        return [self.ts.ckks_vector(self.context, vector[a:b]).serialize() for a, b in pieces]

    def add(self, clients: Sequence[list[bytes]]) -> list[bytes]:
        """The server's sum."""
        out = []
        for tensors in zip(*clients, strict=True):
            total = self.ts.ckks_vector_from(self.context, tensors[0])
            for one in tensors[1:]:
                total += self.ts.ckks_vector_from(self.context, one)
            out.append(total.serialize())
        return out

    def decrypt(self, total: list[bytes]) -> NDArray[np.float64]:
        """A client's view of the sum."""
        return np.concatenate([np.array(self.ts.ckks_vector_from(self.context, b).decrypt()) for b in total])

    def round(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Encrypt, send, add, decrypt: the mean."""
        return self.decrypt(self.add([self.encrypt(v) for v in vectors])) / len(vectors)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TenSEAL's vectors print warnings from C++; they go nowhere while this is open."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class Ours:
    """Rounds of one run; the keys are made once."""

    def __init__(self, protection: Protection, vectors: Sequence[NDArray[np.float32]]) -> None:
        self.entropy, self.vectors, self.number = SystemEntropy(), vectors, 0
        self.protection = opened(protection, "bench", range(len(vectors)), self.entropy)
        self.collected: Collected | None = None

    def base(self) -> RoundParameters:
        n = len(self.vectors)
        return RoundParameters(
            "bench", self.number, tuple(range(n)), self.vectors[0].size, ZERO, ZERO, (1.0,) * n
        )

    def round(self) -> NDArray[np.float64]:
        """A whole round: the mean."""
        self.number += 1
        updates = {k: Update(k, self.number, v) for k, v in enumerate(self.vectors)}
        self.collected = exchange(self.protection, self.base(), updates, self.entropy)
        return self.collected.total / self.collected.weight

    def encrypt(self) -> int:
        """One client's message, the run's context being known: its bytes."""
        self.number += 1
        client = self.protection.client(self.base(), 0, self.entropy)
        client.start()
        (message,) = client.submit(Update(0, self.number, self.vectors[0])).send
        return len(message.payload)


def server_peak(vectors: Sequence[NDArray[np.float32]]) -> float:
    """Most bytes a parameter that the server holds while it adds, whatever the number of clients."""
    ours = Ours(CKKS(value_range=1.0), vectors)
    ours.round()
    ours.number += 1
    base, protection = ours.base(), ours.protection
    assert isinstance(protection, OpenCKKS)
    payloads = []
    for k, vector in enumerate(vectors):
        client = protection.client(base, k, ours.entropy)
        payloads += [m.payload for m in client.submit(Update(k, base.round, vector)).send]
    server = protection.server(base)
    server.start()
    tracemalloc.start()
    for k, payload in enumerate(payloads):
        server.receive(k, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / vectors[0].size


def compare(name: str, shapes: Sequence[int]) -> None:
    """One line: ours against theirs."""
    d = sum(shapes)
    rng = np.random.default_rng(SEED)
    vectors = [rng.normal(0, 0.02, d).astype(np.float32) for _ in range(CLIENTS)]
    mean = np.mean([v.astype(np.float64) for v in vectors], axis=0)
    ours, theirs = Ours(CKKS(value_range=1.0), vectors), Nvflare(shapes)
    sent: dict[str, Any] = {}
    with quiet():
        rounds = alternate(
            {
                "ours": lambda: sent.update(mean=ours.round()),
                "theirs": lambda: sent.update(their_mean=theirs.round(vectors)),
            },
            REPEATS,
            time.process_time,
        )
        encryption = alternate(
            {
                "ours": lambda: sent.update(bytes=ours.encrypt()),
                "theirs": lambda: sent.update(their_bytes=sum(map(len, theirs.encrypt(vectors[0])))),
            },
            REPEATS,
            time.process_time,
        )
    report(
        f"CKKS against NVFLARE's use of TenSEAL: {name}",
        {
            "d": d,
            "clients": CLIENTS,
            "bytes_per_parameter": round(sent["bytes"] / d, 2),
            "their_bytes_per_parameter": round(sent["their_bytes"] / d, 2),
            "encrypted_Mparam_per_s": round(d / min(encryption["ours"]) / 1e6, 2),
            "their_encrypted_Mparam_per_s": round(d / min(encryption["theirs"]) / 1e6, 2),
            "encryption_speedup": ratio(encryption["theirs"], encryption["ours"]),
            "round_ratio": ratio(rounds["ours"], rounds["theirs"]),
            "round_cpu_s": round(min(rounds["ours"]), 3),
            "their_round_cpu_s": round(min(rounds["theirs"]), 3),
            "error_of_mean": float(np.abs(sent["mean"] - mean).max()),
            "their_error_of_mean": float(np.abs(sent["their_mean"] - mean).max()),
            "server_peak_bytes_per_parameter": round(server_peak(vectors), 1),
        },
    )


TABLE: dict[str, tuple[Callable[[], Protection], str]] = {
    "plain": (lambda: Plain(keep_updates=False), "the server: each update"),
    "masking": (lambda: Masking(value_range=1.0), "the server: the sum, whoever else lies up to gamma"),
    "ckks key_holder": (
        lambda: CKKS(value_range=1.0),
        "the server: the sum; server and holder together: each update",
    ),
    "ckks verified": (
        lambda: CKKS(value_range=1.0, trust="verified"),
        "the server: the sum; the holder could open each update",
    ),
    "ckks shared_key": (
        lambda: CKKS(value_range=1.0, trust="shared_key"),
        "the server: the sum; the server and any client together: each update",
    ),
    "ckks precise, flooding 64": (
        lambda: CKKS(value_range=1.0, parameters="precise", flooding=64),
        "as key_holder, and no more than 2^-64 from decrypted sums",
    ),
}


def table(shapes: Sequence[int], cohort: int = 10) -> None:
    """A line a protection: time, bytes, error, who can read what."""
    d = sum(shapes)
    rng = np.random.default_rng(SEED)
    vectors = [rng.normal(0, 0.02, d).astype(np.float32) for _ in range(cohort)]
    mean = np.mean([v.astype(np.float64) for v in vectors], axis=0)
    for name, (make, who) in TABLE.items():
        ours = Ours(make(), vectors)
        ours.round()  # keys, and what is fetched once a run
        began = time.process_time()
        found = ours.round()
        seconds = time.process_time() - began
        assert ours.collected is not None
        up = [ours.collected.bytes_up[k] for k in range(cohort)]
        report(
            f"protection: {name}",
            {
                "d": d,
                "clients": cohort,
                "cpu_s": round(seconds, 3),
                "bytes_per_parameter": round(max(up) / d, 2),
                "error_of_mean": float(np.abs(found - mean).max()),
                "can_read": who,
            },
        )


def main() -> None:
    """Prints a JSON line a comparison and a line a protection."""
    compare("MiniLM LoRA", MINILM)
    compare("a million parameters", MILLION)
    table(MINILM)


if __name__ == "__main__":
    main()
