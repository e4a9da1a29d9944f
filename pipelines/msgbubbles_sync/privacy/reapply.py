"""Apply a stricter policy to stored rows. May be repeated, and killed: the next sync finishes it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw

from msgbubbles.errors import MsgBubblesError
from msgbubbles.lazy_pyarrow import pa
from msgbubbles.models import RejectedRow
from msgbubbles.redact import DOT, HANDLE_LIKE_ID, Redactor
from msgbubbles.redact_payloads import redact_payload
from msgbubbles.tables import Column, Pii
from msgbubbles_sync.context import Context
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.policy.applied import (
    Record,
    build_pseudonymizer,
    build_redactor,
    check_key,
    check_stricter,
    restore_record,
)
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.tables import TABLES

from .rewrite import StoredRows, rewriting

Change = Callable[[Any], Any]


def apply(context: Context) -> Counter[str]:
    """Apply the configured policy to a warehouse. Returns how many values changed, by table.

    `purge` has to follow if an erasure is pending, then `purge_files`. The caller holds the locks `job` and `apply`.
    Raises `UsageError` if the policy is looser than the warehouse's, or the key is another.
    """
    workspace = context.workspace
    policy, pseudonyms = context.settings.policy, build_pseudonymizer(context.settings)
    restore_record(context.destination)
    record = Record.load(workspace) or Record()
    check_stricter(policy, record.policy)
    check_key(record, pseudonyms)
    workspace.set_pending("policy", *(("former_ledger",) if policy.redacts else ()))
    # The record comes first: from now on, loads and receivers use the new policy.
    key_check = pseudonyms.check if pseudonyms else record.key_check
    msgspec.structs.replace(record, policy=policy, key_check=key_check).save(workspace)
    redactor = build_redactor(workspace, context.settings)
    if policy.redacts:
        with suppress(MsgBubblesError, OSError, sqlite3.Error):  # `purge_files` loads the rest of it
            load_ledger(context.destination, redactor)
    with rewriting(context, "policy") as rows:
        # An erasure that is pending has to recognize its people afterwards.
        counts = redact_stored_rows(replace(redactor, erased=frozenset()), rows)
        redactor.save_vault()
    return counts


def redact_stored_rows(redactor: Redactor, rows: StoredRows) -> Counter[str]:
    """Apply a policy to the rows of a warehouse. Returns how many values changed, by table."""
    if redactor.needs_own_numbers:
        redactor.add_own_numbers(_read_values(rows, "numbers", "handle"))
    for table in TABLES.values():
        for column in table.text_columns:
            if column.name in rows.types.get(table.name, ()):
                _redact_column(redactor, rows, table.name, column)
    return rows.counts


def _redact_column(redactor: Redactor, rows: StoredRows, table: str, column: Column) -> None:
    policy, name, pii = redactor.policy, column.name, column.pii
    if pii is Pii.HANDLES:
        if policy.handles == "pseudonym":
            _change(rows, table, name, lambda text: json.dumps([*map(redactor.handle, json.loads(text))]))
    elif pii is Pii.HANDLE_KEY:
        if policy.handles == "pseudonym":
            _change(rows, table, name, lambda key: _change_last_part(key, redactor.handle))
    elif pii is Pii.PAYLOAD:
        if policy.webhook_payload == "drop":
            _set(rows, table, name, "NULL")
        elif policy.redacts:
            _change(rows, table, name, lambda text: json.dumps(redact_payload(redactor, json.loads(text))))
    elif pii is Pii.ROW:
        if policy.redacts:
            _change_rejected(rows, redactor)
    elif not redactor.is_redacted(pii):
        return
    elif pii in (Pii.METADATA, Pii.EXTRA, Pii.ANSWER):
        _set(rows, table, name, "NULL")
    elif pii is Pii.TEXT:
        _set(rows, table, name, f"repeat('{DOT}', length({name}))" if policy.text == "length" else "NULL")
    elif column.type == "json":
        _change(rows, table, name, partial(_redact_json, redactor, pii))
    else:
        pattern = HANDLE_LIKE_ID.pattern if pii is Pii.ID else ""
        _change(rows, table, name, partial(redactor.redact, pii), pattern)


def _redact_json(redactor: Redactor, pii: Pii, text: str) -> str | None:
    redacted = bytes(redactor.redact(pii, Raw(text.encode()))).decode()
    return None if redacted in ("", "null") else redacted


def _change_last_part(key: str, change: Change) -> str:
    """Change the handle at the end of a key such as `chat|time|handle`."""
    head, bar, last = key.rpartition("|")
    return f"{head}{bar}{change(last)}" if last else key


def _read_values(rows: StoredRows, table: str, column: str, pattern: str = "") -> list[str]:
    """Return the distinct values of a column that match a regular expression."""
    values = rows.fetch(
        table,
        f"SELECT DISTINCT {quote_name(column)}::VARCHAR FROM msgbubbles.{table} "
        f"WHERE regexp_matches({quote_name(column)}::VARCHAR, ?)",
        pattern,
    )
    return [value for (value,) in values]


def _change(rows: StoredRows, table: str, column: str, change: Change, pattern: str = "") -> None:
    """Replace each value that matches `pattern` by the result of `change`."""
    values = _read_values(rows, table, column, pattern)
    changes = [(old, new) for old, new in zip(values, map(change, values), strict=True) if new != old]
    if not changes:
        return
    old, new = zip(*changes, strict=True)
    rows.connection.register("changes", pa.table({"old": old, "new": pa.array(new, pa.string())}))
    rows.change(
        table,
        f"UPDATE msgbubbles.{table} SET {quote_name(column)} = CAST(changes.new AS {rows.types[table][column]}) "
        f"FROM changes WHERE {quote_name(column)}::VARCHAR = changes.old",
    )
    rows.connection.unregister("changes")


def _set(rows: StoredRows, table: str, column: str, expression: str) -> None:
    """Replace each value by that of an SQL expression."""
    rows.change(
        table,
        f"UPDATE msgbubbles.{table} SET {column} = {expression} "
        f"WHERE {column} IS NOT NULL AND ({expression}) IS DISTINCT FROM {column}",
    )


def _change_rejected(rows: StoredRows, redactor: Redactor) -> None:
    """Redact rows that could not be parsed, with their hashes, which are of the redacted row."""
    columns = "row_hash, stream, reason, row, request_id"
    query = f"SELECT {columns} FROM msgbubbles.rejected_rows WHERE row NOT LIKE 'r\\_%' ESCAPE '\\'"
    for row_hash, *values in rows.fetch("rejected_rows", query):
        redacted = redactor.rejected(RejectedRow(*values))
        statement = "UPDATE msgbubbles.rejected_rows SET row_hash = ?, row = ? WHERE row_hash = ?"
        rows.change("rejected_rows", statement, redacted.row_hash, redacted.row, row_hash)
