"""What a run's folder holds, for tests that compare runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def model_of(folder: Path) -> np.ndarray:
    """The global model (d,) of the newest checkpoint."""
    newest = sorted((folder / "checkpoint").glob("round-*"))[-1]
    vector: np.ndarray = load_file(newest / "state.safetensors")["vector"]
    return vector


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The rounds on record."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
