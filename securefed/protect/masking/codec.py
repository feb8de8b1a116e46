"""What masking carries instead of its own fixed point: ring words that another layer makes and reads.

Masking adds words of Z_(2^bits) and does not ask what they mean. A mechanism that brings its own integers
(clip, rotation, rounding, noise) puts them here, so that masking neither rounds nor clips them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from securefed.errors import ProtocolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from securefed.crypto.entropy import Stream
    from securefed.protect.masking.fixedpoint import Words
    from securefed.protect.masking.parameters import MaskingParameters
    from securefed.types import RoundParameters, Vector


class Codec(Protocol):
    """One round's map between updates and ring words; its constants are public and signed."""

    @property
    def bits(self) -> int:
        """Of the ring."""
        ...

    @property
    def min_survivors(self) -> int:
        """The fewest inputs a sum may hold."""
        ...

    def encode(self, update: Vector, stream: Stream) -> Words:
        """One client's words, uint32 (d,), each below 2^bits.

        Args:
            update: float32 (d,), or (b, d): b vectors, b >= 0, each of which is bounded by itself and added.
        """
        ...

    def decode(self, total: Words, survivors: int) -> NDArray[np.float64]:
        """What the sum of words stands for, float64 (d,)."""
        ...


class Codecs(Protocol):
    """What a party knows of a run's codecs before any round."""

    def propose(self, base: RoundParameters) -> bytes:
        """Server: the public constants of a new round; the cohort is fixed by now."""
        ...

    def accept(self, base: RoundParameters, constants: bytes) -> Codec:
        """Either side: the codec of these constants. Raises ProtocolError unless they are what it demands."""
        ...


def agreed(p: MaskingParameters, codecs: Codecs | None) -> Codec | None:
    """The codec of a round with these parameters, None for masking's own fixed point.

    Raises:
        ProtocolError: one side brings a codec and the other does not, the constants are not what this
            party demands, or ring and survivors do not suit the codec.
    """
    if codecs is None:
        if p.codec:
            raise ProtocolError("masking: the parameters name a codec that this party was not set up with")
        return None
    if not p.codec:
        raise ProtocolError("masking: the parameters name no codec, this party sends nothing without its own")
    codec = codecs.accept(p.base, p.codec)
    if p.bits != codec.bits:
        raise ProtocolError(f"masking: a ring of {p.bits} bits, the codec's has {codec.bits}")
    if p.min_survivors < codec.min_survivors:
        raise ProtocolError(
            f"masking: min_survivors={p.min_survivors} is below the codec's floor of {codec.min_survivors}"
        )
    if p.base.weights is None or set(p.base.weights) != {1.0}:
        raise ProtocolError("masking: a codec's words cannot be weighted; all weights are public and 1")
    return codec
