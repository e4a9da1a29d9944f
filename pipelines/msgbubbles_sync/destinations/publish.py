"""Replace the file that readers open, as a whole.

A DuckDB file that one process has open cannot be written by another, so the job and its readers never share one. A
reader that has the old file open reads it until it closes it, and then opens the new one.

Other processes must not write to the published file: it has no write permission, and its write-ahead log is removed.
DuckDB finds the log by the file's name, so the log of the old file would change rows of the new one.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import duckdb

from msgbubbles_sync.files import follow_links, remove, sync_to_disk
from msgbubbles_sync.sql import quote_literal, quote_name

from .comments import Comments, read_comments, write_comments

# DuckDB's options for a connection.
Options = dict[str, str | bool | int | float | list[str]]
COPIED_AT_ONCE = 16 * 1024 * 1024
FICLONE = 0x40049409  # <linux/fs.h>: share the blocks of another file, on file systems that can
# The write-ahead log, and its names while DuckDB writes the file.
LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")

# The exceptions of DuckDB for a damaged file, and the messages that distinguish damage from other causes.
DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
DAMAGE_WORDS = re.compile(
    "not a valid duckdb database|corrupt|checksum|could not read enough bytes|failed to deserialize|is a directory",
    re.I,
)


def publish(work: Path, database: Path, held_marts: Sequence[str] = ()) -> int:
    """Replace `database` by a copy of `work`, all or nothing. Returns its size in bytes.

    Held marts stay as they are in `database`; those that it lacks are left out.

    No process may have `work` open, and all of it has to be in the file (`CHECKPOINT`). A killed process leaves the old
    file whole.
    """
    _remove_logs(database)  # before held marts are copied from it
    copy = prepare_copy(database)
    clone(work, copy)
    if held_marts:
        with duckdb.connect(str(copy)) as connection:
            _copy_held_marts(connection, held_marts, database)
            connection.execute("CHECKPOINT")
        sync_to_disk(copy)
    return replace_database(database, copy)


def prepare_copy(database: Path) -> Path:
    """Return the path for a replacement of a database, next to the file that symbolic links lead to.

    Removes what killed processes left there.
    """
    file = follow_links(database)[-1]
    for leftover in file.parent.glob(f".{glob.escape(file.name)}.*.publishing*"):
        remove(leftover)  # DuckDB may have left a folder of temporary files
    return file.with_name(f".{file.name}.{os.getpid()}.publishing")


def replace_database(database: Path, copy: Path) -> int:
    """Replace a database by a copy without write permission. Returns its size in bytes."""
    file = follow_links(database)[-1]
    # Permissions to read the old file apply to its replacements too.
    copy.chmod((file if file.exists() else copy).stat().st_mode & 0o555 | 0o400)
    with _no_new_writer(file):
        _remove_logs(database)
        copy.replace(file)
    # A process that still writes to the old file may have created a log meanwhile.
    _remove_logs(database)
    sync_to_disk(file.parent)
    return file.stat().st_size


def read_mark(database: Path) -> list[int] | None:
    """Return a file's size in bytes and modification time, to detect changes; null if it is missing."""
    try:
        stat = database.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def has_foreign_log(database: Path) -> bool:
    """Return whether another process has written to a published file, or still does."""
    return any(log.exists() for log in _list_logs(database))


def _list_logs(database: Path) -> Iterator[Path]:
    # DuckDB names a log after the path that the file was opened with.
    return (name.with_name(f"{name.name}{end}") for name in follow_links(database) for end in LOGS)


def _remove_logs(database: Path) -> None:
    for log in _list_logs(database):
        log.unlink(missing_ok=True)


@contextmanager
def _no_new_writer(file: Path) -> Iterator[None]:
    """Hold a reader's lock on a database, so that other processes cannot open it for writing.

    Logs a warning if one has it open already: its changes are lost.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:  # no file yet
        yield
        return
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            logging.getLogger(__name__).warning(
                "%s is open read-write in another process, whose changes are lost; open it with read_only=True", file
            )
        yield
    finally:
        os.close(descriptor)


def _copy_held_marts(connection: duckdb.DuckDBPyConnection, held_marts: Sequence[str], database: Path) -> None:
    """Put back the held marts as readers have them."""
    published: set[str] = set()
    comments: dict[tuple[str, str], Comments] = {}
    # A file that is damaged, or open for writing in another process, counts as empty.
    with suppress(duckdb.IOException):
        if database.exists():
            connection.execute(f"ATTACH {quote_literal(str(database))} AS published (READ_ONLY)")
            published = set(_read_kinds(connection, "published"))
            comments = read_comments(connection, "published")
    for mart, kind in _read_kinds(connection).items():
        if mart not in held_marts:
            continue
        connection.execute(f"DROP {kind} marts.{quote_name(mart)}")
        if mart in published:
            try:
                # A view becomes a table, because it would show the new rows of the other marts.
                connection.execute(f"CREATE TABLE marts.{quote_name(mart)} AS FROM published.marts.{quote_name(mart)}")
            except duckdb.IOException as error:
                if not DAMAGE_WORDS.search(str(error)):
                    raise
    write_comments(connection, "marts", {mart: comments.get(("marts", mart), {}) for mart in held_marts})


def _read_kinds(connection: duckdb.DuckDBPyConnection, catalog: str | None = None) -> dict[str, str]:
    """Return whether each mart is a view or a table, by name."""
    query = """SELECT table_name, CASE table_type WHEN 'VIEW' THEN 'VIEW' ELSE 'TABLE' END
               FROM information_schema.tables
               WHERE table_schema = 'marts' AND table_catalog = coalesce(?, current_catalog())"""
    return dict(connection.execute(query, [catalog]).fetchall())


def is_damaged(database: Path, options: Options) -> bool:
    """Read all of a database file, and return whether it is damaged. `options` are DuckDB's.

    Raises `duckdb.Error` if it cannot be read for another reason, for example if another process is writing to it.
    """
    try:
        with duckdb.connect(str(database), read_only=True, config=options) as connection:
            for schema, table in connection.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_catalog()"
            ).fetchall():
                connection.execute(f"SELECT bit_xor(hash(r)) FROM {quote_name(schema)}.{quote_name(table)} AS r")  # noqa: S608
    except DAMAGE as error:
        if isinstance(error, duckdb.IOException) and not DAMAGE_WORDS.search(str(error)):
            raise
        return True
    return False


def clone(source: Path, target: Path) -> None:
    """Copy a file durably. File systems that can share blocks do not copy the bytes."""
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), FICLONE, original.fileno())
        except OSError:
            if not _copy_in_kernel(original, copy):
                shutil.copyfileobj(original, copy, COPIED_AT_ONCE)
        copy.flush()
        os.fsync(copy.fileno())


def _copy_in_kernel(original: BinaryIO, copy: BinaryIO) -> bool:
    """Copy a file without moving its bytes through this process; false, and nothing is copied, if that is impossible.

    Raises `OSError` if there is no space.
    """
    copied, size = 0, os.fstat(original.fileno()).st_size
    try:
        while copied < size:
            count = os.copy_file_range(original.fileno(), copy.fileno(), COPIED_AT_ONCE)
            if not count:  # some file systems claim to copy, and do not
                break
            copied += count
    except (AttributeError, OSError) as error:  # not on this system; not on, or between, these file systems
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
    if copied < size:
        original.seek(0)
        copy.seek(0)
        copy.truncate()
    return copied >= size
