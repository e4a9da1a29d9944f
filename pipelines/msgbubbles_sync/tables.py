"""The tables of the application, and with those of the source all tables of a warehouse."""

from __future__ import annotations

from msgbubbles.tables import FETCHED_AT, Column, ColumnType, Pii, Table, text, time
from msgbubbles.tables import TABLES as SOURCE_TABLES

# DuckDB's names, through which every destination is written.
SQL_TYPES: dict[ColumnType, str] = {
    "text": "VARCHAR",
    "bigint": "BIGINT",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "json": "JSON",
    "double": "DOUBLE",
    "integer": "INTEGER",
}


def column_definitions(table: Table) -> str:
    """Return the columns of a table as `CREATE TABLE` takes them."""
    return ", ".join(f'"{column.name}" {SQL_TYPES[column.type]}' for column in table.columns)


def _json(name: str, pii: Pii = Pii.NONE) -> Column:
    return Column(name, "json", pii)


def _number(name: str, kind: ColumnType = "bigint") -> Column:
    return Column(name, kind, Pii.NONE)


WEBHOOK_EVENTS = Table(
    "webhook_events",
    (
        text("event_id", Pii.ID, nullable=False),
        text("event_type", Pii.WORD),
        text("chat_id", Pii.ID),
        text("message_id", Pii.ID),
        text("handle", Pii.HANDLE),
        Column("is_typing", "bool", Pii.NONE),
        text("direction", Pii.WORD),
        text("status", Pii.WORD),
        text("reaction", Pii.TEXT),
        time("message_at"),
        time("occurred_at"),
        time("received_at", nullable=False),
        _json("payload", Pii.PAYLOAD),
        FETCHED_AT,
    ),
    key=("event_id",),
    chat_key="chat_id",
    message_key="message_id",
    person_key="handle",
    dated_by="coalesce(message_at, occurred_at)",
)
# What was done to groups stays when a chat goes: only the people in it are removed.
GROUP_OPERATIONS = Table(
    "group_operations",
    (
        text("operation_id", Pii.NONE, nullable=False),
        text("plan_id", Pii.NONE),
        text("key", Pii.NONE),
        text("operation", Pii.NONE),
        text("chat_id", Pii.ID),
        _json("handles", Pii.HANDLES),
        text("title", Pii.TITLE),
        time("requested_at"),
        time("finished_at"),
        text("outcome", Pii.NONE),
        _number("http_status"),
        text("error_code", Pii.WORD),
        text("error_message", Pii.ANSWER),
        text("request_id", Pii.ID),
        FETCHED_AT,
    ),
    key=("operation_id",),
)
GROUP_MEMBER_OPERATIONS = Table(
    "group_member_operations",
    (
        text("id", Pii.HANDLE_KEY, nullable=False),
        text("operation_id", Pii.NONE),
        text("chat_id", Pii.ID),
        text("handle", Pii.HANDLE),
        text("operation", Pii.NONE),
        time("happened_at"),
        FETCHED_AT,
    ),
    key=("id",),
    person_key="handle",
)
GROUP_SIGHTINGS = Table(
    "group_sightings",
    (
        text("key", Pii.NONE, nullable=False),
        text("chat_id", Pii.ID),
        text("from_handle", Pii.OWN_HANDLE),
        text("title", Pii.TITLE),
        _json("handles", Pii.HANDLES),
        Column("is_gone", "bool", Pii.NONE),
        time("seen_at"),
        FETCHED_AT,
    ),
    key=("key",),
)
# What a run record has as columns; anything else in it is only in the run log.
SYNC_RUNS = Table(
    "sync_runs",
    (
        text("run_id", Pii.NONE),
        time("started_at"),
        time("ended_at"),
        text("outcome", Pii.NONE),
        _number("exit_status", "integer"),
        text("error", Pii.NONE),
        _number("requests_total"),
        _json("requests"),
        _number("rate_limited"),
        Column("retry_after", "bool", Pii.NONE),
        _number("retries"),
        _number("received_bytes"),
        _number("paced_seconds", "double"),
        _number("slices"),
        _json("seconds"),
        _json("tables"),
        _json("streams"),
        _json("repaired"),
        _json("expired"),
        Column("feed", "bool", Pii.NONE),
        _json("versions"),
        _json("failed_tests"),
        _json("held_marts"),
        _json("failed_reads"),
    ),
    key=("run_id",),
)
FAILED_READS = Table(
    "failed_reads",
    (
        text("kind", Pii.NONE),
        text("id", Pii.ID),
        time("since"),
        time("last_tried_at"),
        _number("tries"),
        _number("http_status"),
        text("error_code", Pii.WORD),
    ),
    key=("kind", "id"),
)
# Whose rows these are, of what release and policy, and how many people were erased: nothing in them says who.
CLAIM = Table("_account", (text("claim", Pii.NONE),), key=("claim",))
VERSION = Table("_version", (_number("version"),), key=("version",))
PRIVACY = Table("privacy", (text("record", Pii.NONE),), key=("record",))
ERASURES = Table(
    "erasures",
    (text("erasure_id", Pii.NONE), time("erased_at"), _number("people"), _json("rows")),
    key=("erasure_id",),
)
# Every table that is loaded, by name.
TABLES: dict[str, Table] = SOURCE_TABLES | {
    table.name: table
    for table in (
        WEBHOOK_EVENTS, GROUP_OPERATIONS, GROUP_MEMBER_OPERATIONS, GROUP_SIGHTINGS, SYNC_RUNS, FAILED_READS, CLAIM,
        VERSION, PRIVACY, ERASURES,
    )
}  # fmt: skip
