"""What the warehouse holds, asked of the destination that the running pipeline loads into.

Only finished loads are seen. A destination that cannot be queried, or a table that is not there yet, answers with
nothing: then every row that is read counts as new, and nothing is said of deletes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dlt
from dlt.common.destination.exceptions import DestinationUndefinedEntity, SqlClientNotAvailable
from dlt.destinations.sql_client import DBApiCursorImpl
from msgspec import Raw

from msgbubbles.models import Attachment, Chat
from msgbubbles.tables import ATTACHMENTS, CHATS, TABLES, Table
from msgbubbles.times import from_epoch_ms, to_epoch_ms

from .arrow import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

# What webhooks tell, where somebody receives them.
EVENTS = "webhook_events"
# Values in one query. Each query looks at a whole column, however few they are.
KEYS_AT_ONCE = 10_000


class Warehouse:
    """The tables of a pipeline's dataset. Instants are milliseconds since 1970; stretches include their first
    instant and exclude their last."""

    def __init__(self, pipeline: dlt.Pipeline) -> None:
        self._pipeline = pipeline
        self._client: Any = None
        self._kept: ExitStack | None = None
        # Where somebody is erased, those who fetch pages ask too.
        self._asking = threading.Lock()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Ask over one connection until the block ends: to open one takes longer than most questions. It is opened by
        the first of them."""
        with ExitStack() as self._kept:
            try:
                yield
            finally:
                self._client = self._kept = None

    @classmethod
    def from_current_pipeline(cls) -> Warehouse | None:
        """That of the pipeline that is running now; null where there is none."""
        pipeline = dlt.current.pipeline()
        return cls(pipeline) if isinstance(pipeline, dlt.Pipeline) else None

    def rows(self, table: str, incoming: pa.Table) -> pa.Table | None:
        """The stored rows that have the keys of `incoming`; null when there are none, or no such table."""
        import pyarrow as pa
        import pyarrow.compute as pc

        key = TABLES[table].key[0]
        keys = incoming.column(key).to_pylist()
        where, values = "", []
        if table == "messages" and incoming.column("cursor_at").null_count == 0:
            # The engine then skips what is not of that time. A message whose time has changed counts as new.
            span = pc.min_max(incoming.column("cursor_at")).as_py()
            where, values = "cursor_at >= %s AND cursor_at <= %s", [span["min"], span["max"]]
            if not self._all(f"SELECT 1 FROM {{messages}} WHERE {where} LIMIT 1", *values):
                return None
            where += " AND "
        found = [
            self._arrow(table, f"SELECT * FROM {{{table}}} WHERE {where}{key} IN ({_marks(some)})", *values, *some)
            for some in _chunks(keys)
        ]
        tables = [one for one in found if one is not None]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def message_locations(self, ids: Sequence[str]) -> dict[str, tuple[str | None, datetime | None]]:
        """The chat and the time of the messages of these ids that are stored."""
        query = "SELECT id, conversation_id, cursor_at FROM {messages} WHERE id IN "
        found = [row for some in _chunks(ids) for row in self._all(f"{query}({_marks(some)})", *some)]
        return {key: (chat_id, at) for key, chat_id, at in found}

    def attachments(self, message_ids: Sequence[str]) -> list[Attachment]:
        """The stored attachments of these messages that are not removed."""
        names = [name for name in ATTACHMENTS.column_names if name != "_fetched_at"]
        found: list[dict[str, Any]] = []
        # All columns: a warehouse of an older version has no `removed_at` yet.
        query = "SELECT * FROM {attachments} WHERE message_id IN "
        for some in _chunks(message_ids):
            table = self._arrow("attachments", f"{query}({_marks(some)})", *some)
            found += [] if table is None else table.to_pylist()
        rows: list[dict[str, Any]] = [{name: row.get(name) for name in names} for row in found]
        return [
            Attachment(**row | {"extra": Raw((row["extra"] or "").encode())}) for row in rows if not row["removed_at"]
        ]

    def chats(self, ids: Sequence[str]) -> list[Chat]:
        """The stored chats of these ids, as they were last seen."""
        names = [name for name in CHATS.column_names if name != "_fetched_at"]
        columns = ", ".join(names)
        rows: list[Any] = []
        for some in _chunks(ids):
            rows += self._all(f"SELECT {columns} FROM {{chats}} WHERE id IN ({_marks(some)})", *some)
        return [_chat(dict(zip(names, row, strict=True))) for row in rows]

    def chats_between(self, lo_ms: int, hi_ms: int) -> set[str]:
        """Ids of the chats with `last_message_at` in the stretch that are not known to be deleted."""
        found = self._all(
            "SELECT id FROM {chats} WHERE last_message_at >= %s AND last_message_at < %s AND deleted_at IS NULL",
            from_epoch_ms(lo_ms), from_epoch_ms(hi_ms),
        )  # fmt: skip
        return {row[0] for row in found}

    def chats_without_time(self, limit: int) -> list[str]:
        """Ids of chats that no walk by time finds."""
        found = self._all(
            f"SELECT id FROM {{chats}} WHERE last_message_at IS NULL AND deleted_at IS NULL LIMIT {limit:d}"
        )
        return [row[0] for row in found]

    def chats_alive_at(self, from_ms: int, to_ms: int, after_id: str, limit: int) -> list[str]:
        """Ids, from the one after `after_id` on, of chats that may have messages in [from, to]."""
        found = self._all(
            "SELECT id FROM {chats} WHERE (created_at IS NULL OR created_at < %s) "
            "AND (last_message_at IS NULL OR last_message_at >= %s) "
            f"AND deleted_at IS NULL AND id > %s ORDER BY id LIMIT {limit:d}",
            from_epoch_ms(to_ms + 1), from_epoch_ms(from_ms), after_id,
        )  # fmt: skip
        return [row[0] for row in found]

    def has_chat_without_messages(self, since_ms: int) -> bool:
        """Whether there is a chat with a `last_message_at` since then that is not deleted, and of which no message is
        stored."""
        return bool(
            self._all(
                "SELECT 1 FROM {chats} AS chats WHERE last_message_at >= %s AND deleted_at IS NULL AND NOT EXISTS "
                "(SELECT 1 FROM {messages} AS messages WHERE messages.conversation_id = chats.id) LIMIT 1",
                from_epoch_ms(since_ms),
            )
        )

    def orphans(self, limit: int) -> list[str]:
        """Ids of chats that messages name and that are not there."""
        found = self._all(
            "SELECT DISTINCT conversation_id FROM {messages} WHERE conversation_id IS NOT NULL "
            f"AND conversation_id NOT IN (SELECT id FROM {{chats}}) LIMIT {limit:d}"
        )
        return [row[0] for row in found]

    def groups_to_ask(self, before_ms: int, limit: int) -> dict[str, list[str] | None]:
        """Groups whose participants were never asked for, or not since the group changed and not since `before_ms`;
        with the participants they had then."""
        found = self._all(
            "SELECT chats.id, known.handles FROM {chats} AS chats "
            "LEFT JOIN {participant_reads} AS known ON known.chat_id = chats.id "
            "WHERE chats.is_group AND chats.deleted_at IS NULL AND (known.chat_id IS NULL "
            "OR (chats.updated_at > known.asked_at AND known.asked_at < %s)) "
            f"ORDER BY known.asked_at NULLS FIRST, chats.updated_at DESC LIMIT {limit:d}",
            from_epoch_ms(before_ms),
        )
        return {chat_id: json.loads(handles) if isinstance(handles, str) else handles for chat_id, handles in found}

    def lagging(self, lo_ms: int, hi_ms: int, limit: int) -> dict[str, int]:
        """Chats by id whose `last_message_at`, which is given, is in the stretch, and of which no message of that time
        is there, nor a later one."""
        found = self._all(
            "SELECT id, last_message_at FROM {chats} AS chats WHERE last_message_at >= %s AND last_message_at < %s "
            "AND deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM {messages} AS messages "
            "WHERE messages.conversation_id = chats.id AND messages.cursor_at >= chats.last_message_at "
            f"AND messages.cursor_at >= %s) LIMIT {limit:d}",
            from_epoch_ms(lo_ms), from_epoch_ms(hi_ms), from_epoch_ms(lo_ms),
        )  # fmt: skip
        return {chat_id: to_epoch_ms(at) for chat_id, at in found}

    def missing_from_events(self, since_ms: int, limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
        """What events that came since then tell of and that is not there: ids of chats; and by the ids of their chats,
        the first and the last instant of messages."""
        chats = self._all(
            "SELECT DISTINCT chat_id FROM {webhook_events} WHERE received_at >= %s AND chat_id IS NOT NULL "
            f"AND chat_id NOT IN (SELECT id FROM {{chats}}) LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        # Where an event does not show when its message was written, only a new message tells it by the event's time.
        stretches = self._all(
            "SELECT chat_id, min(coalesce(message_at, occurred_at)), max(coalesce(message_at, occurred_at)) "
            "FROM {webhook_events} AS events WHERE received_at >= %s AND chat_id IS NOT NULL "
            "AND message_id IS NOT NULL AND (message_at IS NOT NULL "
            "OR event_type IN ('message.received', 'message.sent')) "
            "AND NOT EXISTS (SELECT 1 FROM {messages} AS messages WHERE messages.id = events.message_id) "
            f"GROUP BY chat_id LIMIT {limit:d}",
            from_epoch_ms(since_ms),
        )
        return [row[0] for row in chats], {row[0]: (to_epoch_ms(row[1]), to_epoch_ms(row[2])) for row in stretches}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with self._pipeline.sql_client() as client:
            _leave_json(client.native_connection)
            yield client

    def _all(self, query: str, *values: Any) -> list[Any]:
        found = self._asked(query, values, lambda cursor: cursor.fetchall())
        return [] if found is None else list(found)

    def _arrow(self, table: str, query: str, *values: Any) -> pa.Table | None:
        return self._asked(query, values, lambda cursor: _arrow_of(cursor, TABLES[table]))

    def _asked(self, query: str, values: Sequence[Any], answer: Any) -> Any:
        try:
            with self._asking, ExitStack() as at_once:
                client = self._client
                if client is None:
                    client = (self._kept or at_once).enter_context(self._opened())
                    self._client = client if self._kept else None
                names = {table: client.make_qualified_table_name(table) for table in (*TABLES, EVENTS)}
                with client.execute_query(query.format(**names), *values) as cursor:
                    return answer(cursor)
        except (DestinationUndefinedEntity, SqlClientNotAvailable):
            return None


def _arrow_of(cursor: Any, table: Table) -> pa.Table:
    """The rows of a cursor, JSON as text."""
    if type(cursor).iter_arrow is not DBApiCursorImpl.iter_arrow:
        return cursor.arrow()
    import pyarrow as pa

    names, rows = [one[0] for one in cursor.native_cursor.description], cursor.fetchall()
    found = {}
    for field in arrow_schema(table):
        place = names.index(field.name) if field.name in names else None
        values = [None if place is None else row[place] for row in rows]
        found[field.name] = pa.array(values, field.type)
    return pa.table(found)


def _leave_json(connection: Any) -> None:
    """Have JSON come as text: psycopg2 would decode it, and fail at numbers and depths that a server stores."""
    if type(connection).__module__.startswith("psycopg2"):
        from psycopg2.extras import (  # type: ignore[import-untyped]
            register_default_json,
            register_default_jsonb,
        )

        register_default_json(connection, loads=str)
        register_default_jsonb(connection, loads=str)


def _chat(values: dict[str, Any]) -> Chat:
    return Chat(**values | {"extra": Raw((values["extra"] or "").encode())})


def _marks(values: Sequence[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + KEYS_AT_ONCE] for start in range(0, len(values), KEYS_AT_ONCE))
