"""Values are replaced so that every destination can store them: PostgreSQL and DuckDB store them and read them back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import duckdb
import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from msgbubbles.lenient import MAX_DEPTH
from msgbubbles.models import Message
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.buffer import Changes
from msgbubbles.storable import replace_in_json
from msgbubbles.tables import MESSAGES

pytestmark = pytest.mark.slow

AT = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(postgres_server: str) -> Iterator[Any]:
    """Return a cursor on a server, for queries that need no table."""
    with closing(psycopg2.connect(postgres_server)) as opened:
        opened.autocommit = True
        yield opened.cursor()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_long_text_in_json_is_replaced_in_little_memory() -> None:
    text = json.dumps(["x" * 500_000, "\0"])
    tracemalloc.start()
    replaced = replace_in_json(text)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert json.loads(replaced) == ["x" * 500_000, "\ufffd"]
    assert peak_bytes < 10 * len(text)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (r'{"a\u0000": "\u0000\\u0000\\\u0000"}', r'{"a\ufffd": "\ufffd\\u0000\\\ufffd"}'),
        (r'["\ud83d", "\ud83d\ude00", "\ude00\ud83d"]', r'["\ufffd", "\ud83d\ude00", "\ufffd\ufffd"]'),
        ('{"a": 1e400000, "b": -1.5E-20000, "c": 1e308}', '{"a": "1e400000", "b": "-1.5E-20000", "c": 1e308}'),
        (f"[{'9' * 200_000}]", f'["{"9" * 200_000}"]'),
        ('[NaN, -Infinity, "NaN [[[ 1e9999"]', '["NaN", "-Infinity", "NaN [[[ 1e9999"]'),
        (nested(MAX_DEPTH), nested(MAX_DEPTH)),
        (nested(MAX_DEPTH + 1), json.dumps(nested(MAX_DEPTH + 1))),
        (nested(50_000), json.dumps(nested(50_000))),
        ("[" + "[]," * 1000 + "1]", "[" + "[]," * 1000 + "1]"),
    ],
)  # fmt: skip
def test_json_that_no_server_stores_is_replaced(text: str, stored: str, server: Any) -> None:
    changes = Changes()
    message = Message(id="m", text="nul \0", metadata=Raw(text.encode()))
    [row] = build_arrow_table(MESSAGES, [(message, AT)], changes.on_replaced).to_pylist()
    assert (row["text"], row["metadata"], changes.replaced) == ("nul \ufffd", stored, 1)
    check_stored(stored, server)


ODD = st.sampled_from([r"\u0000", r"\ud83d", r"\ude00", r"\\", r"\"", "\0", "[", "}", "é", "1e9999", "NaN"])
SCALARS = st.one_of(
    st.lists(ODD).map(lambda parts: f'"{"".join(parts)}"'),
    st.sampled_from(["1", "-0.5", "1e999", "1e1000", "2E-99999", "9" * 999, "9" * 5000, "NaN", "-Infinity", "null"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner).map(lambda items: f"[{','.join(items)}]"),
        st.tuples(st.lists(ODD), inner).map(lambda pair: f'{{"{"".join(pair[0])}":{pair[1]}}}'),
    ),
)


@given(text=VALUES)
def test_every_destination_stores_the_replaced_json(text: str, server: Any) -> None:
    stored = replace_in_json(text)
    check_stored(stored, server)
    assert replace_in_json(stored) == stored


def check_stored(text: str, server: Any) -> None:
    server.execute("SELECT %s::jsonb, %s::json", [text, text])
    assert server.fetchone()[0] is not None or text == "null"
    assert duckdb.execute("SELECT ?::JSON", [text]).fetchone() == (text,)
    json.loads(text)
