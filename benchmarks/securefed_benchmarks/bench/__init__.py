"""`securefed bench`: a grid of jobs from one file, played in a pool, stored for good, judged with intervals.

`suite` reads the file, `axes` turns a choice into fields of a job, `grid` multiplies them out; `pool` and
`play` play a cell, `store` keeps it; `aggregate`, `claims` and `page` say what was found.
"""

from __future__ import annotations

from securefed_benchmarks.bench.store import read_columns as read_columns
from securefed_benchmarks.bench.suite import Suite as Suite
from securefed_benchmarks.bench.suite import load_suite as load_suite

__all__ = ["Suite", "load_suite", "read_columns"]
