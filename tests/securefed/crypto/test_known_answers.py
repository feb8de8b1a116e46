"""Published test vectors, some spoilt on purpose: the primitives are the standards' and notice a wrong bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securefed.crypto.aead import TAG_BYTES, open_sealed, seal
from securefed.crypto.identity import Identity, Roster
from securefed.crypto.keys import KeyPair, hkdf
from securefed.crypto.prg import mask_stream
from securefed.errors import ProtocolError

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "crypto.json").read_text(encoding="utf-8")
)


def b(text: str) -> bytes:
    return bytes.fromhex(text)


def spoilt(value: bytes, at: int = 0) -> bytes:
    changed = bytearray(value)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("v", VECTORS["x25519"])
def test_x25519(v: dict[str, Any]) -> None:
    assert KeyPair.from_seed(b(v["seed"])).exchange(b(v["peer"])) == b(v["shared"])
    assert KeyPair.from_seed(b(v["seed"])).exchange(spoilt(b(v["peer"]))) != b(v["shared"])


@pytest.mark.parametrize("v", VECTORS["hkdf"])
def test_hkdf(v: dict[str, Any]) -> None:
    assert hkdf(b(v["secret"]), b(v["info"]), v["length"], b(v["salt"])) == b(v["out"])
    assert hkdf(b(v["secret"]), b(v["info"]) + b"x", v["length"], b(v["salt"])) != b(v["out"])


@pytest.mark.parametrize("v", VECTORS["ed25519"])
def test_ed25519(v: dict[str, Any]) -> None:
    identity = Identity.from_seed(b(v["seed"]))
    assert identity.public == b(v["public"])
    assert identity.sign(b(v["message"])) == b(v["signature"])
    roster = Roster(Identity.from_seed(bytes(32)).public, {0: identity.public})
    assert roster.verify(0, b(v["message"]), b(v["signature"]))
    assert not roster.verify(0, b(v["message"]), spoilt(b(v["signature"])))
    assert not roster.verify(0, b(v["message"]) + b"x", b(v["signature"]))


@pytest.mark.parametrize("v", VECTORS["chacha20poly1305"])
def test_chacha20_poly1305(v: dict[str, Any]) -> None:
    key, nonce, aad, plaintext = b(v["key"]), b(v["nonce"]), b(v["aad"]), b(v["plaintext"])
    sealed = seal(key, nonce, plaintext, aad)
    assert sealed[-TAG_BYTES:] == b(v["tag"])
    assert open_sealed(key, nonce, sealed, aad) == plaintext
    for changed in (
        (spoilt(key), nonce, sealed, aad),
        (key, spoilt(nonce), sealed, aad),
        (key, nonce, spoilt(sealed), aad),
        (key, nonce, sealed[:-1], aad),
        (key, nonce, sealed, spoilt(aad)),
    ):
        with pytest.raises(ProtocolError, match="does not open"):
            open_sealed(*changed)


@pytest.mark.parametrize("v", VECTORS["aes256ctr"])
def test_aes_256_ctr_is_the_cipher_that_masks_are_made_of(v: dict[str, Any]) -> None:
    cipher = Cipher(algorithms.AES(b(v["key"])), modes.CTR(b(v["iv"])))
    assert cipher.encryptor().update(b(v["plaintext"])) == b(v["ciphertext"])
    counters = b"".join(i.to_bytes(16, "big") for i in range(4))
    blocks = (
        Cipher(algorithms.AES(b(v["key"])), modes.ECB()).encryptor().update(counters)
    )  # the oracle: counter mode by hand
    assert mask_stream(b(v["key"]), 16).tolist() == np.frombuffer(blocks, "<u4").tolist()
