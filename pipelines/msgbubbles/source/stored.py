"""Read what the warehouse holds, from the destination that the running pipeline loads into.

Only finished loads are seen. A destination that cannot be queried, or a table that is missing, has no rows: then every
row that is read counts as new, and no delete is detected.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any

import dlt
from dlt.common.destination.exceptions import DestinationUndefinedEntity, SqlClientNotAvailable
from dlt.destinations.sql_client import DBApiCursorImpl
from msgspec import Raw

from msgbubbles.models import Attachment, Chat
from msgbubbles.tables import ATTACHMENTS, CHATS, TABLES, Table
from msgbubbles.times import from_epoch_ms, to_epoch_ms

from .arrow import arrow_schema
from .lazy_pyarrow import pa, pc

# The table of webhook events, where a receiver runs.
EVENTS = "webhook_events"
# Values in one query. Each query looks at a whole column, however few they are.
KEYS_AT_ONCE = 10_000


class Warehouse:
    """The tables of a pipeline's dataset. Times are milliseconds since 1970; intervals include their first millisecond
    and exclude their last.
    """

    def __init__(self, pipeline: dlt.Pipeline) -> None:
        self._pipeline = pipeline
        self._client: Any = None
        self._session: ExitStack | None = None
        # Where a person is erased, the threads that fetch pages query too.
        self._lock = threading.Lock()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep one connection until the block ends, because opening one takes longer than most queries. The first query
        opens it.
        """
        with ExitStack() as self._session:
            try:
                yield
            finally:
                self._client = self._session = None

    @classmethod
    def from_current_pipeline(cls) -> Warehouse | None:
        """Return the warehouse of the pipeline that is running now; null where none is."""
        pipeline = dlt.current.pipeline()
        return cls(pipeline) if isinstance(pipeline, dlt.Pipeline) else None

    def rows(self, table: str, incoming: pa.Table) -> pa.Table | None:
        """Return the stored rows that have the keys of `incoming`; null without any, or without the table."""
        key = TABLES[table].key[0]
        keys = incoming.column(key).to_pylist()
        where, values = "", []
        if table == "messages" and incoming.column("cursor_at").null_count == 0:
            # The engine then skips what is not of that time. A message whose time has changed counts as new.
            span = pc.min_max(incoming.column("cursor_at")).as_py()
            where, values = "cursor_at >= %s AND cursor_at <= %s", [span["min"], span["max"]]
            if not self._fetch_all(f"SELECT 1 FROM {{messages}} WHERE {where} LIMIT 1", *values):
                return None
            where += " AND "
        found = [
            self._fetch_arrow(
                table, f"SELECT * FROM {{{table}}} WHERE {where}{key} IN ({_marks(some)})", *values, *some
            )
            for some in _chunks(keys)
        ]
        tables = [one for one in found if one is not None]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def message_locations(self, ids: Sequence[str]) -> dict[str, tuple[str | None, datetime | None]]:
        """Return the chat and the time of stored messages, by their ids."""
        query = "SELECT id, conversation_id, cursor_at FROM {messages} WHERE id IN "
        found = [row for some in _chunks(ids) for row in self._fetch_all(f"{query}({_marks(some)})", *some)]
        return {key: (chat_id, at) for key, chat_id, at in found}

    def attachments(self, message_ids: Sequence[str]) -> list[Attachment]:
        """Return the stored attachments of these messages that are not removed."""
        names = [name for name in ATTACHMENTS.column_names if name != "_fetched_at"]
        found: list[dict[str, Any]] = []
        # All columns: a warehouse of an older version has no `removed_at` yet.
        query = "SELECT * FROM {attachments} WHERE message_id IN "
        for some in _chunks(message_ids):
            table = self._fetch_arrow("attachments", f"{query}({_marks(some)})", *some)
            found += [] if table is None else table.to_pylist()
        rows: list[dict[str, Any]] = [{name: row.get(name) for name in names} for row in found]
        return [
            Attachment(**row | {"extra": Raw((row["extra"] or "").encode())}) for row in rows if not row["removed_at"]
        ]

    def chats(self, ids: Sequence[str]) -> list[Chat]:
        """Return the stored chats with these ids."""
        names = [name for name in CHATS.column_names if name != "_fetched_at"]
        columns = ", ".join(names)
        rows: list[Any] = []
        for some in _chunks(ids):
            rows += self._fetch_all(f"SELECT {columns} FROM {{chats}} WHERE id IN ({_marks(some)})", *some)
        return [_build_chat(dict(zip(names, row, strict=True))) for row in rows]

    def chats_between(self, lo_ms: int, hi_ms: int) -> set[str]:
        """Return ids of chats with `last_message_at` in the interval that are not known to be deleted."""
        found = self._fetch_all(
            "SELECT id FROM {chats} WHERE last_message_at >= %s AND last_message_at < %s AND deleted_at IS NULL",
            from_epoch_ms(lo_ms), from_epoch_ms(hi_ms),
        )  # fmt: skip
        return {row[0] for row in found}

    def chats_without_time(self, limit: int) -> list[str]:
        """Return ids of chats that paging by time does not find."""
        found = self._fetch_all(
            f"SELECT id FROM {{chats}} WHERE last_message_at IS NULL AND deleted_at IS NULL LIMIT {limit:d}"
        )
        return [row[0] for row in found]

    def chats_alive_at(self, from_ms: int, to_ms: int, after_id: str, limit: int) -> list[str]:
        """Return ids after `after_id` of chats that may have messages in [from, to]."""
        found = self._fetch_all(
            "SELECT id FROM {chats} WHERE (created_at IS NULL OR created_at < %s) "
            "AND (last_message_at IS NULL OR last_message_at >= %s) "
            f"AND deleted_at IS NULL AND id > %s ORDER BY id LIMIT {limit:d}",
            from_epoch_ms(to_ms + 1), from_epoch_ms(from_ms), after_id,
        )  # fmt: skip
        return [row[0] for row in found]

    def has_chat_without_messages(self, since_ms: int) -> bool:
        """Return whether a chat with a `last_message_at` since then is not deleted and has no stored message."""
        return bool(
            self._fetch_all(
                "SELECT 1 FROM {chats} AS chats WHERE last_message_at >= %s AND deleted_at IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM {messages} AS messages WHERE messages.conversation_id = chats.id) LIMIT 1",
                from_epoch_ms(since_ms),
            )
        )

    def orphans(self, limit: int) -> list[str]:
        """Return ids of chats that messages refer to and that are not stored."""
        found = self._fetch_all(
            "SELECT DISTINCT conversation_id FROM {messages} WHERE conversation_id IS NOT NULL "
            f"AND conversation_id NOT IN (SELECT id FROM {{chats}}) LIMIT {limit:d}"
        )
        return [row[0] for row in found]

    def groups_to_ask(self, before_ms: int, limit: int) -> dict[str, list[str] | None]:
        """Return groups whose participants were not fetched since the group changed (and not since `before_ms`), with
        the participants that were fetched last; null where they were never fetched.
        """
        found = self._fetch_all(
            "SELECT chats.id, known.handles FROM {chats} AS chats "
            "LEFT JOIN {participant_reads} AS known ON known.chat_id = chats.id "
            "WHERE chats.is_group AND chats.deleted_at IS NULL AND (known.chat_id IS NULL "
            "OR (chats.updated_at > known.asked_at AND known.asked_at < %s)) "
            f"ORDER BY known.asked_at NULLS FIRST, chats.updated_at DESC LIMIT {limit:d}",
            from_epoch_ms(before_ms),
        )
        return {chat_id: json.loads(handles) if isinstance(handles, str) else handles for chat_id, handles in found}

    def lagging(self, lo_ms: int, hi_ms: int, limit: int) -> dict[str, int]:
        """Return chats with a `last_message_at` in the interval and no stored message since then, with that time by the
        chat's id.
        """
        found = self._fetch_all(
            "SELECT id, last_message_at FROM {chats} AS chats WHERE last_message_at >= %s AND last_message_at < %s "
            "AND deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM {messages} AS messages "
            "WHERE messages.conversation_id = chats.id AND messages.cursor_at >= chats.last_message_at "
            f"AND messages.cursor_at >= %s) LIMIT {limit:d}",
            from_epoch_ms(lo_ms), from_epoch_ms(hi_ms), from_epoch_ms(lo_ms),
        )  # fmt: skip
        return {chat_id: to_epoch_ms(at) for chat_id, at in found}

    def missing_from_events(self, since_ms: int, limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
        """Return what events received since then refer to and that is not stored: ids of chats; and by the ids of their
        chats, the first and the last time of messages.
        """
        chats = self._fetch_all(
            "SELECT DISTINCT chat_id FROM {webhook_events} WHERE received_at >= %s AND chat_id IS NOT NULL "
            f"AND chat_id NOT IN (SELECT id FROM {{chats}}) LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        # Where an event does not show when its message was written, only that of a new message has about the same time.
        intervals = self._fetch_all(
            "SELECT chat_id, min(coalesce(message_at, occurred_at)), max(coalesce(message_at, occurred_at)) "
            "FROM {webhook_events} AS events WHERE received_at >= %s AND chat_id IS NOT NULL "
            "AND message_id IS NOT NULL AND (message_at IS NOT NULL "
            "OR event_type IN ('message.received', 'message.sent')) "
            "AND NOT EXISTS (SELECT 1 FROM {messages} AS messages WHERE messages.id = events.message_id) "
            f"GROUP BY chat_id LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        return [row[0] for row in chats], {row[0]: (to_epoch_ms(row[1]), to_epoch_ms(row[2])) for row in intervals}

    @contextmanager
    def _open_client(self) -> Iterator[Any]:
        with self._pipeline.sql_client() as client:
            _keep_json_as_text(client.native_connection)
            yield client

    def _fetch_all(self, query: str, *values: Any) -> list[Any]:
        found = self._query(query, values, lambda cursor: cursor.fetchall())
        return [] if found is None else list(found)

    def _fetch_arrow(self, table: str, query: str, *values: Any) -> pa.Table | None:
        return self._query(query, values, lambda cursor: _read_arrow(cursor, TABLES[table]))

    def _query(self, query: str, values: Sequence[Any], answer: Any) -> Any:
        try:
            with self._lock, ExitStack() as at_once:
                client = self._client
                if client is None:
                    client = (self._session or at_once).enter_context(self._open_client())
                    self._client = client if self._session else None
                names = {table: client.make_qualified_table_name(table) for table in (*TABLES, EVENTS)}
                with client.execute_query(query.format(**names), *values) as cursor:
                    return answer(cursor)
        except (DestinationUndefinedEntity, SqlClientNotAvailable):
            return None


def _read_arrow(cursor: Any, table: Table) -> pa.Table:
    """Read all rows of a cursor, JSON as text."""
    if type(cursor).iter_arrow is not DBApiCursorImpl.iter_arrow:
        return cursor.arrow()

    names, rows = [one[0] for one in cursor.native_cursor.description], cursor.fetchall()
    found = {}
    for field in arrow_schema(table):
        place = names.index(field.name) if field.name in names else None
        values = [None if place is None else row[place] for row in rows]
        found[field.name] = pa.array(values, field.type)
    return pa.table(found)


def _keep_json_as_text(connection: Any) -> None:
    """Make psycopg2 return JSON as text: it would decode it, and fail at numbers and depths that a server stores."""
    if type(connection).__module__.startswith("psycopg2"):
        from psycopg2.extras import (  # type: ignore[import-untyped]
            register_default_json,
            register_default_jsonb,
        )

        register_default_json(connection, loads=str)
        register_default_jsonb(connection, loads=str)


def _build_chat(values: dict[str, Any]) -> Chat:
    return Chat(**values | {"extra": Raw((values["extra"] or "").encode())})


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + KEYS_AT_ONCE] for start in range(0, len(values), KEYS_AT_ONCE))
