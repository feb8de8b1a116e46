"""What the benchmark scripts of `benchmarks/` share.

Empty in this release: a script stands alone in `benchmarks/`, says what it needs, and prints JSON.
Code moves here when two scripts need the same.
"""

from __future__ import annotations

__all__: list[str] = []
