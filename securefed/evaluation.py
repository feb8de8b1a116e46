"""Measures a global model: on the public test set, on every client's own, and beside the baselines.

Under a real federation only the public test set exists; the rest are diagnostics of a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from securefed.assembly import Assembly
from securefed.data.batch import Encoded
from securefed.layout import Layout
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.training.client import ClientRunner
