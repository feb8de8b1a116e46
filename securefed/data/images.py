"""Images: Fashion-MNIST from its IDX files, digits from scikit-learn. Scaled to [0, 1]."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.data.records import Examples
from securefed.errors import DataError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGIT_CLASSES = tuple("0123456789")


def read_fashion_mnist(folder: Path) -> tuple[Examples, Examples]:
    """(train, test) as published: 60,000 and 10,000 images, float32 (n, 1, 28, 28) in [0, 1]."""
    return _fashion_part(folder, "train"), _fashion_part(folder, "t10k")


def _fashion_part(folder: Path, part: str) -> Examples:
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte")
    images = pixels[:, None].astype(np.float32) / np.float32(255)
    return Examples(images=images, labels=labels.astype(np.int64))


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file (LeCun's format: two zero bytes, type, rank, sizes, data).

    Raises:
        DataError: another type, or fewer or more bytes than the sizes say.
    """
    data = file.read_bytes()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{file.name} is no IDX file of unsigned bytes")
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise DataError(f"{file.name} ends before its {rank} sizes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, offset=4))
    body = np.frombuffer(data, np.uint8, offset=start)
    if body.size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{file.name} promises {shape} bytes and holds {body.size}")
    return body.reshape(shape)


def read_digits() -> Examples:
    """1,797 handwritten digits, float32 (n, 1, 8, 8) in [0, 1]; a document is an image's content."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.asarray(found.images, np.float32)[:, None] / np.float32(16)  # pixels count 0 to 16
    return Examples(
        images=images,
        labels=np.asarray(found.target, np.int64),
        documents=tuple(hashlib.sha256(image.tobytes()).hexdigest()[:24] for image in images),
    )
