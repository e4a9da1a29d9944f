"""Remove rows that are older than the policy keeps.

Texts are removed in every run. Chats are removed once a day, because the marts are rebuilt then.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import duckdb

from msgbubbles.tables import CHATS, MESSAGES, Pii
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations.compaction import compact
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

from .rewrite import count_changes, read_column_types, rewriting

DAY_SECONDS = 86_400
# The names under which `expired` in a run record counts rows.
COUNT_NAMES = {CHATS: "threads", MESSAGES: "messages"}
# A file whose modification time is when chats were last removed.
DONE = "retention.done"
CHATS_BEFORE = "FROM msgbubbles.chats WHERE last_message_at < ?"


def expire(context: Context) -> Counter[str]:
    """Remove message texts older than `text_days`, and chats whose last message is older than `thread_days`.

    Returns how many `texts`, `threads` and `messages` were removed. Does nothing if the policy has neither setting.

    The caller holds the lock. Raises `UsageError` for rows on a server.
    """
    workspace, policy, say = context.workspace, context.redactor.policy, context.console.say
    counts: Counter[str] = Counter()
    if not (policy.text_days or policy.thread_days):
        return counts
    if workspace.destination != "duckdb":
        raise UsageError("text_days and thread_days work on a DuckDB file; on a server, let it expire rows itself")
    if not workspace.work.exists():
        return counts
    now = datetime.now(UTC)
    chats_before = now - timedelta(policy.thread_days) if policy.thread_days else None
    with context.destination.open_writer() as connection:
        if policy.text_days:
            counts["texts"] = _drop_texts(connection, now - timedelta(policy.text_days))
        has_dormant = chats_before is not None and _has_dormant_chats(connection, chats_before)
    if counts["texts"]:
        workspace.set_pending("publish", "compact")
    if _is_due(workspace) and (has_dormant or workspace.is_pending("compact")):
        if has_dormant and chats_before is not None:
            with rewriting(context) as connection:
                counts += _remove_chats(connection, chats_before)
        else:
            say("rewriting the database")
            compact(workspace.work)
            for path in workspace.find_damaged():
                remove(path)
        workspace.set_done("compact")
        (workspace.folder / DONE).touch()
    return +counts


def _is_due(workspace: Workspace) -> bool:
    path = workspace.folder / DONE
    return not path.exists() or time.time() - path.stat().st_mtime >= DAY_SECONDS


def _drop_texts(connection: duckdb.DuckDBPyConnection, before: datetime) -> int:
    """Remove the texts of messages, payloads and unreadable rows, and return how many messages had one."""
    types = read_column_types(connection)
    dropped = 0
    for table in TABLES.values():
        if table.dated_by is None or table.name not in types:
            continue
        is_old = f"{table.dated_by} < ?"
        if table.columns_with(Pii.ROW):
            count_changes(connection, f"DELETE FROM msgbubbles.{table.name} WHERE {is_old}", before)
        for column in table.columns_with(Pii.TEXT, Pii.PAYLOAD):
            if column.name in types[table.name]:
                changed = count_changes(
                    connection,
                    f"UPDATE msgbubbles.{table.name} SET {column.name} = NULL "
                    f"WHERE {column.name} IS NOT NULL AND {is_old}", before,
                )  # fmt: skip
                dropped += changed if table is MESSAGES else 0
    return dropped


def _has_dormant_chats(connection: duckdb.DuckDBPyConnection, before: datetime) -> bool:
    if "chats" not in read_column_types(connection):
        return False
    return connection.execute(f"SELECT 1 {CHATS_BEFORE} LIMIT 1", [before]).fetchone() is not None


def _remove_chats(connection: duckdb.DuckDBPyConnection, before: datetime) -> Counter[str]:
    """Remove chats without newer messages, and their rows in other tables."""
    counts: Counter[str] = Counter()
    tables = read_column_types(connection)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE dormant AS SELECT id {CHATS_BEFORE}", [before])
    is_dormant = "IN (SELECT id FROM dormant)"
    if {"attachments", "messages"} <= tables.keys():
        connection.execute(
            "DELETE FROM msgbubbles.attachments WHERE message_id IN "
            f"(SELECT id FROM msgbubbles.messages WHERE conversation_id {is_dormant})"
        )
    for table in TABLES.values():
        if table.chat_key is not None and table.name in tables:
            statement = f"DELETE FROM msgbubbles.{table.name} WHERE {table.chat_key} {is_dormant}"
            count = count_changes(connection, statement)
            if table in COUNT_NAMES:
                counts[COUNT_NAMES[table]] = count
    return counts
