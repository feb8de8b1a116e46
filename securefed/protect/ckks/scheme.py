"""The one file that knows TenSEAL: keys, encryption and decryption of whole vectors as words.

TenSEAL's own vectors put N/2 real numbers into a ciphertext, insist on a special prime and print to
standard output. Its binding of SEAL itself (`tenseal.sealapi`) does none of that. That binding reads
and writes files only, so words go through an anonymous file in memory where the system has them.

Nothing here decides: what is encrypted for whom, and what may be decrypted, is the sessions' business.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ConfigError, PrivacyError, ProtocolError
from securefed.protect.ckks.residues import Words

if TYPE_CHECKING:
    from securefed.protect.ckks.parameters import ParameterSet

HEADER = struct.Struct("<HBBBBHQ")
"""SEAL's header: magic, its own size, version, compression, reserved, size of all."""
MAGIC, PLAIN, ZSTD = 0xA15E, 0, 2


def available() -> str | None:
    """None where TenSEAL and zstandard import, else what is missing and how to get it."""
    try:
        _libraries()
    except ConfigError as error:
        return str(error)
    return None


def _libraries() -> tuple[ModuleType, ModuleType]:
    """(tenseal.sealapi, zstandard).

    Raises:
        ConfigError: one of them does not import.
    """
    try:
        import zstandard
        from tenseal import sealapi
    except ImportError as error:
        raise ConfigError(
            f"ckks: {error.name or 'tenseal'} does not import on this machine ({error}); "
            "pip install 'securefed[ckks]', or take protection = masking"
        ) from None
    return sealapi, zstandard


class _Exchange:
    """SEAL objects to bytes and back through one file; uncompressed on the way in, emptied after use.

    On Linux the file is anonymous and in memory. Elsewhere it lies in a folder of this process that only
    its user can read, for the moment that a call takes; a shared secret key passes through it too.
    """

    def __init__(self) -> None:
        self._seal, zstandard = _libraries()
        self._unpacker = zstandard.ZstdDecompressor()
        self._descriptor: int | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> _Exchange:
        if sys.platform == "linux":
            self._descriptor = os.memfd_create("securefed-ckks")
            self._path = Path(f"/proc/self/fd/{self._descriptor}")
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="securefed-ckks-")
            self._path = Path(self._folder.name) / "words"
        self._version = self._read(self._seal.EncryptionParameters(self._seal.SCHEME_TYPE.CKKS))[3:5]
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._folder is not None:
            self._folder.cleanup()

    def _read(self, item: Any) -> bytes:
        item.save(str(self._path))
        data = self._path.read_bytes()
        self._path.write_bytes(b"")
        return data

    def save(self, item: Any) -> bytes:
        """The object's members, uncompressed, without SEAL's header.

        Raises:
            ProtocolError: another format than SEAL 4 writes.
        """
        data = self._read(item)
        magic, _, _, _, compression, _, total = HEADER.unpack_from(data)
        if magic != MAGIC or total != len(data) or compression not in (PLAIN, ZSTD):
            raise ProtocolError(
                f"ckks: TenSEAL wrote a format this release does not read (compression {compression})"
            )
        body = data[HEADER.size :]
        if compression == PLAIN:
            return body
        members: bytes = self._unpacker.decompressobj().decompress(body)
        return members

    def load(self, item: Any, context: Any, members: bytes, words: Words) -> None:
        """Reads members, with their trailing words replaced, into the object; SEAL checks what it reads.

        Raises:
            ProtocolError: SEAL refuses it.
        """
        tail = np.ascontiguousarray(words, "<u8").tobytes()
        body = members[: len(members) - len(tail)] + tail
        header = HEADER.pack(MAGIC, HEADER.size, *self._version, PLAIN, 0, HEADER.size + len(body))
        self._path.write_bytes(header + body)
        try:
            item.load(context, str(self._path))
        except (RuntimeError, ValueError) as error:
            raise ProtocolError(f"ckks: SEAL refuses what was received: {error}") from None
        finally:
            self._path.write_bytes(b"")


class Scheme:
    """CKKS over one parameter set: encodes, and with a key encrypts or decrypts, N coordinates at a time.

    It holds what it is given: no key, a public key or a secret key; it shows none of them and is never
    pickled or copied. SEAL draws its randomness from the operating system.

    Args:
        parameters: a set that has passed its own checks (SEAL's library can end the process on others).
    """

    def __init__(self, parameters: ParameterSet) -> None:
        self.parameters = parameters
        seal = self._seal = _libraries()[0]
        parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parms.set_poly_modulus_degree(parameters.degree)
        parms.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, list(parameters.bits)))
        # False: no chain of smaller moduli, which nothing here would use
        self._context = seal.SEALContext(parms, False, seal.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            raise ConfigError(
                f"ckks: SEAL refuses {parameters.name}: {self._context.parameters_error_message()}"
            )
        if tuple(m.value() for m in parms.coeff_modulus()) != parameters.key_primes:
            raise ConfigError(
                f"ckks: this TenSEAL chooses other primes than {parameters.name} has; take 0.3.18"
            )
        self._encoder = seal.CKKSEncoder(self._context)
        self._encrypt: Any = None
        self._decryptor: Any = None
        self._secret: Any = None

    # ------------------------------------------------------------------------------------------- keys

    def generate(self) -> Words:
        """Makes a key pair and keeps the secret key; returns the public key's words (1, 2, primes, N)."""
        generator = self._seal.KeyGenerator(self._context)
        public = self._seal.PublicKey()
        generator.create_public_key(public)
        self._keep_secret(generator.secret_key())
        self._encrypt = self._seal.Encryptor(self._context, public).encrypt
        return self._key_words(public, 2)

    def take_public(self, words: Words) -> None:
        """Encrypts with this public key from now on.

        Raises:
            ProtocolError: SEAL finds it to be no public key of this set.
        """
        public = self._seal.PublicKey()
        self._seal.KeyGenerator(self._context).create_public_key(public)  # for the members around the words
        with _Exchange() as exchange:
            exchange.load(public, self._context, exchange.save(public), words)
        self._encrypt = self._seal.Encryptor(self._context, public).encrypt

    def secret_words(self) -> Words:
        """The secret key's words (1, 1, key primes, N), to be sealed to those who share it."""
        if self._secret is None:
            raise PrivacyError("ckks: there is no secret key here")
        return self._key_words(self._secret, 1)

    def take_secret(self, words: Words) -> None:
        """Encrypts and decrypts with this secret key from now on; raises ProtocolError if it is none."""
        secret = self._seal.KeyGenerator(self._context).secret_key()
        with _Exchange() as exchange:
            exchange.load(secret, self._context, exchange.save(secret), words)
        self._keep_secret(secret)

    def _keep_secret(self, secret: Any) -> None:
        self._secret = secret
        self._encrypt = self._seal.Encryptor(self._context, secret).encrypt_symmetric
        self._decryptor = self._seal.Decryptor(self._context, secret)

    # ------------------------------------------------------------------------------- encrypting, opening

    def encrypt(self, values: NDArray[np.float64], log2_scale: int) -> Words:
        """Fresh ciphertexts of values in [-1, 1], float64 (d,): uint64 (ceil(d / N), 2, primes, N).

        Coordinate i of a block of N goes to the real half of slot i, coordinate N/2 + i to the imaginary
        half; the last block is filled with zeros.
        """
        if self._encrypt is None:
            raise ProtocolError("ckks: no key to encrypt with; the key holder's context has not arrived")
        degree, half = self.parameters.degree, self.parameters.degree // 2
        count = -(-values.size // degree)
        blocks = np.zeros(count * degree)
        blocks[: values.size] = values
        out = np.empty((count, 2, len(self.parameters.primes), degree), np.uint64)
        plain, cipher = self._seal.Plaintext(), self._seal.Ciphertext()
        with _Exchange() as exchange:
            for i, block in enumerate(blocks.reshape(count, degree)):
                slots = (block[:half] + 1j * block[half:]).tolist()
                self._encoder.encode(slots, 2.0**log2_scale, plain)
                self._encrypt(plain, cipher)
                out[i] = self._words(exchange.save(cipher), 2, len(self.parameters.primes))[0]
        return out

    def decrypt(self, words: Words, log2_scale: int) -> NDArray[np.float64]:
        """The values in these ciphertexts, float64 (ciphertexts * N,); the inverse of `encrypt`.

        Raises:
            ProtocolError: there is no secret key, or SEAL refuses the ciphertexts.
        """
        if self._decryptor is None:
            raise ProtocolError(
                "ckks: the key holder, open: the secret key is missing, so nothing can be decrypted"
            )
        plain, cipher = self._seal.Plaintext(), self._seal.Ciphertext()
        out = np.empty((len(words), 2, self.parameters.degree // 2))
        with _Exchange() as exchange:
            self._encoder.encode(0.0, 2.0**log2_scale, plain)
            self._encrypt(plain, cipher)
            members = exchange.save(cipher)  # of this set and scale; its words are replaced
            for i, one in enumerate(words):
                exchange.load(cipher, self._context, members, one)
                self._decryptor.decrypt(cipher, plain)
                slots = np.array(self._encoder.decode_complex(plain))
                out[i, 0], out[i, 1] = slots.real, slots.imag
        return out.reshape(-1)

    def _key_words(self, key: Any, polynomials: int) -> Words:
        with _Exchange() as exchange:
            return self._words(exchange.save(key), polynomials, len(self.parameters.key_primes))

    def _words(self, members: bytes, polynomials: int, primes: int) -> Words:
        """The words at the end of an object's members, uint64 (1, polynomials, primes, N)."""
        shape = (1, polynomials, primes, self.parameters.degree)
        count = int(np.prod(shape))
        return np.frombuffer(members, "<u8", count, len(members) - 8 * count).reshape(shape).astype(np.uint64)

    # ------------------------------------------------------------------------------------------ secrecy

    def __repr__(self) -> str:
        return f"Scheme({self.parameters.name}, keys hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError("ckks: keys live for one run in one process and are never stored or copied")
