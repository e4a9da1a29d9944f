"""Read each list sequentially, decode its rows as fast as Python can, and insert them as one Arrow table.

It loses rows that share a timestamp with the end of a page, and always reads everything.
"""

from __future__ import annotations

import os
from datetime import datetime

import duckdb
import httpx
import msgspec
import pyarrow as pa
from msgspec import Raw


class Chat(msgspec.Struct):
    id: str
    from_handle: str | None
    remote_handle: str | None
    is_group: bool
    title: str | None
    last_message_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Message(msgspec.Struct):
    id: str
    conversation_id: str
    direction: str
    status: str
    channel: str | None
    text: str | None
    effect: str | None
    reply_to: str | None
    error: Raw
    metadata: Raw
    attachments: Raw
    sender: str | None
    sent_at: datetime | None
    delivered_at: datetime | None
    read_at: datetime | None
    created_at: datetime
    updated_at: datetime


ARROW = {datetime: pa.timestamp("us", tz="UTC"), bool: pa.bool_()}


def read_rows(http: httpx.Client, path: str, model: type, cursor: str) -> list:
    decoder = msgspec.json.Decoder(msgspec.defstruct("Page", [("data", list[model]), ("has_more", bool)]))
    rows: list = []
    params = {"limit": "100"}
    while True:
        page = decoder.decode(http.get(path, params=params).raise_for_status().content)
        rows += page.data
        if not page.has_more:
            return rows
        at = getattr(page.data[-1], cursor)
        params["before"] = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def build_table(model: type, rows: list) -> pa.Table:
    columns = {}
    for field in msgspec.structs.fields(model):
        values = [getattr(row, field.name) for row in rows]
        if field.type is Raw:
            values = [bytes(value).decode() for value in values]
        kinds = {field.type, *getattr(field.type, "__args__", ())}
        columns[field.name] = pa.array(values, next((ARROW[kind] for kind in ARROW if kind in kinds), pa.string()))
    return pa.table(columns)


def main() -> None:
    headers = {"Authorization": f"Bearer {os.environ['BENCH_KEY']}"}
    with (
        httpx.Client(base_url=os.environ["BENCH_URL"], headers=headers, trust_env=False) as http,
        duckdb.connect("floor.duckdb") as database,
    ):
        for name, model, cursor in (("chats", Chat, "last_message_at"), ("messages", Message, "created_at")):
            rows = build_table(model, read_rows(http, name, model, cursor))  # noqa: F841 - DuckDB finds it by name
            database.execute(f"CREATE OR REPLACE TABLE {name} AS FROM rows")


if __name__ == "__main__":
    main()
