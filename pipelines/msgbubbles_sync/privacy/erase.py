"""Erase people from the tables, the marts and the files, and from what is loaded later.

First, a keyed hash of each person is stored in the warehouse's privacy record. With it, the next run finishes an
interrupted erasure, and keeps the person out of later loads.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import duckdb
import msgspec

from msgbubbles.errors import ConfigurationError
from msgbubbles.handles import parse_handle
from msgbubbles.mentions import MIN_DIGITS, canonical_handle
from msgbubbles.policy import PSEUDONYM, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles.source.lazy_dlt import dlt_json, versioned_state
from msgbubbles.tables import Pii, Table
from msgbubbles_sync.context import Context
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy.applied import (
    Record,
    build_pseudonymizer,
    build_redactor,
    read_own_numbers,
    restore_record,
    store_copy,
)
from msgbubbles_sync.sql import create_table, insert_rows, quote_name
from msgbubbles_sync.tables import ERASURES, GROUP_OPERATIONS, TABLES
from msgbubbles_sync.text import format_count

from .files import purge_files
from .reapply import apply as apply_policy
from .rewrite import STORED_STATES, StoredRows, rewriting

# Chats that only events show, without the other side.
UNIDENTIFIED = "from_event_at IS NOT NULL AND remote_handle IS NULL"
IS_THEIRS = "IN (SELECT id FROM gone_people)"


@dataclass
class Certificate:
    """The result of an erasure: `rows` deleted or changed, by table, and the number of `people`. It names nobody.

    `out_of_reach` is where copies of the rows may be that only the user can remove.
    """

    erasure_id: str = field(default_factory=lambda: uuid4().hex)
    erased_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    people: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    out_of_reach: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return {
            "erasure_id": self.erasure_id,
            "erased_at": self.erased_at.isoformat(timespec="seconds"),
            "people": self.people,
            "rows": dict(sorted(self.rows.items())),
            "out_of_reach": self.out_of_reach,
        }

    def __str__(self) -> str:
        what = ", ".join(f"{count:,} of {table}" for table, count in sorted(self.rows.items())) or "no rows"
        people = format_count(self.people, "person")
        head = f"Erasure {self.erasure_id}, {self.erased_at:%Y-%m-%d %H:%M} UTC: {people}; {what}."
        if not self.people:
            head += " Nobody was found: check how the handles are spelled. Later runs load nothing of them."
        return "\n".join([head, "Not reached:", *(f"- {place}" for place in self.out_of_reach)])


def erase(context: Context, handles: Sequence[str]) -> Certificate:
    """Erase the people with these handles or pseudonyms from everything in a warehouse, and keep them out.

    The caller holds the locks `job` and `apply`. Raises `UsageError` for a text that is no handle, for the account's
    own numbers, and without a key.
    """
    workspace = context.workspace
    pseudonyms = build_pseudonymizer(context.settings)
    if pseudonyms is None:
        try:
            pseudonyms = Pseudonymizer.from_key(None)
        except ConfigurationError as error:
            raise UsageError(f"to keep erased people out, {error}") from None
    with context.destination.stay_open():
        restore_record(context.destination)
        redactor = build_redactor(workspace, context.settings)
        context.destination.prepare()
        if not context.destination.has_tables():
            raise UsageError(f"erase: {context.destination.title} has no rows; check --database and --destination")
        if not all(map(_is_handle, handles)):
            raise UsageError("erase takes handles: +14155550111, or ben@example.com; one of these is neither")
        own_numbers = read_own_numbers(context.destination)
        if {*map(pseudonyms.handle, handles)} & {*map(pseudonyms.handle, own_numbers)}:
            raise UsageError("erase: one of these is a number of the account itself; its rows are not a person's")
        record = Record.load(workspace) or Record(redactor.policy)
        workspace.set_pending("erase")
        hashes = {*map(pseudonyms.erased_handle, handles)}
        msgspec.structs.replace(record, key_check=pseudonyms.check).with_erased(hashes).save(workspace)
        store_copy(context.destination)
        if workspace.is_pending("policy"):  # or readers would get the rows that it has not changed yet next to new ones
            apply_policy(context)
        certificate = purge(context, handles)
    counts, failures = purge_files(context)
    certificate.rows += counts
    certificate.out_of_reach += [f"{why}. Every run tries again until it succeeds" for why in failures]
    return certificate


def _is_handle(text: str) -> bool:
    return bool(text.strip() and (parse_handle(text) or PSEUDONYM.fullmatch(text) or "@" not in text))


def purge(context: Context, handles: Collection[str] = ()) -> Certificate:
    """Remove everybody whose hash is in the privacy record from tables and marts. May be repeated.

    `purge_files` has to follow.

    `handles` are those to remove from texts as well. Without them, as after an interrupted erasure, each handle in a
    text is compared with the hashes.
    """
    workspace = context.workspace
    redactor = build_redactor(workspace, context.settings)
    certificate = Certificate(out_of_reach=context.destination.list_out_of_reach())
    with rewriting(context, "erase") as rows:
        people = {handle for handle in _read_handles(rows) if redactor.is_erased(handle)}
        certificate.people = len({redactor.pseudonyms.handle(person) for person in people})
        chats = _delete_people(rows, people)
        record = Record.load(workspace)
        if record is not None:
            record.with_erased(redactor.pseudonyms.erased_chat(chat) for chat in chats).save(workspace)
        _remove_mentions(rows, {*people, *handles} if handles else set(), redactor)
        certificate.rows += rows.counts
        if ERASURES.name not in context.destination.unwritable:
            _store_certificate(rows.connection, certificate)
    return certificate


def _read_handles(rows: StoredRows) -> set[str]:
    """Return the handles in all columns that hold handles."""
    handles: set[str] = set()
    for table in TABLES.values():
        for column in table.columns_with(Pii.HANDLE, Pii.HANDLES):
            query = f"SELECT DISTINCT {column.name} FROM msgbubbles.{table.name} WHERE {column.name} IS NOT NULL"
            for (value,) in rows.fetch(table.name, query):
                handles.update(json.loads(value) if column.pii is Pii.HANDLES else [value])
    return handles


def _delete_people(rows: StoredRows, people: set[str]) -> list[str]:
    """Delete people's chats, their messages in groups, and their memberships. Returns the ids of the chats."""
    _find_rows_to_delete(rows, people)
    groups = rows.fetch(
        "participant_lists", f"SELECT DISTINCT chat_id FROM msgbubbles.participant_lists WHERE handle {IS_THEIRS}"
    )
    rows.delete_gone()
    _delete_unidentified(rows)
    for (chat_id,) in groups:
        _rewrite_participant_lists(rows, chat_id, people)
    for table in TABLES.values():
        for column in table.columns_with(Pii.HANDLES):
            _remove_from_column(rows, table, column.name, people)
    return [chat_id for (chat_id,) in rows.connection.execute("SELECT DISTINCT id FROM gone_chats").fetchall()]


def _find_rows_to_delete(rows: StoredRows, people: set[str]) -> None:
    """Fill the temporary tables that `delete_gone` reads."""
    if people:
        rows.connection.executemany("INSERT INTO gone_people VALUES (?)", [[handle] for handle in people])
    rows.fetch(
        "chats",
        "INSERT INTO gone_chats SELECT id FROM msgbubbles.chats "
        f"WHERE NOT coalesce(is_group, false) AND remote_handle {IS_THEIRS}",
    )
    if "chats" in rows.types:
        # A chat that was never read counts as theirs if nobody else wrote to the account in it.
        is_unread = UNIDENTIFIED if "from_event_at" in rows.types["chats"] else "false"
        rows.fetch(
            "messages",
            "INSERT INTO gone_chats SELECT conversation_id FROM msgbubbles.messages "
            f"WHERE conversation_id NOT IN (SELECT id FROM msgbubbles.chats WHERE NOT ({is_unread})) "
            "AND direction = 'inbound' GROUP BY conversation_id "
            f"HAVING bool_and(coalesce(sender_handle {IS_THEIRS}, false))",
        )
    rows.fetch(
        "messages",
        "INSERT INTO gone_messages SELECT id FROM msgbubbles.messages "
        f"WHERE sender_handle {IS_THEIRS} OR conversation_id IN (SELECT id FROM gone_chats)",
    )


def _delete_unidentified(rows: StoredRows) -> None:
    """Delete what events show of chats that may be with anybody. The next sync reads them, unless they are theirs."""
    if "from_event_at" in rows.types.get("chats", ()):
        chats = f"msgbubbles.chats WHERE {UNIDENTIFIED}"
        theirs = f"from_event_at IS NOT NULL AND conversation_id IN (SELECT id FROM {chats})"
        rows.change("messages", f"DELETE FROM msgbubbles.messages WHERE {theirs}")
        rows.change("chats", f"DELETE FROM {chats}")


def _remove_from_column(rows: StoredRows, table: Table, column: str, people: set[str]) -> None:
    """Remove people from the lists of handles in a column."""
    (key,) = table.key
    for key_value, text in rows.fetch(table.name, f"SELECT {key}, {column} FROM msgbubbles.{table.name}"):
        handles = json.loads(text) if text else []
        remaining = [handle for handle in handles if handle not in people]
        if handles and not remaining and table is GROUP_OPERATIONS:
            rows.change(table.name, f"DELETE FROM msgbubbles.{table.name} WHERE {key} = ?", key_value)
        elif remaining != handles:
            statement = f"UPDATE msgbubbles.{table.name} SET {column} = ? WHERE {key} = ?"
            rows.change(table.name, statement, msgspec.json.encode(remaining).decode(), key_value)


def _remove_mentions(rows: StoredRows, handles: set[str], redactor: Redactor) -> None:
    """Replace handles within texts, in every text column of every table; delete rows that could not be parsed.

    Without `handles`, each handle in a text is compared with the hashes of the erased ones.
    """
    for table, types in rows.types.items():
        for column, kind in types.items():
            if kind in ("VARCHAR", "JSON"):
                _remove_from_texts(rows, table, column, handles, redactor)
    _remove_from_state(rows.connection, redactor)


def _remove_from_texts(rows: StoredRows, table: str, column: str, handles: set[str], redactor: Redactor) -> None:
    path, name, kind = f"msgbubbles.{quote_name(table)}", quote_name(column), rows.types[table][column]
    # The query only preselects rows: the redactor finds the handles in a text, as it does when a text is loaded.
    condition, values = _may_hold(
        f"{name}::VARCHAR", handles | {redactor.pseudonyms.handle(handle) for handle in handles}
    )
    for row_id, text in rows.fetch(table, f"SELECT rowid, {name}::VARCHAR FROM {path} WHERE {condition}", *values):
        if table == "rejected_rows" and redactor.mentions_erased(text):
            rows.change(table, f"DELETE FROM {path} WHERE rowid = ?", row_id)
            continue
        cleaned = redactor.replace_erased_in_json(text) if kind == "JSON" else redactor.replace_erased(text)
        if cleaned != text:
            rows.change(table, f"UPDATE {path} SET {name} = CAST(? AS {kind}) WHERE rowid = ?", cleaned, row_id)


def _remove_from_state(connection: duckdb.DuckDBPyConnection, redactor: Redactor) -> None:
    """Remove handles from dlt's state, which holds ids of chats."""
    try:
        states = connection.execute(f"SELECT rowid, state FROM {STORED_STATES}").fetchall()
    except duckdb.CatalogException:  # a missing column has to end an erasure
        return
    for row_id, packed in states:
        text = dlt_json.json.typed_dumps(versioned_state.decompress_state(packed))
        cleaned = redactor.replace_erased_in_json(text)
        if cleaned != text:
            packed = versioned_state.compress_state(dlt_json.json.typed_loads(cleaned))
            connection.execute(f"UPDATE {STORED_STATES} SET state = ? WHERE rowid = ?", [packed, row_id])


def _rewrite_participant_lists(rows: StoredRows, chat_id: str, people: set[str]) -> None:
    """Write a group's lists as they would have been without these people.

    A list that is then the same as the one before was never stored, and an empty one is a null handle.
    """
    table = "participant_lists"
    lists: dict[datetime, tuple[set[str | None], str]] = {}
    for fetched_at, handle, load_id in rows.fetch(
        table,
        "SELECT _fetched_at, handle, _dlt_load_id FROM msgbubbles.participant_lists WHERE chat_id = ? "
        "ORDER BY _fetched_at, handle", chat_id,
    ):  # fmt: skip
        lists.setdefault(fetched_at, (set(), load_id))[0].add(handle)
    delete, previous = "DELETE FROM msgbubbles.participant_lists WHERE chat_id = ? AND _fetched_at = ?", None
    for fetched_at, (handles, load_id) in lists.items():
        remaining = handles - people or {None}
        if remaining == previous:
            rows.change(table, delete, chat_id, fetched_at)
            continue
        previous = remaining
        rows.change(table, f"{delete} AND handle {IS_THEIRS}", chat_id, fetched_at)
        if remaining == {None} != handles:
            rows.connection.execute(
                "INSERT INTO msgbubbles.participant_lists (id, chat_id, handle, _fetched_at, _dlt_load_id) "
                "VALUES (?, ?, NULL, ?, ?)",
                [f"{chat_id}|{fetched_at.isoformat()}|", chat_id, fetched_at, load_id],
            )


def _may_hold(text: str, handles: set[str]) -> tuple[str, list[str]]:
    """Return a condition in SQL for texts that may hold one of these handles in any spelling, and its parameters.

    Without handles, the condition is for texts that may hold any handle.
    """
    # Escapes of JSON, and digits of other scripts.
    others = f"contains({text}, '\\u') OR regexp_matches(regexp_replace({text}, '[0-9]', '', 'g'), '\\p{{Nd}}')"
    if not handles:
        return f"regexp_matches({text}, '[@0-9]') OR contains({text}, 'p_') OR {others}", []
    forms = {form for handle in handles for form in (canonical_handle(handle), handle.strip().lower())}
    numbers = {digits[-MIN_DIGITS:] for form in forms if len(digits := re.sub(r"[^0-9]", "", form)) >= MIN_DIGITS}
    digits_only = f"regexp_replace({text}, '[^0-9]', '', 'g')"
    conditions = [f"contains({digits_only}, ?)"] * len(numbers) + [f"contains(lower({text}), ?)"] * len(forms)
    return " OR ".join([*conditions, others]), [*numbers, *forms]


def _store_certificate(connection: duckdb.DuckDBPyConnection, certificate: Certificate) -> None:
    table = create_table(connection, "msgbubbles", ERASURES)
    values = [certificate.erasure_id, certificate.erased_at, certificate.people, json.dumps(certificate.rows)]
    insert_rows(connection, table, ERASURES, [values])
