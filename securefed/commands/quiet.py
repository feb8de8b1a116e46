"""Libraries' advice kept off the screen while a command plays, and only then."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

LIBRARIES = r"(transformers|peft|opacus|huggingface_hub|sklearn|torch)\b"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings of the libraries we call; ours and the user's own code's stay."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=LIBRARIES)
        yield


@contextmanager
def own_log(quiet: bool = False) -> Iterator[None]:
    """SecureFed's own log lines on standard error, bare: from INFO on, or warnings only.

    It has its own handler, since libraries give the root logger theirs when they are imported.
    """
    log, handler = logging.getLogger("securefed"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


@contextmanager
def stdout_for(json: bool) -> Iterator[None]:
    """With `json`, whatever anybody prints goes to standard error: standard output is the document's."""
    if not json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
