"""The tables of all accounts, as queries and as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

from msgbubbles_sync.destinations.union_accounts import build_union, combine
from msgbubbles_sync.sql import quote_name

pytestmark = pytest.mark.slow

WIDE = "CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles.chats AS SELECT 'c1' AS id, 'a' AS title, 7::BIGINT AS seen"
OLD = "CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles.chats AS SELECT 'c1' AS id, 'b' AS title"
OTHER = "CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles.chats AS SELECT 'c1' AS id, '{}'::JSON AS gone"
MARTS = "CREATE SCHEMA marts; CREATE TABLE marts.contact AS SELECT '+1' AS handle"
HIDDEN = (
    "CREATE TABLE msgbubbles._dlt_loads AS SELECT 1 AS a; CREATE TABLE msgbubbles.privacy AS SELECT 1 AS a; "
    "CREATE SCHEMA staging; CREATE TABLE staging.int_thread_messages AS SELECT 1 AS a"
)


def made(folder: Path, **accounts: str) -> dict[str, Path]:
    files = {}
    for account, statements in accounts.items():
        files[account] = folder / f"company_{account}.duckdb"
        files[account].unlink(missing_ok=True)
        with duckdb.connect(str(files[account])) as connection:
            connection.execute(statements)
    return files


@pytest.fixture
def combined(tmp_path: Path) -> Callable[..., Callable[[str], list[Any]]]:
    def run(files: Mapping[str, Path], own: str = "north") -> Callable[[str], list[Any]]:
        database = tmp_path / "company.duckdb"
        combine(files, own, database, tmp_path / "combined.json", {})

        def query(sql: str) -> list[Any]:
            with duckdb.connect(str(database), read_only=True) as connection:
                return connection.execute(sql).fetchall()

        return query

    return run


def test_union_has_the_account_first_and_null_for_missing_columns(tmp_path: Path, combined: Callable[..., Any]) -> None:
    query = combined(made(tmp_path, north=OLD, south=f"{WIDE}; {MARTS}; {HIDDEN}", west=OTHER))
    assert query("SELECT account, id, title, seen, gone FROM msgbubbles.chats ORDER BY account") == [
        ("north", "c1", "b", None, None), ("south", "c1", "a", 7, None), ("west", "c1", None, None, "{}"),
    ]  # fmt: skip
    assert query("SELECT column_name, column_type FROM (DESCRIBE msgbubbles.chats)") == [
        ("account", "VARCHAR"), ("id", "VARCHAR"), ("title", "VARCHAR"), ("seen", "BIGINT"), ("gone", "JSON"),
    ]  # fmt: skip
    assert query("FROM marts.contact") == [("south", "+1")]
    assert query("FROM msgbubbles.accounts ORDER BY account") == [("north",), ("south",), ("west",)]
    tables = query("SELECT schema_name || '.' || table_name FROM duckdb_tables() ORDER BY ALL")
    assert tables == [("marts.contact",), ("msgbubbles.accounts",), ("msgbubbles.chats",)]


def test_combined_tables_have_the_descriptions_of_the_accounts(tmp_path: Path, combined: Callable[..., Any]) -> None:
    comments = "; COMMENT ON TABLE msgbubbles.chats IS 'Chats.'; COMMENT ON COLUMN msgbubbles.chats.seen IS 'Seen.'"
    query = combined(made(tmp_path, north=OLD, south=f"{WIDE}{comments}"))
    assert query("SELECT comment FROM duckdb_tables() WHERE table_name = 'chats'") == [("Chats.",)]
    described = query("SELECT column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL")
    assert described == [("seen", "Seen.")]


def test_accounts_may_have_reserved_database_names(tmp_path: Path, combined: Callable[..., Any]) -> None:
    names = dict.fromkeys(("temp", "system", "memory", "main", "select", "msgbubbles_2", "marts"), WIDE)
    query = combined(made(tmp_path, **names), "temp")
    assert [name for (name,) in query("SELECT account FROM msgbubbles.chats ORDER BY account")] == sorted(names)


def test_union_keeps_the_order_of_existing_columns() -> None:
    """PostgreSQL replaces a view only by one that begins as it does."""
    key = ("msgbubbles", "chats")
    before = {key: ["account", "id", "title", "gone"]}
    columns = {"north": {key: ["id", "new", "title"]}, "south": {key: ["newer", "title", "id", "new"]}}
    table = build_union(columns, lambda account, *_: account, before)[key]
    assert table.columns == ["account", "id", "title", "newer", "new"]
    assert table.query == (
        """SELECT 'north' AS account, "id", "title", (SELECT "newer" FROM south LIMIT 0) AS "newer", "new" """
        """FROM north UNION ALL SELECT 'south' AS account, "id", "title", "newer", "new" FROM south"""
    )


def test_combined_file_is_replaced_only_after_an_account_changed(tmp_path: Path, combined: Callable[..., Any]) -> None:
    files = made(tmp_path, north=WIDE, south=WIDE)
    database = tmp_path / "company.duckdb"
    combined(files)
    database.chmod(0o640)
    before = database.stat()
    combined(files)
    assert database.stat() == before
    with duckdb.connect(str(database), read_only=True) as reader:
        query = combined(made(tmp_path, north=OLD) | {"south": files["south"]})
        assert reader.execute("SELECT DISTINCT title FROM msgbubbles.chats").fetchall() == [("a",)], "as it was opened"
    assert query("SELECT title FROM msgbubbles.chats ORDER BY title") == [("a",), ("b",)]
    assert database.stat().st_mode & 0o777 == 0o440, "readers stay, and nobody writes"
    del files["south"]
    assert combined(files)("FROM msgbubbles.accounts") == [("north",)]


def test_leftover_copies_of_a_killed_process_are_removed(tmp_path: Path, combined: Callable[..., Any]) -> None:
    (tmp_path / ".company.duckdb.1.publishing").write_text("rows")
    (tmp_path / ".company.duckdb.1.publishing.wal").write_text("rows")
    (tmp_path / ".company.duckdb.1.publishing.tmp").mkdir()
    (tmp_path / ".company.duckdb.1.publishing.tmp" / "spilled").write_text("rows")
    combined(made(tmp_path, north=WIDE))
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("trouble", ["damaged", "open"])
def test_account_with_an_unreadable_file_stays_as_it_was(
    tmp_path: Path, combined: Callable[..., Any], trouble: str
) -> None:
    files = made(tmp_path, north=OLD, south=f"{WIDE}; {MARTS}")
    combined(files)
    files |= made(tmp_path, north=OLD.replace("'b'", "'c'"))
    whole = files["south"].read_bytes()
    if trouble == "damaged":
        files["south"].write_bytes(b"no database")
    writer = duckdb.connect(str(files["south"])) if trouble == "open" else None
    database = tmp_path / "company.duckdb"
    query = combined(files)
    assert query("SELECT account, title FROM msgbubbles.chats ORDER BY account") == [("north", "c"), ("south", "a")]
    assert query("FROM marts.contact") == [("south", "+1")]
    assert query("FROM msgbubbles.accounts ORDER BY account") == [("north",), ("south",)]
    before = database.stat().st_ino
    if writer:
        writer.close()
    else:
        files["south"].write_bytes(whole)
    combined(files)
    assert database.stat().st_ino != before, "it is looked at again"

    files["north"].write_bytes(b"no database")
    with pytest.raises(duckdb.Error):
        combined(files)
    assert query("SELECT title FROM msgbubbles.chats WHERE account = 'north'") == [("c",)]


def test_names_of_tables_and_columns_are_quoted() -> None:
    key = ("msgbubbles", 'a "table"')
    columns = {"north": {key: ['a "column"']}}
    query = build_union(columns, lambda _account, _schema, table: quote_name(table))[key].query
    with duckdb.connect() as connection:
        connection.execute('CREATE TABLE "a ""table""" AS SELECT 1 AS "a ""column"""')
        assert connection.execute(query).fetchall() == [("north", 1)]
