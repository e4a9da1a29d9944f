"""Simulate a full disk: files can be created, but not written."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(pid: int | None = None, room_bytes: int = 0) -> Iterator[None]:
    """Limit the size of the files that a process (by default this one) writes, until the block ends."""
    pid = os.getpid() if pid is None else pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
