"""The benches of compression and adapters play jobs that are allowed, at the bytes that they say."""

from __future__ import annotations

from typing import Any

import pytest

from securefed.config import Component, load_config
from securefed.registry import make_compression
from securefed_benchmarks import adapters, compression

D = 1536 * 64 + 64 + 64 * 2 + 2


@pytest.mark.parametrize("name", compression.WAYS)
def test_every_way_to_compress_is_a_job(name: str) -> None:
    assert load_config({**compression.JOB, **compression.WAYS[name]}).rounds == 40


def test_the_small_codes_are_a_sixteenth_or_less() -> None:
    assert D == 98_498
    for name in ("quantized to -1, 0, 1", "top-k, 1 in 32", "top-k, 1 in 128"):
        options: dict[str, Any] = dict(compression.WAYS[name]["compression"])
        coding = make_compression(Component(options.pop("name"), options))
        assert coding.bytes_of(D) * 16 <= 4 * D


@pytest.mark.parametrize("name", [*adapters.RANKS, *adapters.BYTES])
def test_every_way_to_adapt_is_a_job(name: str) -> None:
    way = {**adapters.RANKS, **adapters.BYTES}[name]
    assert load_config(adapters.JOB, way).model.name == "minilm"
