"""IDX files and digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from securefed.data.images import DIGIT_CLASSES, FASHION_CLASSES, read_digits, read_fashion_mnist, read_idx
from securefed.errors import DataError
from tests.securefed.data.fakes import idx, write_fashion


def test_fashion_images_are_one_channel_and_scaled(tmp_path: Path) -> None:
    train, test = read_fashion_mnist(write_fashion(tmp_path, gzipped=False))
    for part in (train, test):
        assert part.images is not None
        assert part.labels is not None
        assert part.images.shape == (6, 1, 28, 28)
        assert part.images.dtype == np.float32
        assert (part.images.min(), part.images.max()) == (0, 1)
        assert part.images[0, 0, 0, 1] == np.float32(1) / np.float32(255)
        assert part.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(FASHION_CLASSES) == 10


GOOD = idx(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\x0d\1", GOOD[:3], GOOD[:9], GOOD[:-1], GOOD + b"x", b"PK" + GOOD]
)
def test_a_broken_idx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "broken-idx"
    file.write_bytes(data)
    with pytest.raises(DataError, match="broken-idx"):
        read_idx(file)


def test_sizes_that_overflow_are_refused(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"\0\0\x08\4" + b"\x80\0\0\0" * 4)
    with pytest.raises(DataError, match="huge promises"):
        read_idx(tmp_path / "huge")


def test_digits_have_ten_classes_and_documents_by_content() -> None:
    digits = read_digits()
    assert digits.images is not None
    assert digits.labels is not None
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == np.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert set(digits.labels.tolist()) == set(range(len(DIGIT_CLASSES)))
    assert len(set(digits.documents)) == len(np.unique(digits.images.reshape(1797, -1), axis=0))
