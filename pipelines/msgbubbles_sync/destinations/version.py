"""Check which release wrote a workspace and a warehouse, to refuse newer ones and to migrate older ones.

The workspace has its version in a file, the warehouse in the table `_version`. Both count the steps of `migrations.py`.
"""

from __future__ import annotations

from contextlib import suppress

import duckdb

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.sql import list_columns, read_value, store_value
from msgbubbles_sync.tables import VERSION_TABLE
from msgbubbles_sync.workspace import DATASET, LAYOUT_VERSION

from .base import Destination
from .loaded_tables import READ_AT

NEWER = """{what} was written by a newer release (it has version {found}, this release reads up to {version}). Upgrade,
or choose another --database. Nothing was changed"""
OLDER = (
    "{what} was written by an older release. Run chats.py once: it upgrades the files and tables, and keeps all rows"
)


def check_version(destination: Destination) -> None:
    """Check that this release wrote the workspace and the published tables. Raises `UsageError` otherwise."""
    workspace = destination.workspace
    refuse_newer(workspace.version, str(workspace.folder))
    published = read_published_version(destination)
    refuse_newer(published, destination.title)
    for version, what in ((workspace.version, str(workspace.folder)), (published, destination.title)):
        if version < LAYOUT_VERSION:
            raise UsageError(OLDER.format(what=what))


def read_published_version(destination: Destination) -> int:
    """Return the version of the published tables.

    For a destination that cannot be opened, returns this release's version: the next operation on it will report why.
    """
    with suppress(UsageError, duckdb.Error):
        if destination.exists():
            with destination.open_reader() as connection:
                return read_stored_version(connection, DATASET)
    return LAYOUT_VERSION


def refuse_newer(version: int, what: str) -> None:
    """Raise `UsageError` if a newer release wrote something."""
    if version > LAYOUT_VERSION:
        raise UsageError(NEWER.format(what=what, found=version, version=LAYOUT_VERSION))


def read_stored_version(connection: duckdb.DuckDBPyConnection, schema: str) -> int:
    """Return the version of the tables in a schema. A warehouse without tables has the version of this release."""
    version = read_value(connection, schema, VERSION_TABLE)
    if isinstance(version, int):
        return version
    return 0 if any(READ_AT in columns for columns in list_columns(connection, schema).values()) else LAYOUT_VERSION


def store_version(connection: duckdb.DuckDBPyConnection, schema: str, version: int = LAYOUT_VERSION) -> None:
    """Write the version of the tables in a schema, if it has changed."""
    store_value(connection, schema, VERSION_TABLE, version)
