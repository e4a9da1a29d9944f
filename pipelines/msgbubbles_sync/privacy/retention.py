"""Remove what is older than the policy keeps: texts in every run, chats once a day, because the marts are then
rebuilt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import duckdb

from msgbubbles.policy import Policy
from msgbubbles.tables import CHATS, MESSAGES, Pii
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.compaction import compact
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove
from msgbubbles_sync.settings import TransformSettings
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

from .rewrite import rewriting, tables_of

DAY_SECONDS = 86_400
# Under what names `expired` in a run record counts rows.
COUNTED = {CHATS: "threads", MESSAGES: "messages"}


def expire(
    workspace: Workspace, policy: Policy, transforms: TransformSettings, say: Callable[[str], None]
) -> Counter[str]:
    """Drop the texts of messages older than `text_days`, and remove the threads whose last message is older than
    `thread_days`. Returns how many `texts`, `threads` and `messages` went; without days, nothing is done.

    The caller holds the lock. Raises `UsageError` for rows on a server.
    """
    gone: Counter[str] = Counter()
    if not (policy.text_days or policy.thread_days):
        return gone
    if workspace.destination != "duckdb":
        raise UsageError("text_days and thread_days work on a DuckDB file; on a server, let it expire rows itself")
    if not workspace.work.exists():
        return gone
    now = datetime.now(UTC)
    with build_destination(workspace).open_writer() as connection:
        if policy.text_days:
            gone["texts"] = _drop_texts(connection, now - timedelta(policy.text_days))
        dormant = _dormant(connection, now - timedelta(policy.thread_days)) if policy.thread_days else 0
    if gone["texts"]:
        workspace.set_pending("publish", "compact")
    if _is_due(workspace) and (dormant or workspace.is_pending("compact")):
        if dormant and policy.thread_days:
            with rewriting(workspace, transforms, say) as connection:
                _remove_threads(connection, now - timedelta(policy.thread_days), gone)
        else:
            say("writing the database anew")
            compact(workspace.work)
            for path in workspace.find_damaged():
                remove(path)
        workspace.set_done("compact")
        (workspace.folder / DONE).touch()
    return +gone


# A file whose time says when this was last done.
DONE = "retention.done"


def _is_due(workspace: Workspace) -> bool:
    path = workspace.folder / DONE
    return not path.exists() or time.time() - path.stat().st_mtime >= DAY_SECONDS


def _drop_texts(connection: duckdb.DuckDBPyConnection, before: datetime) -> int:
    tables = tables_of(connection)
    dropped = 0
    for table in TABLES.values():
        if table.dated_by is None or table.name not in tables:
            continue
        is_old = f"{table.dated_by} < ?"
        if table.columns_with(Pii.ROW):
            _count(connection, f"DELETE FROM msgbubbles.{table.name} WHERE {is_old}", before)
        for column in table.columns_with(Pii.TEXT, Pii.PAYLOAD):
            if column.name not in tables[table.name]:
                continue
            changed = _count(
                connection,
                f"UPDATE msgbubbles.{table.name} SET {column.name} = NULL "
                f"WHERE {column.name} IS NOT NULL AND {is_old}", before,
            )  # fmt: skip
            dropped += changed if table is MESSAGES else 0
    return dropped


def _dormant(connection: duckdb.DuckDBPyConnection, before: datetime) -> int:
    if "chats" not in tables_of(connection):
        return 0
    row = connection.execute("SELECT count(*) FROM msgbubbles.chats WHERE last_message_at < ?", [before]).fetchone()
    return row[0] if row else 0


def _remove_threads(connection: duckdb.DuckDBPyConnection, before: datetime, gone: Counter[str]) -> None:
    tables = tables_of(connection)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE dormant AS SELECT id FROM msgbubbles.chats WHERE last_message_at < ?", [before]
    )
    theirs = "IN (SELECT id FROM dormant)"
    if {"attachments", "messages"} <= tables.keys():
        _count(
            connection,
            "DELETE FROM msgbubbles.attachments WHERE message_id IN "
            f"(SELECT id FROM msgbubbles.messages WHERE conversation_id {theirs})",
        )
    for table in TABLES.values():
        if table.chat_key is not None and table.name in tables:
            count = _count(connection, f"DELETE FROM msgbubbles.{table.name} WHERE {table.chat_key} {theirs}")
            if table in COUNTED:
                gone[COUNTED[table]] = count


def _count(connection: duckdb.DuckDBPyConnection, statement: str, *values: datetime) -> int:
    row = connection.execute(statement, values).fetchone()
    return row[0] if row else 0
