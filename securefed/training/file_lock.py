"""Locks on open files between processes, gone when the file is closed or its process dies (flock; none on Windows)."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    import fcntl

    def lock_shared(handle: int) -> None:
        """This open file is in use, until it and every map of it are closed; waits for no reader."""
        fcntl.flock(handle, fcntl.LOCK_SH)

    def lock_alone(handle: int) -> None:
        """Waits until no other open file holds a lock, then holds it alone."""
        fcntl.flock(handle, fcntl.LOCK_EX)

    def try_alone(handle: int) -> bool:
        """Takes the lock if nobody else has one; False if somebody does."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

else:

    def lock_shared(handle: int) -> None:
        """Nothing: an open file cannot be deleted there."""

    def lock_alone(handle: int) -> None:
        """Nothing: a file that two processes write has two names until it is whole."""

    def try_alone(handle: int) -> bool:
        """True: deleting a file that is open fails there by itself."""
        return True
