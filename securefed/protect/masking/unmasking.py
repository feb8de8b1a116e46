"""What the server does with opened shares: rebuild the seeds, take the masks off, decode the sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.keys import KeyPair
from securefed.crypto.prg import add_masks
from securefed.crypto.shamir import combine, commit
from securefed.errors import ProtocolError
from securefed.protect.masking.codec import Codec
from securefed.protect.masking.derivation import pair_key, secret_commitment, self_key, share_context
from securefed.protect.masking.fixedpoint import Words, weight_unit
from securefed.protect.masking.messages import DIGEST, Dealing, Kind
from securefed.protect.masking.parameters import MaskingParameters
from securefed.protect.masking.topology import Topology, points


@dataclass(slots=True)
class Advert:
    """One client's checked advertisement."""

    transport: bytes
    mask: bytes
    digest: bytes
    payload: bytes = field(repr=False)
    tags: tuple[bytes, ...] | None = field(default=None, repr=False)


@dataclass(eq=False)
class Opened:
    """The shares that holders have opened so far, owner -> holder -> share.

    Attributes:
        wrong: holder -> what it opened that it did not hold.
    """

    p: MaskingParameters
    topology: Topology
    adverts: Mapping[int, Advert] = field(repr=False)
    dealings: Mapping[int, Dealing] = field(repr=False)
    survivors: frozenset[int]
    wrong: dict[int, str] = field(default_factory=dict)
    _shares: dict[int, dict[int, bytes]] = field(default_factory=dict, repr=False)
    _places: dict[int, dict[int, int]] = field(default_factory=dict, repr=False)

    def kind(self, owner: int) -> Kind:
        """Which of a client's two secrets is opened in this round."""
        return Kind.SELF if owner in self.survivors else Kind.KEY

    def places(self, owner: int) -> dict[int, int]:
        """holder -> x among the owner's holders."""
        found = self._places.get(owner)
        if found is None:
            found = self._places[owner] = points(self.topology.holders(owner))
        return found

    def expected(self, holder: int) -> list[tuple[int, int]]:
        """(owner, kind) of the shares this holder has to open, in order."""
        alive, dealings, own, key = self.survivors, self.dealings, int(Kind.SELF), int(Kind.KEY)
        owners = self.topology.holders(holder)
        return [(owner, own if owner in alive else key) for owner in owners if owner in dealings]

    def take(self, holder: int, opened: Sequence[tuple[int, int, bytes]]) -> None:
        """Keeps one holder's shares; whether they are right shows when they are put together.

        Raises:
            ProtocolError: other shares than this holder has to open.
        """
        if [(owner, kind) for owner, kind, _ in opened] != self.expected(holder):
            raise ProtocolError(
                "masking: unmask: it must open one share of each neighbour, of the kind agreed on"
            )
        for owner, _, share in opened:
            self._shares.setdefault(owner, {})[holder] = share

    def secret(self, owner: int) -> bytes:
        """The seed that the shares of this client open.

        It is checked against what its owner committed to. Only where that fails is each share held
        against its own commitment: a holder that opened a wrong one is named in `wrong`, the others'
        shares are put together again, and if they still do not fit, their dealer is to blame.

        Raises:
            ProtocolError: too few shares, or shares that do not fit what the dealer committed to.
        """
        seed = self._joined(owner)
        if seed is None and self._discard_wrong(owner):
            seed = self._joined(owner)
        if seed is None:
            raise ProtocolError(
                f"client {owner} dealt shares of another {self._what(owner)} than it committed to"
            )
        return seed

    def _what(self, owner: int) -> str:
        return "self-mask seed" if owner in self.survivors else "mask key"

    def _joined(self, owner: int) -> bytes | None:
        """The owner's seed from its first shares, None if it is not the committed one."""
        shares, p = self._shares.get(owner, {}), self.p
        if len(shares) < p.threshold:
            raise ProtocolError(
                f"too few shares (threshold): {len(shares)} of the needed {p.threshold} for the "
                f"{self._what(owner)} of client {owner}"
            )
        places = self.places(owner)
        first = sorted(shares)[: p.threshold]
        try:
            seed = combine({places[holder]: shares[holder] for holder in first}, p.threshold)
        except ProtocolError:
            return None
        if owner in self.survivors:
            honest = secret_commitment(seed, p.context, owner) == self.dealings[owner].secret
        else:
            honest = KeyPair.from_seed(seed).public == self.adverts[owner].mask
        return seed if honest else None

    def _discard_wrong(self, owner: int) -> bool:
        """Drops shares that do not fit their commitments and names their holders; whether there were any.

        The holder is to blame, since it checked the commitment when it took the share.
        """
        kind, shares = self.kind(owner), self._shares[owner]
        for holder in list(shares):
            committed = self.dealings[owner].dealt[holder][kind * DIGEST : (kind + 1) * DIGEST]
            if commit(shares[holder], share_context(self.p.context, owner, holder, kind)) != committed:
                self.wrong[holder] = f"unmask: its share of client {owner} does not fit the commitment"
                del shares[holder]
        return bool(self.wrong)


def remove_masks(words: Words, opened: Opened, threads: int) -> None:
    """Takes the survivors' self masks and the dropped clients' pairwise masks off the sum, in place.

    Raises:
        ProtocolError: a secret cannot be rebuilt; the words are as they were.
    """
    p = opened.p
    keys: list[tuple[bytes, int]] = []
    for owner in opened.dealings:
        seed = opened.secret(owner)
        if owner in opened.survivors:
            keys.append((self_key(seed, p.context, owner), -1))
        else:
            keys.extend(_left_over(owner, KeyPair.from_seed(seed), opened))
    add_masks(words, keys, bits=p.bits, threads=threads, cipher=p.cipher)


def _left_over(gone: int, pair: KeyPair, opened: Opened) -> list[tuple[bytes, int]]:
    """The masks that survivors had added for a client whose own vector never came."""
    keys = []
    for j in opened.topology.holders(gone):
        if j not in opened.survivors:
            continue
        theirs = opened.adverts[j].mask
        low, high = sorted(((gone, pair.public), (j, theirs)))
        key = pair_key(pair.exchange(theirs), opened.p.context, low, high)
        keys.append((key, -1 if j < gone else 1))  # j added it with + where j < gone
    return keys


def decode_total(
    words: Words, p: MaskingParameters, survivors: Sequence[int], codec: Codec | None = None
) -> tuple[NDArray[np.float64], float, float | None]:
    """(sum of weight x vector, sum of weights, clipped share) behind the unmasked words.

    With a codec the sum is what it decodes, the weights are 1, and no clipped share is known.

    Raises:
        ProtocolError: more was clipped than the parameters allow.
    """
    mask = np.uint32((1 << p.bits) - 1)
    if codec is not None:
        return codec.decode(words & mask, len(survivors)), float(len(survivors)), None
    integers = p.limbs.decode(words[p.base.size :] & mask)
    clipped = integers[0] / (max(p.base.size, 1) * len(survivors))
    if clipped > p.max_clipped_share:
        raise ProtocolError(
            f"{clipped:.3g} of all coordinates were clipped to value_range={p.value_range:g}, allowed are "
            f"{p.max_clipped_share:g}; raise value_range"
        )
    total = p.quantizer.dequantize(words[: p.base.size])
    if p.max_weight != 1.0:
        total *= p.max_weight
    if p.base.weights is None:
        weight = integers[1] * weight_unit(p.max_weight)
    else:
        weight = float(sum(w for k in survivors if (w := p.public_weight(k)) is not None))
    return total, weight, clipped
