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
    """The shares that holders have opened so far, each checked against its dealer's commitment."""

    p: MaskingParameters
    topology: Topology
    adverts: Mapping[int, Advert] = field(repr=False)
    dealings: Mapping[int, Dealing] = field(repr=False)
    survivors: frozenset[int]
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

    def take(self, holder: int, opened: Sequence[tuple[int, Kind, bytes]]) -> None:
        """Checks one holder's shares and keeps those that are still needed.

        Raises:
            ProtocolError: a share of the wrong kind, of a stranger, twice, or unlike its commitment;
                the holder is to blame, since it checked the commitment when it took the share.
        """
        seen: set[int] = set()
        for owner, kind, _ in opened:
            if owner in seen or owner not in self.dealings or holder not in self.places(owner):
                raise ProtocolError(f"masking: unmask: it holds no share of client {owner}, or sent it twice")
            if kind is not self.kind(owner):
                raise ProtocolError(f"masking: unmask: it opens the wrong kind of share of client {owner}")
            seen.add(owner)
        fit: list[tuple[int, bytes]] = []
        for owner, kind, share in opened:
            if len(self._shares.get(owner, ())) >= self.p.threshold:
                continue  # opened already; one more share says nothing new
            expected = self.dealings[owner].dealt[holder][kind * DIGEST : (kind + 1) * DIGEST]
            if commit(share, share_context(self.p.context, owner, holder, kind)) != expected:
                raise ProtocolError(
                    f"masking: unmask: its share of client {owner} does not fit the commitment"
                )
            fit.append((owner, share))
        for owner, share in fit:
            self._shares.setdefault(owner, {})[self.places(owner)[holder]] = share

    def secret(self, owner: int) -> bytes:
        """The seed that the shares of this client open.

        Raises:
            ProtocolError: too few shares, or shares that do not fit what the dealer committed to.
        """
        shares, p = self._shares.get(owner, {}), self.p
        what = "self-mask seed" if owner in self.survivors else "mask key"
        if len(shares) < p.threshold:
            raise ProtocolError(
                f"too few shares (threshold): {len(shares)} of the needed {p.threshold} for the {what} of client {owner}"
            )
        try:
            seed = combine(shares, p.threshold)
        except ProtocolError as error:
            raise ProtocolError(
                f"client {owner} dealt shares of its {what} that do not fit together: {error}"
            ) from None
        if owner in self.survivors:
            honest = secret_commitment(seed, p.context, owner) == self.dealings[owner].secret
        else:
            honest = KeyPair.from_seed(seed).public == self.adverts[owner].mask
        if not honest:
            raise ProtocolError(f"client {owner} dealt shares of another {what} than it committed to")
        return seed


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
    words: Words, p: MaskingParameters, survivors: Sequence[int]
) -> tuple[NDArray[np.float64], float, float]:
    """(sum of weight x vector, sum of weights, clipped share) behind the unmasked words.

    Raises:
        ProtocolError: more was clipped than the parameters allow.
    """
    mask = np.uint32((1 << p.bits) - 1)
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
