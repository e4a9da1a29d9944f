"""Rows as no strict API sends them: none affects another, on DuckDB and on PostgreSQL, and no link is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import psycopg2
import pytest

from helpers.job import Job
from msgbubbles_sync.sandbox import NewMessage

AT = datetime(2026, 3, 1, tzinfo=UTC)
LINK = "https://files.example/canary?signature=canary"
DEEP = {"deeper": "[" * 1500 + "]" * 1500, "deep": '{"a":' * 500 + "1" + "}" * 500}
# By the text of a message: what is in the place of its metadata, as JSON or not.
METADATA = {
    "nan": "NaN", "large": '{"a": 1e999, "b": 1e200000, "c": %s}' % ("9" * 5000), "raw": '{"a": "two\nlines"}', **DEEP,
    "quote": '{"a": "5" tall"}',
}  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "zero": {"created_at": "0001-01-01T00:00:00Z", "delivered_at": "1970-01-01T00:00:00.000Z", "read_at": ""},
    "impossible": {"created_at": "0001-01-01T00:00:00+14:00"},
    "never": {"updated_at": "9999-12-31T23:59:59-14:00"},
    "files": {"attachments": {"id": "a1", "url": LINK, "more": [LINK]}, "media_url": LINK},
    "rejected files": {"attachments": [{"url": LINK}], "id": None},
    "twin": {"id": "one-id"},
    "other twin": {"id": "one-id"},
    "edited": {},
}
REJECTED = {
    "not JSON", "created_at is not a timestamp", "no usable id", "the id is also that of one of another chat",
}  # fmt: skip
Query = Callable[[str], list[tuple[Any, ...]]]


def on_duckdb(job: Job) -> Query:
    def query(sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(job.database), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    return query


def on_postgres(job: Job, address: str) -> Query:
    job.environment = {"DESTINATION__POSTGRES__CREDENTIALS": address}

    def query(sql: str) -> list[tuple[Any, ...]]:
        with psycopg2.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    return query


@pytest.mark.parametrize("destination", ["duckdb", "postgres"])
def test_odd_rows_are_loaded_or_rejected_and_the_rest_is_loaded(
    new_job: Callable[..., Job], destination: str, request: pytest.FixtureRequest
) -> None:
    job = new_job(chats=0)
    account = job.server.account
    fields = dict(FIELDS)
    for number, text in enumerate([*METADATA, *FIELDS, *(f"sound {number}" for number in range(100))]):
        at = AT + timedelta(hours=number)
        chat_id = account.add_chat("+14155550100", f"+1415555{number:04}", at)
        files = [("a.jpg", "image/jpeg", 1)] if text == "edited" else []
        account.add_message(NewMessage(chat_id, "inbound", text, at, "received", attachments=files, id=f"m{number}"))

    def shown(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | fields.get(row["text"], {}) if kind == "messages" else row

    def damaged(_path: str, body: bytes) -> bytes:
        for text, metadata in METADATA.items():
            at = body.find(b'"text":"%s"' % text.encode())
            place = body.find(b'"metadata":null', at)
            if at >= 0:
                body = body[:place] + b'"metadata":' + metadata.encode() + body[place + len(b'"metadata":null') :]
        return b"\xef\xbb\xbf" + body

    job.server.knobs.transform_row, job.server.knobs.transform_body = shown, damaged
    on_server = destination == "postgres"
    query = on_postgres(job, request.getfixturevalue("postgres_address")) if on_server else on_duckdb(job)
    first = job.run("--destination", destination, status=3).summary
    assert {name: one["rejected"] for name, one in first["streams"].items()} == {
        "numbers": 0,
        "messages": 4,
        "chats": 0,
    }
    assert first["streams"]["messages"]["odd"] == 5
    texts = {text for (text,) in query("SELECT text FROM msgbubbles.messages")}
    lost = {"impossible", "quote", "rejected files", "twin", "other twin"}
    assert {*METADATA, *FIELDS} - lost <= texts
    assert len(texts & {"twin", "other twin"}) == 1
    assert sum(text.startswith("sound") for text in texts) == 100
    assert {reason for (reason,) in query("SELECT reason FROM msgbubbles.rejected_rows")} == REJECTED
    [*odd] = query("SELECT text, metadata FROM msgbubbles.messages WHERE metadata IS NOT NULL")
    metadata = {text: json.loads(one) if isinstance(one, str) and destination == "duckdb" else one for text, one in odd}
    assert {text: one for text, one in metadata.items() if text in DEEP} == DEEP
    assert metadata["large"]["a"] == "1e999"
    times = "cursor_at, delivered_at, read_at, updated_at"
    [zero] = query(f"SELECT {times} FROM msgbubbles.messages WHERE text = 'zero'")
    assert zero[:3] == (query("SELECT sent_at FROM msgbubbles.messages WHERE text = 'zero'")[0][0], None, None)
    assert query("SELECT updated_at FROM msgbubbles.messages WHERE text = 'never'") == [(None,)]

    fields["edited"] = {"attachments": [], "updated_at": "2026-03-02T00:00:00.000Z"}
    job.environment |= {"SOURCES__MSGBUBBLES__REFRESH_MESSAGES": '[{"every_hours": 0.0001}]'}
    again = job.run("--destination", destination, status=3).summary
    [(removed_at,)] = query("SELECT removed_at FROM msgbubbles.attachments WHERE filename = 'a.jpg'")
    assert removed_at is not None
    changed = {table: one["new"] + one["changed"] for table, one in again["tables"].items()}
    assert {table: count for table, count in changed.items() if count} == {"messages": 1, "attachments": 1}
    for table in ("messages", "attachments", "rejected_rows"):
        assert "canary" not in repr(query(f"SELECT * FROM msgbubbles.{table}"))
