"""Write, move and remove files so that a crash or a full disk loses nothing."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# The errors of a full disk.
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def write_privately(path: Path, content: str | bytes) -> Path:
    """Replace a small file, which only its owner can read, all or nothing, and return its path.

    If the disk is full, the old file stays whole. A file that has this content is not written. Raises `OSError`.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe cannot be replaced
        return path
    with suppress(OSError):
        if path.read_bytes() == data:
            return path
    target = path.resolve()  # do not replace a link
    if not target.parent.is_dir():  # it leads nowhere
        target = path
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_to_disk(target.parent)
    return path


def create_privately(path: Path) -> None:
    """Create a file if it is missing, which only its owner can read.

    Raises `OSError` if it cannot be opened to write, with its name, which errors of SQLite lack.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; null where it is missing or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def read_modified_at_ns(path: Path) -> int:
    """Return when a file was last written, in nanoseconds since 1970; 0 if it is missing."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def is_older_than(path: Path, seconds: float) -> bool:
    """Return whether a file is missing, or was last written longer ago, or later than now: the clock was set back."""
    return not (path.exists() and 0 <= time.time() - path.stat().st_mtime < seconds)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# How many damaged files of each name stay; older ones are removed.
MAX_DAMAGED = 3


def move_damaged(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.damaged-<time>` in the same folder, and return the new path.

    The newest `MAX_DAMAGED` of each name stay. Raises `OSError`.
    """
    earlier = sorted(path.parent.glob(f"{glob.escape(path.name)}.damaged-*"))
    for old in earlier[: max(len(earlier) - MAX_DAMAGED + 1, 0)]:
        remove(old)
    new = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.rename(new)
    return new


def restore_access(path: Path) -> None:
    """Let the owner of a file or folder read and write it, if that is the user of this process."""
    with suppress(OSError):  # missing, another user's, or on a read-only disk
        needed = 0o700 if path.is_dir() else 0o600
        if (mode := path.stat().st_mode & 0o777) & needed != needed:
            path.chmod(mode | needed)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def follow_links(path: Path) -> list[Path]:
    """Return each path that a symbolic link leads through, and the file itself last; only `path` if it is no link.

    If links form a circle, the last path is a link.
    """
    names = [path]
    while path.is_symlink():
        # A relative link starts in the folder that the link really is in.
        target = Path(os.path.realpath(path.parent)) / path.readlink()
        path = Path(os.path.realpath(target.parent)) / target.name
        if path in names:
            break
        names.append(path)
    return names


def set_umask_like(folder: Path) -> None:
    """Set the umask so that new files get this folder's permissions."""
    os.umask(0o777 & ~folder.stat().st_mode)
