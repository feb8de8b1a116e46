"""Coverage-guided fuzzing of everything that reads bytes from others: `make fuzz` (needs the package atheris).

Garbage may raise ProtocolError, or change nothing. Any other exception, a hang or a sum is a finding.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(
    include=["securefed.protect", "securefed.crypto", "securefed.sessions", "securefed.compression"]
):
    from securefed.compression.quantized import Quantized
    from securefed.compression.top_k import TopK
    from securefed.crypto.encoding import Reader
    from securefed.crypto.entropy import SystemEntropy
    from securefed.crypto.packing import unpack
    from securefed.crypto.shamir import combine
    from securefed.errors import ProtocolError
    from securefed.layout import vector_digest
    from securefed.protect.masking import Masking, MaskingParameters
    from securefed.protect.masking.messages import (
        Cohort,
        Dealing,
        Quorum,
        decode_ids,
        decode_opened,
        open_envelope,
    )
    from securefed.protect.plain import Plain
    from securefed.sessions.messages import Answer, Begin, Offer, unseal
    from securefed.types import RoundParameters

import numpy as np

DIGEST = vector_digest(np.zeros(4, np.float32))
BASE = RoundParameters("run", 3, (0, 1, 2, 3), 4, DIGEST, DIGEST, (1.0,) * 4)
ENTROPY = SystemEntropy()
OPENED = Masking(value_range=1.0, max_weight=1.0).open("run", range(4), ENTROPY)


def _sessions(data: bytes) -> None:
    """Whole sessions: nothing that is not signed may move one of them, and no sum may come of it."""
    server, client = OPENED.server(BASE), OPENED.client(BASE, 0, ENTROPY)
    server.start()
    client.start()
    for output in (server.receive(1, data), Plain().server(BASE).receive(1, data)):
        assert output.result is None
    client.receive(data)


READERS = (
    lambda data: open_envelope(data),
    lambda data: MaskingParameters.decode(data, DIGEST),
    lambda data: decode_ids(data, 32),
    lambda data: decode_opened(data),
    lambda data: Cohort.decode(data),
    lambda data: Dealing.decode(data, 1, (0, 1, 2, 3)),
    lambda data: Quorum.decode(data),
    lambda data: unpack(data, len(data) * 8 // 20, 20),
    lambda data: combine({1: data[:33], 2: data[33:66]}, 2),
    lambda data: Reader(data).text(64),
    lambda data: unseal(data),
    lambda data: Offer.decode(data, 4),
    lambda data: Answer.decode(data),
    lambda data: Begin.decode(data),
    lambda data: TopK(0.5).decode(data, 2 * (len(data) - 4) // 3),
    lambda data: Quantized(7, 8).decode(data, 2 * len(data)),
    _sessions,
)


def one_input(data: bytes) -> None:
    """The first byte chooses the reader, the rest is read."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except ProtocolError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
