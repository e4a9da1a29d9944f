"""Query the stored rows in the destination of the running pipeline.

Only finished loads are visible. A missing table, or a destination that cannot be queried, has no rows: then every row
counts as new, and no delete is detected.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

from msgspec import Raw

from msgbubbles.lazy_pyarrow import pa, pc
from msgbubbles.models import Attachment, Chat, R
from msgbubbles.tables import ATTACHMENTS, CHATS, TABLES, Table
from msgbubbles.times import from_epoch_ms, to_epoch_ms

from .arrow import build_arrow_schema
from .lazy_dlt import destination_exceptions, dlt, sql_client

# The table of webhook events; it exists if there is a receiver.
EVENTS = "webhook_events"
# Values in one query: even a few of them scan a whole column.
KEYS_AT_ONCE = 10_000


class MissingTableError(Exception):
    """A query reads a table that is missing. Clients that need no dlt raise it."""


class Warehouse:
    """The tables of a pipeline's dataset. `open_client` opens a client of dlt, or one like it that needs no dlt.

    Times are milliseconds since 1970; intervals include their first millisecond and exclude their last.
    """

    def __init__(self, open_client: Callable[[], Any]) -> None:
        self._open = open_client
        self._client: Any = None
        self._read_chats: str | None = None
        self._session: ExitStack | None = None
        # Threads that fetch pages query too, to check whose chats they are (`PrivateClient`).
        self._lock = threading.Lock()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Share one connection among the queries of the block; opening one takes longer than most of them."""
        with ExitStack() as self._session:
            try:
                yield
            finally:
                self._client = self._session = None

    @classmethod
    def from_current_pipeline(cls) -> Warehouse | None:
        """Return the warehouse of the running pipeline; null if none is running."""
        pipeline = dlt.current.pipeline()
        return cls(pipeline.sql_client) if isinstance(pipeline, dlt.Pipeline) else None

    def rows(self, table: str, incoming: pa.Table) -> pa.Table | None:
        """Return the stored rows with the keys of `incoming`; null if there are none.

        A chat that only events know counts as not stored, so that it is read like any other new chat.
        """
        key = TABLES[table].key[0]
        keys = incoming.column(key).to_pylist()
        where, values = "", []
        if table == "messages" and incoming.column("cursor_at").null_count == 0:
            # Lets the engine skip most of the table. A message whose time has changed counts as new.
            span = pc.min_max(incoming.column("cursor_at")).as_py()
            where, values = "cursor_at >= %s AND cursor_at <= %s", [span["min"], span["max"]]
            if not self._fetch_all(f"SELECT 1 FROM {{messages}} WHERE {where} LIMIT 1", *values):
                return None
            where += " AND "
        stored = self.rows_with(table, key, keys, where, *values)
        return _drop_rows_from_events(stored) if table == "chats" and stored is not None else stored

    def rows_with(self, table: str, column: str, keys: Sequence[str], where: str = "", *values: Any) -> pa.Table | None:
        """Return the stored rows that have one of `keys` in a column; null if there is no table.

        They have all columns that are stored: a warehouse of an older version lacks some.
        """
        parts = []
        for some in _split(keys):
            query = f"SELECT * FROM {{{table}}} WHERE {where}{column} IN {{keys}}"
            part = self._query(query, values, lambda cursor: _read_arrow(cursor, TABLES[table]), some)
            parts += [] if part is None else [part]
        return pa.concat_tables(parts, promote_options="default") if parts else None

    def message_locations(self, ids: Sequence[str]) -> dict[str, tuple[str | None, datetime | None]]:
        """Return the chat and the time of stored messages that have been read, by their ids."""
        return list_locations(self.rows_with("messages", "id", ids))

    def attachments(self, message_ids: Sequence[str]) -> list[Attachment]:
        """Return the stored attachments of these messages, except removed ones."""
        stored = self.rows_with("attachments", "message_id", message_ids)
        rows = [] if stored is None else stored.to_pylist()
        return [_build_row(Attachment, ATTACHMENTS, row) for row in rows if not row.get("removed_at")]

    def chats(self, ids: Sequence[str]) -> list[Chat]:
        """Return these chats, including those that only events know."""
        stored = self.rows_with("chats", "id", ids)
        return [] if stored is None else [_build_row(Chat, CHATS, row) for row in stored.to_pylist()]

    def read_chats(self, ids: Sequence[str]) -> list[str]:
        """Return which of these chats have been read."""
        query = "SELECT id FROM {read_chats} WHERE id IN {keys}"
        found = [self._query(query, (), lambda cursor: cursor.fetchall(), some) or () for some in _split(ids)]
        return [row[0] for rows in found for row in rows]

    def chats_between(self, lo_ms: int, hi_ms: int) -> set[str]:
        """Return the chats with `last_message_at` in the interval that are not known to be deleted."""
        return set(
            self._fetch_ids(
                "SELECT id FROM {read_chats} WHERE last_message_at >= %s AND last_message_at < %s "
                "AND deleted_at IS NULL",
                from_epoch_ms(lo_ms),
                from_epoch_ms(hi_ms),
            )
        )

    def chats_without_time(self, limit: int) -> list[str]:
        """Return chats that paging by time does not find."""
        return self._fetch_ids(
            f"SELECT id FROM {{read_chats}} WHERE last_message_at IS NULL AND deleted_at IS NULL LIMIT {limit:d}"
        )

    def chats_alive_at(self, from_ms: int, to_ms: int, after_id: str, limit: int) -> list[str]:
        """Return chats after `after_id` that may have messages in [from, to]."""
        return self._fetch_ids(
            "SELECT id FROM {read_chats} WHERE (created_at IS NULL OR created_at < %s) "
            "AND (last_message_at IS NULL OR last_message_at >= %s) "
            f"AND deleted_at IS NULL AND id > %s ORDER BY id LIMIT {limit:d}",
            from_epoch_ms(to_ms + 1),
            from_epoch_ms(from_ms),
            after_id,
        )

    def has_chat_without_messages(self, since_ms: int) -> bool:
        """Return whether a chat with a `last_message_at` since then is not deleted and has no stored message."""
        query = (
            "SELECT 1 FROM {read_chats} WHERE last_message_at >= %s AND deleted_at IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM {messages} AS messages WHERE messages.conversation_id = chats.id "
            "AND messages.from_event_at IS NULL) LIMIT 1"
        )
        return bool(self._fetch_all(query, from_epoch_ms(since_ms)))

    def orphans(self, limit: int) -> list[str]:
        """Return chats that messages refer to and that are not stored."""
        return self._fetch_ids(
            "SELECT DISTINCT conversation_id FROM {messages} WHERE conversation_id IS NOT NULL "
            f"AND conversation_id NOT IN (SELECT id FROM {{read_chats}}) LIMIT {limit:d}"
        )

    def groups_to_ask(self, before_ms: int, limit: int) -> dict[str, list[str] | None]:
        """Return groups that changed since their participants were fetched, with the participants fetched last.

        Null for groups that were never asked for their participants. Groups asked since `before_ms` are left out.
        """
        rows = self._fetch_all(
            "SELECT chats.id, reads.handles FROM {read_chats} "
            "LEFT JOIN {participant_reads} AS reads ON reads.chat_id = chats.id "
            "WHERE chats.is_group AND chats.deleted_at IS NULL AND (reads.chat_id IS NULL "
            "OR (chats.updated_at > reads.asked_at AND reads.asked_at < %s)) "
            f"ORDER BY reads.asked_at NULLS FIRST, chats.updated_at DESC LIMIT {limit:d}",
            from_epoch_ms(before_ms),
        )
        return {chat_id: json.loads(handles) if isinstance(handles, str) else handles for chat_id, handles in rows}

    def lagging(self, lo_ms: int, hi_ms: int, limit: int) -> dict[str, int]:
        """Return chats with no stored message since their `last_message_at`, if that is in the interval, with it.

        The newest come first, so that those which lag for good hide no other.
        """
        rows = self._fetch_all(
            "SELECT id, last_message_at FROM {read_chats} WHERE last_message_at >= %s AND last_message_at < %s "
            "AND deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM {messages} AS messages "
            "WHERE messages.conversation_id = chats.id AND messages.cursor_at >= chats.last_message_at "
            "AND messages.cursor_at >= %s AND messages.from_event_at IS NULL) "
            f"ORDER BY last_message_at DESC LIMIT {limit:d}",
            from_epoch_ms(lo_ms),
            from_epoch_ms(hi_ms),
            from_epoch_ms(lo_ms),
        )
        return {chat_id: to_epoch_ms(at) for chat_id, at in rows}

    def missing_from_events(self, since_ms: int, limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
        """Return what events received since then refer to and has not been read.

        That is chats, and by chat the first and the last time of messages.
        """
        chats = self._fetch_ids(
            "SELECT DISTINCT chat_id FROM {webhook_events} WHERE received_at >= %s AND chat_id IS NOT NULL "
            f"AND chat_id NOT IN (SELECT id FROM {{read_chats}}) LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        # Without a `message_at`, only events of new messages have about the time of their message.
        intervals = self._fetch_all(
            "SELECT chat_id, min(coalesce(message_at, occurred_at)), max(coalesce(message_at, occurred_at)) "
            "FROM {webhook_events} AS events WHERE received_at >= %s AND chat_id IS NOT NULL "
            "AND message_id IS NOT NULL AND (message_at IS NOT NULL "
            "OR event_type IN ('message.received', 'message.sent')) "
            "AND NOT EXISTS (SELECT 1 FROM {messages} AS messages WHERE messages.id = events.message_id "
            "AND messages.from_event_at IS NULL) "
            f"GROUP BY chat_id LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        return chats, {row[0]: (to_epoch_ms(row[1]), to_epoch_ms(row[2])) for row in intervals}

    @contextmanager
    def _open_client(self) -> Iterator[Any]:
        with self._open() as client:
            _return_json_as_text(client.native_connection)
            yield client

    def _fetch_all(self, query: str, *values: Any) -> list[Any]:
        return list(self._query(query, values, lambda cursor: cursor.fetchall()) or ())

    def _fetch_ids(self, query: str, *values: Any) -> list[str]:
        return [row[0] for row in self._fetch_all(query, *values)]

    def _query(self, query: str, values: Sequence[Any], fetch: Callable[[Any], Any], keys: Sequence[str] = ()) -> Any:
        try:
            with self._lock, ExitStack() as single_query:
                client = self._client
                if client is None:
                    self._read_chats = None
                    client = (self._session or single_query).enter_context(self._open_client())
                    self._client = client if self._session else None
                names = {table: client.make_qualified_table_name(table) for table in (*TABLES, EVENTS)}
                if "{read_chats}" in query:
                    self._read_chats = self._read_chats or _select_read_chats(client, names["chats"])
                    names["read_chats"] = self._read_chats
                names["keys"], of_keys = _mark_keys(client, keys)
                with client.execute_query(query.format(**names), *values, *of_keys) as cursor:
                    return fetch(cursor)
        except MissingTableError:
            return None
        except (destination_exceptions.DestinationUndefinedEntity, destination_exceptions.SqlClientNotAvailable):
            return None


def list_locations(messages: pa.Table | None) -> dict[str, tuple[str | None, datetime | None]]:
    """Return the chat and the time of stored messages that have been read, and are not only known from events."""
    if messages is None:
        return {}
    messages = _drop_rows_from_events(messages)
    names = ("id", "conversation_id", "cursor_at")
    ids, chat_ids, times = (messages.column(name).to_pylist() for name in names)
    return dict(zip(ids, zip(chat_ids, times, strict=True), strict=True))


def _drop_rows_from_events(rows: pa.Table) -> pa.Table:
    if "from_event_at" not in rows.column_names:  # a warehouse of an older version has no such rows
        return rows
    return rows.filter(pc.is_null(rows.column("from_event_at")))


def _select_read_chats(client: Any, chats: str) -> str:
    """Return the chats that have been read, as an item of FROM that is called chats."""
    with client.execute_query(f"SELECT * FROM {chats} WHERE 1 = 0") as cursor:
        is_marked = any(column[0] == "from_event_at" for column in cursor.description)
    return f"(SELECT * FROM {chats} WHERE from_event_at IS NULL) AS chats" if is_marked else f"{chats} AS chats"


def _read_arrow(cursor: Any, table: Table) -> pa.Table:
    """Read all rows of a cursor, JSON as text."""
    if hasattr(cursor, "to_arrow_table"):
        return cursor.to_arrow_table()
    if type(cursor).iter_arrow is not sql_client.DBApiCursorImpl.iter_arrow:
        return cursor.arrow()
    names, rows = [column[0] for column in cursor.native_cursor.description], cursor.fetchall()
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    schema = build_arrow_schema(table)
    return pa.table({field.name: pa.array(columns.get(field.name, [None] * len(rows)), field.type) for field in schema})


def _return_json_as_text(connection: Any) -> None:
    """Make psycopg2 return JSON as text: decoding fails at numbers and depths that a server can store."""
    if type(connection).__module__.startswith("psycopg2"):
        from psycopg2.extras import (  # installed with an extra; dlt has imported it by now
            register_default_json,
            register_default_jsonb,
        )

        register_default_json(connection, loads=str)
        register_default_jsonb(connection, loads=str)


def _build_row(model: type[R], table: Table, values: Mapping[str, Any]) -> R:
    names = {*table.column_names} & {*model.__struct_fields__}
    fields: dict[str, Any] = {name: values.get(name) for name in names}
    fields["extra"] = Raw((fields["extra"] or "").encode())
    return model(**fields)


def _mark_keys(client: Any, keys: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return what a column with one of the keys is IN, and its values: one for DuckDB, which takes long for each."""
    if keys and "duckdb" in type(client.native_connection).__module__:
        return "(SELECT unnest(from_json(%s, '[\"VARCHAR\"]')))", [json.dumps(keys)]
    return f"({', '.join(['%s'] * len(keys))})", keys


def _split(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + KEYS_AT_ONCE] for start in range(0, len(values), KEYS_AT_ONCE))
