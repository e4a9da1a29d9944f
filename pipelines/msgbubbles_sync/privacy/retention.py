"""Removes what is older than the policy keeps: texts in every run, threads once a day, because the marts are then built
anew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import duckdb

from msgbubbles.policy import Policy
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.compaction import compact
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove
from msgbubbles_sync.settings import TransformSettings
from msgbubbles_sync.workspace import Workspace

from .rewrite import rewriting, tables_of

DAY_SECONDS = 86_400
# Of a thread, besides its messages; each row names it in `chat_id`.
OF_A_THREAD = ("chat_titles", "participant_lists", "participant_reads", "webhook_events")


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
    if "messages" in tables:
        dropped = _count(
            connection, "UPDATE msgbubbles.messages SET text = NULL WHERE text IS NOT NULL AND cursor_at < ?", before
        )
    if "webhook_events" in tables:
        # The payload holds the text.
        _count(
            connection,
            "UPDATE msgbubbles.webhook_events SET payload = NULL "
            "WHERE payload IS NOT NULL AND coalesce(message_at, occurred_at) < ?", before,
        )  # fmt: skip
    if "rejected_rows" in tables:
        _count(connection, "DELETE FROM msgbubbles.rejected_rows WHERE _fetched_at < ?", before)
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
        gone["messages"] = _count(connection, f"DELETE FROM msgbubbles.messages WHERE conversation_id {theirs}")
    for table in OF_A_THREAD:
        if table in tables:
            _count(connection, f"DELETE FROM msgbubbles.{table} WHERE chat_id {theirs}")
    gone["threads"] = _count(connection, f"DELETE FROM msgbubbles.chats WHERE id {theirs}")


def _count(connection: duckdb.DuckDBPyConnection, statement: str, *values: datetime) -> int:
    row = connection.execute(statement, values).fetchone()
    return row[0] if row else 0
