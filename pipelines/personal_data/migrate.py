"""Brings what has landed to a stricter policy. May be repeated, and killed: the next sync finishes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
from msgspec import Raw

from group_sync.landing import land_ledger
from msgbubbles.models import RejectedRow
from msgbubbles.redaction import DOT, Redactor
from warehouse.names import named
from warehouse.place import Place
from warehouse.privacy import Record, check_key, check_stricter, configured, redactor_of
from warehouse.transform import Transforms
from webhook_events.landing import aside_of

from .rewrite import rewriting, tables_of

STEP = "policy"
Change = Callable[[Any], Any]


def apply(place: Place, transforms: Transforms, say: Callable[[str], None]) -> Counter[str]:
    """Bring a warehouse to the policy of the configuration. Returns how many values changed, by table.

    The caller holds the locks `job` and `apply`. Raises `UsageError` where the policy keeps more than the warehouse's,
    or its key is another.
    """
    policy, pseudonyms = configured()
    record = Record.of(place) or Record()
    check_stricter(policy, record.policy)
    check_key(record, pseudonyms)
    place.set_pending(STEP)
    # First of all: what lands from now on, and what a receiver takes, is by the new one.
    check = pseudonyms.check if pseudonyms else None
    msgspec.structs.replace(record, policy=policy, key_check=check or record.key_check).save(place)
    if policy.redacts:
        land_ledger(place)
    redactor = redactor_of(place)
    with rewriting(place, transforms, say) as connection:
        changed = bring_to(redactor, connection)
        redactor.keep_names()
    if policy.redacts:
        _forget_what_is_beside(place)
    place.set_done(STEP)
    return changed


def bring_to(redactor: Redactor, connection: duckdb.DuckDBPyConnection) -> Counter[str]:
    """Apply a policy to the rows of a warehouse. Returns how many values changed, by table."""
    landed = _Landed(connection)
    policy = redactor.policy
    if redactor.asks_for_own_numbers:
        redactor.know_own_numbers(landed.values("numbers", "handle"))
    if policy.handles == "pseudonym":
        for table, column in (
            ("chats", "remote_handle"), ("messages", "sender_handle"), ("participant_lists", "handle"),
            ("group_member_operations", "handle"), ("webhook_events", "handle"),
        ):  # fmt: skip
            landed.change(table, column, redactor.handle)
        for table, column in (("chats", "from_handle"), ("numbers", "handle"), ("group_sightings", "from_handle")):
            landed.change(table, column, redactor.own_handle)
        for table in ("participant_reads", "group_operations", "group_sightings"):
            landed.change(table, "handles", lambda text: json.dumps([redactor.handle(one) for one in json.loads(text)]))
        # These keys are made of what they are keys of.
        for table in ("participant_lists", "group_member_operations"):
            landed.change(table, "id", lambda key: _with_last(key, redactor.handle))
    for table, column in (
        ("chats", "title"), ("chat_titles", "title"), ("numbers", "label"), ("group_operations", "title"),
        ("group_sightings", "title"),
    ):  # fmt: skip
        landed.change(table, column, redactor.title)
    if policy.text != "keep":
        dots = f"repeat('{DOT}', length(text))" if policy.text == "length" else "NULL"
        landed.set("messages", "text", dots)
        landed.change("webhook_events", "reaction", redactor.text)
    landed.change("attachments", "filename", redactor.file_name)
    landed.change("attachments", "mime_type", redactor.mime_type)
    if policy.metadata == "drop":
        landed.set("messages", "metadata", "NULL")
    if policy.extra == "drop":
        for table in ("chats", "messages", "attachments", "numbers"):
            landed.set(table, "extra", "NULL")
        for column in ("direction", "status", "channel", "effect"):
            landed.change("messages", column, redactor.word)
        for column in ("event_type", "direction", "status"):
            landed.change("webhook_events", column, redactor.word)
        landed.change("numbers", "status", redactor.word)
        landed.change("numbers", "channels", lambda text: _text(redactor.words(Raw(text.encode()))))
        landed.change("messages", "error", lambda text: _text(redactor.error(Raw(text.encode()))))
    if policy.webhook_payload == "drop":
        landed.set("webhook_events", "payload", "NULL")
    elif policy.redacts:
        landed.change("webhook_events", "payload", lambda text: json.dumps(redactor.payload(json.loads(text))))
    if policy.redacts:
        landed.set("group_operations", "error_message", "NULL")
        landed.change_rejected(redactor)
    return landed.counts


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

    def values(self, table: str, column: str) -> list[str]:
        if column not in self._columns.get(table, ()):
            return []
        found = self._connection.execute(
            f"SELECT DISTINCT {named(column)}::VARCHAR FROM msgbubbles.{table} WHERE {named(column)} IS NOT NULL"
        ).fetchall()
        return [row[0] for row in found]

    def change(self, table: str, column: str, change: Change) -> None:
        """Put in the place of each value what `change` makes of it."""
        pairs = [(value, change(value)) for value in self.values(table, column)]
        pairs = [(value, now) for value, now in pairs if now != value]
        if not pairs:
            return
        changes = pa.table({"old": [one for one, _ in pairs], "new": pa.array([now for _, now in pairs], pa.string())})
        self._connection.register("changes", changes)
        self._count(
            table,
            f"UPDATE msgbubbles.{table} SET {named(column)} = CAST(changes.new AS {self._columns[table][column]}) "
            f"FROM changes WHERE {named(column)}::VARCHAR = changes.old",
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


def _forget_what_is_beside(place: Place) -> None:
    """Files that quote what came: lines that were no events, and the ledger of groups, whose copy has landed."""
    paths = [*aside_of(place).glob("*.jsonl"), *place.folder.glob("groups.sqlite*")]
    for path in paths:
        path.unlink()
