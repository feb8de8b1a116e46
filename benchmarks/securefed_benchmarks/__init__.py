"""Measurements behind the numbers that this project prints: one script per question, and what they share.

A script is run as `python -m securefed_benchmarks.NAME`, says in its docstring what it needs, and prints
JSON. It measures ratios within one run, so that a slow machine gives the same answer as a fast one.
"""

from __future__ import annotations

__all__: list[str] = []
