"""The tables of the application, and with those of the source all tables of a warehouse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Required, get_args, get_origin, get_type_hints

from msgbubbles.tables import TABLES as SOURCE_TABLES
from msgbubbles.tables import Column, ColumnType, Pii, Table, choose_column_type, fetched_at, text, time

from .run_record import RunRecord

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


def define_columns(table: Table) -> str:
    """Return the columns of a table as `CREATE TABLE` takes them."""
    return ", ".join(f'"{column.name}" {SQL_TYPES[column.type]}' for column in table.columns)


def _json(name: str, description: str, pii: Pii = Pii.NONE) -> Column:
    return Column(name, "json", pii, description)


def _number(name: str, description: str) -> Column:
    return Column(name, "bigint", Pii.NONE, description)


def _run_columns() -> Iterator[Column]:
    """Build the columns of a run record from its fields that have a description."""
    for name, hint in get_type_hints(RunRecord, include_extras=True).items():
        hint = get_args(hint)[0] if get_origin(hint) is Required else hint
        if get_origin(hint) is Annotated:
            field_type, *kind, description = get_args(hint)
            yield Column(name, kind[0] if kind else choose_column_type(field_type), Pii.NONE, description)


WRITTEN_BY_GROUPS = "When groups.py wrote this row."

WEBHOOK_EVENTS = Table(
    "webhook_events",
    "One row per webhook event. Payloads are undocumented, so a column is null where the payload lacks the value.",
    (
        text("event_id", Pii.ID, "The event's id, the delivery's id, or a hash of its body.", nullable=False),
        text("event_type", Pii.WORD, "What happened, for example message.received or conversation.typing."),
        text("chat_id", Pii.ID, "The chat of the event."),
        text("message_id", Pii.ID, "The message of the event. Null if the event is about no message."),
        text("handle", Pii.HANDLE, "Who did it, as the API writes it."),
        Column("is_typing", "bool", Pii.NONE, "For conversation.typing, whether somebody types or has stopped."),
        text("direction", Pii.WORD, "inbound or outbound."),
        text("status", Pii.WORD, "The message status that the event reports."),
        text("reaction", Pii.TEXT, "For message.reaction, the reaction: a word, an emoji or a JSON object."),
        time("message_at", "Time of the message."),
        time("occurred_at", "When the event happened, according to the API; without that, when it was received."),
        time("received_at", "When the receiver got the event.", nullable=False),
        _json("payload", "The whole delivery, as JSON. It may hold message texts.", Pii.PAYLOAD),
        fetched_at("When the receiver got the event."),
    ),
    key=("event_id",),
    chat_key="chat_id",
    message_key="message_id",
    person_key="handle",
    dated_by="coalesce(message_at, occurred_at)",
)
# Operations on groups stay when a chat goes: only the people in them are removed.
GROUP_OPERATIONS = Table(
    "group_operations",
    "One row per request to change a group, with its outcome.",
    (
        text("operation_id", Pii.NONE, "Our id of the request.", nullable=False),
        text("plan_id", Pii.NONE, "The plan that the request was part of."),
        text("key", Pii.NONE, "The group's key in the declaration. Null if it has none."),
        text("operation", Pii.NONE, "create, rename, add or remove."),
        text("chat_id", Pii.ID, "The group. Null if none was created."),
        _json("handles", "The handles to add or remove, as a JSON list; empty for a rename.", Pii.HANDLES),
        text("title", Pii.TITLE, "The requested title. Null if none was requested."),
        time("requested_at", "When the request was first sent."),
        time("finished_at", "When the outcome was known. Null while it is unknown."),
        text("outcome", Pii.NONE, "succeeded or failed, as the network confirmed; unknown without an answer."),
        _number("http_status", "The HTTP status of the answer. Null without an answer."),
        text("error_code", Pii.WORD, "The API's error code. Null without an error."),
        text("error_message", Pii.ANSWER, "The API's error message. Null without an error."),
        text("request_id", Pii.ID, "The API's id of the request. Null without an answer."),
        fetched_at(WRITTEN_BY_GROUPS),
    ),
    key=("operation_id",),
)
GROUP_MEMBER_OPERATIONS = Table(
    "group_member_operations",
    "One row per handle that we added to or removed from a group, and the network confirmed.",
    (
        text("id", Pii.HANDLE_KEY, "The key: operation and handle, joined by |.", nullable=False),
        text("operation_id", Pii.NONE, "The request."),
        text("chat_id", Pii.ID, "The group."),
        text("handle", Pii.HANDLE, "The handle that was added or removed."),
        text("operation", Pii.NONE, "added or removed."),
        time("happened_at", "When the network confirmed it."),
        fetched_at(WRITTEN_BY_GROUPS),
    ),
    key=("id",),
    person_key="handle",
)
GROUP_SIGHTINGS = Table(
    "group_sightings",
    "One row per declared group: the state in which groups.py last read it.",
    (
        text("key", Pii.NONE, "The group's key in the declaration.", nullable=False),
        text("chat_id", Pii.ID, "The group."),
        text("from_handle", Pii.OWN_HANDLE, "The account's number in the group."),
        text("title", Pii.TITLE, "The group's title."),
        _json(
            "handles", "The group's members without the account's number, as a JSON list. Null if unknown.", Pii.HANDLES
        ),
        Column("is_gone", "bool", Pii.NONE, "Whether the group no longer exists."),
        time("seen_at", "When the group was read."),
        fetched_at(WRITTEN_BY_GROUPS),
    ),
    key=("key",),
)
CONTACT_ALIASES = Table(
    "contact_aliases",
    "One row per handle that the list of contacts has or had.",
    (
        text("handle", Pii.HANDLE, "The handle, normalized so that its spellings compare equal.", nullable=False),
        text("contact", Pii.HANDLE, "The contact in the list. Null if the list no longer has the handle."),
        fetched_at("When this row was read from the list."),
    ),
    key=("handle",),
    person_key="handle",
)
SYNC_RUNS = Table(
    "sync_runs",
    "One row per run of the job, added when the warehouse is next published.",
    tuple(_run_columns()),
    key=("run_id",),
)
FAILED_READS = Table(
    "failed_reads",
    "One row per unit that could not be read and is tried again; removed once it is read.",
    (
        text(
            "kind", Pii.NONE, "numbers, feed, page (part of a list), thread (a chat's messages), chat or participants."
        ),
        text("id", Pii.ID, "The chat's id; for a page, the list and the time that it ends at."),
        time("since", "When it first failed."),
        time("last_tried_at", "When it was last tried."),
        _number("tries", "Number of runs that tried it."),
        _number("http_status", "The HTTP status of the last answer. Null without an answer."),
        text("error_code", Pii.WORD, "The API's error code in the last answer. Null if it had none."),
    ),
    key=("kind", "id"),
)
CLAIM_TABLE = Table(
    "_account",
    "Whose rows this warehouse holds.",
    (text("claim", Pii.NONE, "JSON: a MsgBubbles account or the sandbox, and the account's name if it has one."),),
    key=("claim",),
)
VERSION_TABLE = Table(
    "_version",
    "The version of these tables, which a newer release migrates.",
    (_number("version", "Number of migrations that were applied."),),
    key=("version",),
)
PRIVACY = Table(
    "privacy",
    "The privacy policy of the stored rows. It names nobody.",
    (text("record", Pii.NONE, "A JSON object: the policy, and hashes of the key and of erased people."),),
    key=("record",),
)
ERASURES = Table(
    "erasures",
    "One row per erasure of people. It names nobody.",
    (
        text("erasure_id", Pii.NONE, "The id on the erasure's certificate."),
        time("erased_at", "When the people were erased."),
        _number("people", "Number of people that were found."),
        _json("rows", "Number of rows deleted or changed by table, as a JSON object."),
    ),
    key=("erasure_id",),
)
# The tables of commands that may never run.
LATER_TABLES = (WEBHOOK_EVENTS, GROUP_OPERATIONS, GROUP_MEMBER_OPERATIONS, GROUP_SIGHTINGS, CONTACT_ALIASES)
# The job writes these tables itself, without dlt.
JOB_TABLES: dict[str, Table] = {
    table.name: table
    for table in (SYNC_RUNS, FAILED_READS, CLAIM_TABLE, VERSION_TABLE, PRIVACY, ERASURES)
}  # fmt: skip
# Every table that is loaded, by name.
TABLES: dict[str, Table] = SOURCE_TABLES | {table.name: table for table in LATER_TABLES} | JOB_TABLES
# A relation of others in the place of a loaded table gets this name, or this with a number.
REPLACED = "{table}_replaced"
REPLACED_NAME = re.compile(rf"({'|'.join(TABLES.keys() - {PRIVACY.name, ERASURES.name})})_replaced(_\d+)?")
