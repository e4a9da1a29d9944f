"""Remove rows that are older than the policy keeps.

Chats are removed once a day, because the marts are rebuilt then. Texts are removed in every run if that costs little,
as in a DuckDB file; otherwise they are removed once a day, too.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import duckdb

from msgbubbles.tables import CHATS, MESSAGES, Pii
from msgbubbles_sync.context import Context
from msgbubbles_sync.files import is_older_than
from msgbubbles_sync.policy.applied import read_ages_from
from msgbubbles_sync.sql import fetch_rows
from msgbubbles_sync.tables import TABLES

from .rewrite import StoredRows, rewriting

DAY_SECONDS = 86_400
# The names under which `expired` in a run record counts rows.
COUNT_NAMES = {CHATS: "threads", MESSAGES: "messages"}
# A file whose modification time is when chats were last removed.
DONE = "retention.done"
IS_DORMANT = "last_message_at < ?"
# The tables whose texts become old.
DATED = {table.name: table for table in TABLES.values() if table.dated_by is not None}


def expire(context: Context) -> Counter[str]:
    """Remove message texts older than `text_days`, and chats whose last message is older than `thread_days`.

    Returns how many `texts`, `threads` and `messages` were removed. Does nothing if the policy has neither setting.

    The caller holds the lock.
    """
    workspace, destination, policy = context.workspace, context.destination, context.redactor.policy
    counts: Counter[str] = Counter()
    if not (policy.text_days or policy.thread_days):
        return counts
    is_due = is_older_than(workspace.folder / DONE, DAY_SECONDS)
    if not (destination.updates_in_place or is_due) or not destination.has_tables():
        return counts
    now, schema = read_ages_from(workspace), destination.write_schema
    texts_before, chats_before = now - timedelta(policy.text_days or 0), now - timedelta(policy.thread_days or 0)
    with destination.open_writer() as connection:
        has_texts = bool(policy.text_days) and _has_old_texts(connection, schema, texts_before)
        has_replaced = bool(destination.list_replaced(connection))
        has_chats = bool(policy.thread_days) and _has_rows(
            connection, f"{schema}.chats WHERE {IS_DORMANT}", chats_before
        )
    if has_texts or has_replaced:
        workspace.set_pending("publish", "compact")
        with destination.rewrite_rows(DATED) as connection:  # the marts have no texts
            counts["texts"] = _drop_texts(StoredRows(connection), texts_before) if has_texts else 0
    if is_due and (has_chats or workspace.is_pending("compact")):
        if has_chats:
            # A killed process leaves the removed rows in the file, and some of the marts.
            workspace.set_pending("compact", "removal")
            with rewriting(context) as rows:
                counts += _remove_chats(rows, chats_before)
        else:
            context.console.say("rewriting the database")
            destination.remove_old_versions()
            workspace.set_pending("privacy_files")
        workspace.set_done("compact")
        (workspace.folder / DONE).touch()
    return +counts


def _has_old_texts(connection: duckdb.DuckDBPyConnection, schema: str, before: datetime) -> bool:
    """Return whether `_drop_texts` has anything to do."""
    return any(
        _has_rows(connection, f"{schema}.{table.name} WHERE {column.name} IS NOT NULL AND {table.dated_by} < ?", before)
        for table in DATED.values()
        for column in table.columns_with(Pii.TEXT, Pii.PAYLOAD, Pii.ROW)
    )


def _has_rows(connection: duckdb.DuckDBPyConnection, what: str, before: datetime) -> bool:
    return bool(fetch_rows(connection, f"SELECT 1 FROM {what} LIMIT 1", [before]))


def _drop_texts(rows: StoredRows, before: datetime) -> int:
    """Remove the texts of messages, payloads and unreadable rows, and return how many messages had one."""
    dropped = 0
    for table in DATED.values():
        is_old = f"{table.dated_by} < ?"
        if table.columns_with(Pii.ROW):
            rows.change(table.name, f"DELETE FROM msgbubbles.{table.name} WHERE {is_old}", before)
        for column in table.columns_with(Pii.TEXT, Pii.PAYLOAD):
            if column.name in rows.types.get(table.name, ()):
                changed = rows.change(
                    table.name,
                    f"UPDATE msgbubbles.{table.name} SET {column.name} = NULL "
                    f"WHERE {column.name} IS NOT NULL AND {is_old}", before,
                )  # fmt: skip
                dropped += changed if table is MESSAGES else 0
    return dropped


def _remove_chats(rows: StoredRows, before: datetime) -> Counter[str]:
    """Remove chats without newer messages, and their rows in other tables."""
    rows.fetch("chats", f"INSERT INTO gone_chats SELECT id FROM msgbubbles.chats WHERE {IS_DORMANT}", before)
    is_dormant = "conversation_id IN (SELECT id FROM gone_chats)"
    rows.fetch("messages", f"INSERT INTO gone_messages SELECT id FROM msgbubbles.messages WHERE {is_dormant}")
    rows.delete_gone()
    return Counter({name: rows.counts[table.name] for table, name in COUNT_NAMES.items()})
