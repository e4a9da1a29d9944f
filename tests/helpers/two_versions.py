"""Load two versions of each row, and look for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import psycopg2
import pyarrow as pa

from helpers.canary import find_words
from helpers.context import build_destination
from msgbubbles.source.arrow import build_arrow_schema, build_item
from msgbubbles.tables import CHATS, MESSAGES, NUMBERS, Table
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.tables import CONTACT_ALIASES
from msgbubbles_sync.workspace import Workspace

ANN, BEN, OURS = "+14155558111", "+14155558222", "+14155550100"
KEY = "of a test, and long enough to be a key"
NOW = datetime.now(UTC).replace(microsecond=0)
OLD, NEW = NOW - timedelta(days=50), NOW - timedelta(days=1)


def run_on_server(*statements: str) -> list[Any]:
    """Run statements in the database of the test. Returns the rows of the last one."""
    with closing(psycopg2.connect(os.environ["DESTINATION__POSTGRES__CREDENTIALS"])) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def load(workspace: Workspace, version: str) -> None:
    """Load chats, messages and contacts whose texts name the version."""
    chats = [("c1", False, ANN, "Ann"), ("c2", False, BEN, "Ben"), ("g", True, "group:1", f"canary title {ANN}")]
    messages = [("m1", "c1", ANN, OLD), ("m2", "c2", BEN, OLD), ("m3", "g", ANN, NEW), ("m4", "g", BEN, NEW)]
    rows: dict[Table, list[dict[str, Any]]] = {
        NUMBERS: [{"handle": OURS}],
        CONTACT_ALIASES: [
            {"handle": handle, "contact": f"canary {version} of {id}"} for id, handle in (("m1", ANN), ("m2", BEN))
        ],
        CHATS: [
            {"id": id, "is_group": is_group, "remote_handle": handle, "title": title,
             "last_message_at": OLD if id != "g" else NEW}
            for id, is_group, handle, title in chats
        ],
        MESSAGES: [
            {"id": id, "conversation_id": chat, "sender_handle": sender, "cursor_at": at, "direction": "inbound",
             "text": f"canary {version} {id}", "metadata": json.dumps({"of": sender, "a": f"canary {version} of {id}"})}
            for id, chat, sender, at in messages
        ],
    }  # fmt: skip

    @dlt.resource(name="load")
    def items() -> Iterator[Any]:
        dlt.current.resource_state()["covered"] = version
        for table, found in rows.items():
            yield build_item(table, build_arrow(table, found))

    build_pipeline(build_destination(workspace)).run(items())


def build_arrow(table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"_fetched_at": NOW} | row for row in rows], build_arrow_schema(table))


def query(workspace: Workspace, sql: str) -> list[tuple[Any, ...]]:
    with build_destination(workspace).open_reader() as connection:
        return connection.execute(sql).fetchall()


def find(workspace: Workspace, *words: str) -> dict[str, list[str]]:
    """Return by word the files that have it, except the server's logs and the databases of other tests.

    PostgreSQL recycles its write-ahead log by itself, and its own log quotes statements that failed.
    """
    [(database,)] = run_on_server("CHECKPOINT", "SELECT oid FROM pg_database WHERE datname = current_database()")
    server = Path(os.environ["DESTINATION__POSTGRES__CREDENTIALS"].rpartition("=")[2])
    assert (server / "base" / str(database)).is_dir()
    others = rf"^pg_wal/|^log$|^base/(?!{database}/|pgsql_tmp)"
    found = find_words(workspace.database.parent, words)
    for word, paths in find_words(server, words, skip_paths=others).items():
        found[word] = [*found.get(word, ()), *paths]
    return found
