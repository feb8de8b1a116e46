"""Who is who: one Ed25519 key a party, in the roster and in its TLS certificate, and folders to hand out.

In real life each party makes its own key, and the roster is put together out of the server's reach. Here one
process makes everything on the spot, for a demonstration on one machine.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import securefed as sf


class Authority:
    """Signs the certificates of a federation; lives for this demonstration only."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.certificate = self._issue("securefed example CA", self._key.public_key(), is_ca=True)

    def enrol(self, folder: Path, name: str, seed: bytes) -> None:
        """Writes what a party holds: its identity, its certificate over the same key, and the CA's."""
        folder.mkdir(parents=True, exist_ok=True)
        sf.Identity.from_seed(seed).save(folder / "identity.json")
        key = Ed25519PrivateKey.from_private_bytes(seed)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(
            os.open(folder / "tls.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
        ) as file:
            file.write(secret)
        (folder / "tls.crt").write_bytes(self._issue(name, key.public_key()).public_bytes(Encoding.PEM))
        (folder / "ca.crt").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def _issue(self, name: str, key: Ed25519PublicKey, is_ca: bool = False) -> x509.Certificate:
        today = datetime.datetime.now(datetime.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "securefed example CA")])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - datetime.timedelta(minutes=5))
            .not_valid_after(today + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, None)
        )


def make_folders(root: Path, clients: int) -> Authority:
    """`server/` and `client-0/` ... under `root`, with keys, certificates and the roster in each."""
    authority, seeds = Authority(), [secrets.token_bytes(32) for _ in range(clients + 1)]
    folders = [root / "server", *(root / f"client-{k}" for k in range(clients))]
    for folder, seed in zip(folders, seeds, strict=True):
        authority.enrol(folder, folder.name, seed)
    server, *others = (sf.Identity.from_seed(seed).public for seed in seeds)
    roster = sf.Roster(server, dict(enumerate(others)))
    for folder in folders:
        roster.save(folder / "roster.json")
    return authority


def tls(folder: Path, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with a certificate on both sides; whoever the CA has not signed gets no further."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_key(link: ssl.SSLObject) -> bytes:
    """The Ed25519 key of whoever is at the other end, 32 bytes; empty where it has another kind of key."""
    der = link.getpeercert(binary_form=True)
    key = x509.load_der_x509_certificate(der).public_key() if der else None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else b""
