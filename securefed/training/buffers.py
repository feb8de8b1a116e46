"""What a net keeps beside its weights and changes as it reads: running means and the like, which no clip and no noise covers.

One resident model serves all clients of a process, so a buffer that one client's records have changed would speak to the
next client's training, and to every answer that is given with it. Under DP nothing may pass that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from securefed.errors import PrivacyError


@contextmanager
def buffers_put_back(module: nn.Module, *, refuse: bool) -> Iterator[None]:
    """Around one client's training: every buffer ends with the value it began with.

    Args:
        refuse: raise where one was changed: for example-level DP, where it would tie a client's records together.

    Raises:
        PrivacyError: a buffer has changed, and `refuse`.
    """
    before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        changed = [n for n, b in module.named_buffers() if not _same(before.get(n), b)]
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in changed and name in before:
                    buffer.copy_(before[name])
    if changed and refuse:
        raise PrivacyError(
            f"training changes the buffer {changed[0]}, which keeps something of the records outside the clip and the noise; "
            'use a layer without running state, or privacy.unit = "client"'
        )


def _same(before: torch.Tensor | None, now: torch.Tensor) -> bool:
    return before is not None and before.shape == now.shape and bool(torch.equal(before, now))
