"""A disk that takes no more bytes: files are made and stay empty, as where a disk is full."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(pid: int | None = None, room_bytes: int = 0) -> Iterator[None]:
    """Until the block ends, no file of a process (by default this one) grows beyond `room_bytes`."""
    pid = os.getpid() if pid is None else pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
