"""Without the garbage collector while libraries are imported and a job is put together."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it nothing is collected; also a decorator.

    An import only adds objects, and the collector looks through all of them again each time a quarter more have come:
    a fifth of the CPU that importing torch and transformers takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
