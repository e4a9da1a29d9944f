"""Queries of stored rows, on DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from msgbubbles.source.stored import Warehouse

FROM_MS, TO_MS = 1_000, 2_000
# id, created_at and last_message_at in milliseconds, and whether the chat was deleted.
CHATS = [
    ("no times", None, None, False),
    ("no latest message", 0, None, False),
    ("ends before", 0, FROM_MS - 1, False),
    ("ends at its begin", 0, FROM_MS, False),
    ("begins at its end", TO_MS, None, False),
    ("begins after", TO_MS + 1, None, False),
    ("deleted", None, None, True),
]


class Client:
    """The part of dlt's client that the queries use."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.native_connection = connection

    def make_qualified_table_name(self, table: str) -> str:
        return table

    @contextmanager
    def execute_query(self, query: str, *values: Any) -> Iterator[duckdb.DuckDBPyConnection]:
        yield self.native_connection.execute(query.replace("%s", "?"), list(values))


@pytest.fixture
def warehouse() -> Iterator[Warehouse]:
    with duckdb.connect() as connection:
        times = "created_at TIMESTAMPTZ, last_message_at TIMESTAMPTZ, deleted_at TIMESTAMPTZ"
        connection.execute(f"CREATE TABLE chats (id VARCHAR, {times})")
        time = "make_timestamptz(? * 1000::BIGINT)"
        insert = f"INSERT INTO chats VALUES (?, {time}, {time}, if(?, now(), NULL))"
        connection.executemany(insert, [list(row) for row in CHATS])
        yield Warehouse(lambda: nullcontext(Client(connection)))


def test_chat_without_a_time_may_have_messages_at_any_time(warehouse: Warehouse) -> None:
    alive = ["begins at its end", "ends at its begin", "no latest message", "no times"]
    assert warehouse.chats_alive_at(FROM_MS, TO_MS, "", 10) == alive
    assert warehouse.chats_alive_at(FROM_MS, TO_MS, "ends at its begin", 1) == ["no latest message"]


def test_rows_are_found_by_keys_of_any_characters() -> None:
    odd = ['"', "'", "\\", ",", "[", "\0", "\x1f", "\n", "%s", "{keys}", "ü😀", ""]
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE chats AS SELECT unnest(?) AS id, NULL::TIMESTAMPTZ AS from_event_at", [odd])
        warehouse = Warehouse(lambda: nullcontext(Client(connection)))
        found = warehouse.rows_with("chats", "id", [*odd, "another"])
        assert found is not None
        assert sorted(found.column("id").to_pylist()) == sorted(odd)
        assert sorted(warehouse.read_chats(["another", *odd])) == sorted(odd)


def test_chats_that_paging_does_not_find_are_those_without_a_time(warehouse: Warehouse) -> None:
    assert set(warehouse.chats_without_time(10)) == {
        "no times",
        "no latest message",
        "begins at its end",
        "begins after",
    }
    assert warehouse.chats_between(FROM_MS - 1, FROM_MS) == {"ends before"}
    assert warehouse.chats_between(FROM_MS - 1, FROM_MS + 1) == {"ends before", "ends at its begin"}


def test_chat_that_only_an_event_shows_counts_as_not_stored(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warehouse._open_client() as client:
        connection = client.native_connection
        connection.execute("ALTER TABLE chats ADD COLUMN from_event_at TIMESTAMPTZ")
        connection.execute("UPDATE chats SET from_event_at = now() WHERE id IN ('no times', 'ends before')")
        connection.execute("CREATE TABLE messages (conversation_id VARCHAR, from_event_at TIMESTAMPTZ)")
        connection.execute("INSERT INTO messages VALUES ('no times', now()), ('deleted', NULL)")
    assert warehouse.chats_between(FROM_MS - 1, FROM_MS + 1) == {"ends at its begin"}
    assert "no times" not in [*warehouse.chats_without_time(10), *warehouse.chats_alive_at(FROM_MS, TO_MS, "", 10)]
    assert warehouse.orphans(10) == ["no times"]
    ids = ["no times", "no latest message"]
    assert warehouse.read_chats(ids) == ids[1:]
    rows = pa.table({"id": ids, "from_event_at": pa.array([1, None], pa.timestamp("us", "UTC"))})
    monkeypatch.setattr(warehouse, "rows_with", lambda *_: rows)
    assert warehouse.rows("chats", rows) == rows.slice(1)
