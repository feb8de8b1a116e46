"""Small stand-ins for what the clients download, and a source table whose checksums fit them."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.data.sentiment import DOMAINS
from securefed.data.unpack import HUTTO

SENTENCES = {
    "movies": "1\t2.5\tA fine film\r\n2\t-1.5\tDull &amp; long\r\n3\t0.4\tIt was shown\r\n",
    "products": "1_1\t-0.9\tno picture at all\r\n1_2\t1.2\tBut great sound.\r\n2_1\t0.5\tworks\r\n",
    "news": "1_1\t1.5\ta holiday celebration\r\n7_3\t-2\tThe war goes on\r\n",
    "tweets": "1\t3\tGREAT sound, but...\r\n2\t-3\t:-(\r\n",
}
"""`But great sound.` and `GREAT sound, but...` differ in order; one neutral line, one without a word."""

HAM = b"""Return-Path: <a@b>\r\nX-Spam-Status: No\r\nList-Id: Free talk <fork.xent.com>\r\nSubject: Re: [FoRK] lunch\r\n\r\nAt noon?\r\n"""
SPAM = b"""From: x@y\nSubject: *****SPAM***** Earn\nContent-Type: text/html\n\n<p>Get V<!-- x -->iagra &amp; more</p>\n"""
MAILS = {
    "package/data/easy-ham-1/00001.a.txt": HAM,
    "package/data/easy-ham-1/00002.b.txt": HAM.replace(b"X-Spam-Status: No", b"X-Other: 1"),  # a copy
    "package/data/easy-ham-2/00003.c.txt": b"Subject: plans\n\nsee you there\n",
    "package/data/spam-1/00001.d.txt": SPAM,
    "package/data/spam-1/00001.d.json": b"{}",
    "package/README.md": b"# read me",
    "package/data/../../../etc/easy-ham-1/evil.sh": b"never written",
}


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_sentences(folder: Path, sentences: Mapping[str, str] = SENTENCES) -> Path:
    for domain, text in sentences.items():
        (folder / DOMAINS[domain]).write_bytes(text.encode())
    return folder


def vader_zip(path: Path) -> Path:
    inner = tar_gz({f"hutto_ICWSM_2014/{DOMAINS[d]}": text.encode() for d, text in SENTENCES.items()})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("vaderSentiment-0.5/setup.py", "raise SystemExit('never run')")
        packed.writestr(f"vaderSentiment-0.5/additional_resources/{HUTTO}", inner)
    return path


def sentence_checksums() -> dict[str, str]:
    return {DOMAINS[d]: hashlib.sha256(text.encode()).hexdigest() for d, text in SENTENCES.items()}


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, gzipped: bool, n: int = 6) -> Path:
    for part in ("train", "t10k"):
        images = np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            data = idx(array)
            file = folder / f"{part}-{name}-ubyte{'.gz' if gzipped else ''}"
            file.write_bytes(gzip.compress(data) if gzipped else data)
    return folder
