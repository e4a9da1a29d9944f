"""Apply a stricter policy to stored rows. May be repeated, and killed: the next sync finishes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
from msgspec import Raw

from msgbubbles.models import RejectedRow
from msgbubbles.redact import DOT, HANDLE_LIKE_ID, Redactor
from msgbubbles.redact_payloads import redact_payload
from msgbubbles.tables import Column, Pii
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.policy.applied import Record, build_redactor, check_key, check_stricter, read_policy
from msgbubbles_sync.settings import TransformSettings, load_settings
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.webhooks.load import dead_letter_folder
from msgbubbles_sync.workspace import Workspace

from .rewrite import rewriting, tables_of

STEP = "policy"
Change = Callable[[Any], Any]


def apply(workspace: Workspace, transforms: TransformSettings, say: Callable[[str], None]) -> Counter[str]:
    """Apply the configured policy to a warehouse. Returns how many values changed, by table.

    The caller holds the locks `job` and `apply`. Raises `UsageError` if the policy keeps more than the warehouse's, or
    the key is another.
    """
    policy, pseudonyms = read_policy(load_settings(workspace.account))
    record = Record.load(workspace) or Record()
    check_stricter(policy, record.policy)
    check_key(record, pseudonyms)
    workspace.set_pending(STEP)
    # First of all: what lands from now on, and what a receiver takes, is by the new one.
    check = pseudonyms.check if pseudonyms else None
    msgspec.structs.replace(record, policy=policy, key_check=check or record.key_check).save(workspace)
    if policy.redacts:
        load_ledger(workspace)
    redactor = build_redactor(workspace)
    with rewriting(workspace, transforms, say) as connection:
        changed = bring_to(redactor, connection)
        redactor.save_vault()
    if policy.redacts:
        _forget_what_is_beside(workspace)
    workspace.set_done(STEP)
    return changed


def bring_to(redactor: Redactor, connection: duckdb.DuckDBPyConnection) -> Counter[str]:
    """Apply a policy to the rows of a warehouse. Returns how many values changed, by table."""
    landed = _Landed(connection)
    if redactor.needs_own_numbers:
        redactor.add_own_numbers(landed.values("numbers", "handle"))
    for table in TABLES.values():
        for column in table.text_columns:
            _bring_column_to(redactor, landed, table.name, column)
    return landed.counts


def _bring_column_to(redactor: Redactor, landed: _Landed, table: str, column: Column) -> None:
    policy, name, pii = redactor.policy, column.name, column.pii
    if pii is Pii.HANDLES:
        if policy.handles == "pseudonym":
            landed.change(table, name, lambda text: json.dumps([redactor.handle(one) for one in json.loads(text)]))
    elif pii is Pii.HANDLE_KEY:
        if policy.handles == "pseudonym":
            landed.change(table, name, lambda key: _with_last(key, redactor.handle))
    elif pii is Pii.PAYLOAD:
        if policy.webhook_payload == "drop":
            landed.set(table, name, "NULL")
        elif policy.redacts:
            landed.change(table, name, lambda text: json.dumps(redact_payload(redactor, json.loads(text))))
    elif pii is Pii.ROW:
        if policy.redacts:
            landed.change_rejected(redactor)
    elif not redactor.is_redacted(pii):
        return
    elif pii in (Pii.METADATA, Pii.EXTRA, Pii.ANSWER):
        landed.set(table, name, "NULL")
    elif pii is Pii.TEXT:
        landed.set(table, name, f"repeat('{DOT}', length({name}))" if policy.text == "length" else "NULL")
    elif column.type == "json":
        landed.change(table, name, partial(_redacted_json, redactor, pii))
    else:
        pattern = HANDLE_LIKE_ID.pattern if pii is Pii.ID else ""
        landed.change(table, name, partial(redactor.redact, pii), pattern)


def _redacted_json(redactor: Redactor, pii: Pii, text: str) -> str | None:
    return _text(redactor.redact(pii, Raw(text.encode())))


def _with_last(key: str, change: Change) -> str:
    """The key with its last part changed: it is `...|handle`."""
    head, bar, last = key.rpartition("|")
    return f"{head}{bar}{change(last)}" if last else key


def _text(raw: Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text in ("", "null") else text


class _Landed:
    """The landed rows; tables and columns that are not there have none. `counts` are the changed values, by table."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.counts: Counter[str] = Counter()
        self._connection = connection
        self._columns = tables_of(connection)

    def values(self, table: str, column: str, pattern: str = "") -> list[str]:
        """The values of a column, those only in which a regular expression is found."""
        if column not in self._columns.get(table, ()):
            return []
        found = self._connection.execute(
            f"SELECT DISTINCT {quote_name(column)}::VARCHAR FROM msgbubbles.{table} "
            f"WHERE regexp_matches({quote_name(column)}::VARCHAR, ?)",
            [pattern],
        ).fetchall()
        return [row[0] for row in found]

    def change(self, table: str, column: str, change: Change, pattern: str = "") -> None:
        """Put in the place of each value, in which `pattern` is found, what `change` makes of it."""
        pairs = [(value, change(value)) for value in self.values(table, column, pattern)]
        pairs = [(value, now) for value, now in pairs if now != value]
        if not pairs:
            return
        changes = pa.table({"old": [one for one, _ in pairs], "new": pa.array([now for _, now in pairs], pa.string())})
        self._connection.register("changes", changes)
        self._count(
            table,
            f"UPDATE msgbubbles.{table} SET {quote_name(column)} = CAST(changes.new AS {self._columns[table][column]}) "
            f"FROM changes WHERE {quote_name(column)}::VARCHAR = changes.old",
        )
        self._connection.unregister("changes")

    def set(self, table: str, column: str, expression: str) -> None:
        """Put the value of an SQL expression in the place of each value."""
        if column in self._columns.get(table, ()):
            self._count(
                table,
                f"UPDATE msgbubbles.{table} SET {column} = {expression} "
                f"WHERE {column} IS NOT NULL AND ({expression}) IS DISTINCT FROM {column}",
            )

    def change_rejected(self, redactor: Redactor) -> None:
        """The hash of a row that could not be read is of what is kept of it, so it changes with that."""
        if "rejected_rows" not in self._columns:
            return
        rows = self._connection.execute(
            "SELECT row_hash, stream, reason, row, request_id FROM msgbubbles.rejected_rows WHERE row NOT LIKE 'r\\_%' "
            "ESCAPE '\\'"
        ).fetchall()
        for row_hash, *one in rows:
            left = redactor.rejected(RejectedRow(*one))
            self._count(
                "rejected_rows",
                "UPDATE msgbubbles.rejected_rows SET row_hash = ?, row = ? WHERE row_hash = ?",
                left.row_hash, left.row, row_hash,
            )  # fmt: skip

    def _count(self, table: str, statement: str, *values: Any) -> None:
        row = self._connection.execute(statement, values).fetchone()
        if row and row[0]:
            self.counts[table] += row[0]


def _forget_what_is_beside(workspace: Workspace) -> None:
    """Files that quote what came: lines that were no events, and the ledger of groups, whose copy has landed."""
    paths = [*dead_letter_folder(workspace).glob("*.jsonl"), *workspace.folder.glob("groups.sqlite*")]
    for path in paths:
        path.unlink()
