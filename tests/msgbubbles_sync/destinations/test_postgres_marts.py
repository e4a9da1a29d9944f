"""Marts on a PostgreSQL server: built in a schema of their own, and copied to readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest

from helpers import postgres
from helpers.context import build_destination
from msgbubbles_sync.destinations import server
from msgbubbles_sync.destinations.postgres import Postgres
from msgbubbles_sync.errors import RefusedMartsError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres.running(tmp_path_factory.mktemp("postgres") / "server") as found:
        yield found


@pytest.fixture
def execute(address: str) -> Iterator[Callable[..., Rows]]:
    """Return a function that executes statements on the server as an analyst, and returns the rows of the last one."""
    with closing(psycopg2.connect(address)) as connection:
        connection.autocommit = True

        def run(*statements: str) -> Rows:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

        run(*(f"DROP SCHEMA IF EXISTS {schema} CASCADE" for schema in ("marts_build", "marts", "mine")))
        run("CREATE SCHEMA marts_build", "CREATE SCHEMA mine")
        run("CREATE TABLE marts_build.daily (chat_id text, n bigint, share double precision)")
        run("INSERT INTO marts_build.daily SELECT 'c' || n, n, nullif(n, 2) / 3.0 FROM generate_series(1, 5) AS n")
        run("CREATE VIEW marts_build.thread AS SELECT chat_id, '' AS title, n FROM marts_build.daily")
        run(
            "COMMENT ON TABLE marts_build.daily IS 'A row per day.'",
            "COMMENT ON COLUMN marts_build.daily.n IS 'Messages.'",
        )
        yield run


@pytest.fixture
def publish(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that publishes a new build, except for the held marts."""
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", address)
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "postgres")
    workspace.make_folders()

    def run(*held: str) -> None:
        destination = build_destination(workspace)
        assert isinstance(destination, Postgres)
        with destination.open_build():
            pass
        destination.publish(held)

    return run


def test_unchanged_rows_are_not_written_and_views_stay(
    execute: Callable[..., Rows], publish: Callable[..., None]
) -> None:
    publish()
    execute("CREATE VIEW mine.report AS SELECT chat_id, n FROM marts.thread")
    before: dict[str, str] = dict(execute("SELECT chat_id, xmin::text FROM marts.daily"))
    execute(
        "UPDATE marts_build.daily SET n = 20 WHERE chat_id = 'c2'",
        "DELETE FROM marts_build.daily WHERE chat_id = 'c1'",
        "INSERT INTO marts_build.daily VALUES ('c6', NULL, NULL), ('', 0, 0)",
    )
    publish()
    for mart in ("daily", "thread"):
        difference = f"SELECT * FROM marts_build.{mart} EXCEPT ALL SELECT * FROM marts.{mart}"
        assert execute(difference) == []
        assert execute(f"SELECT (SELECT count(*) FROM marts_build.{mart}) - (SELECT count(*) FROM marts.{mart})") == [
            (0,)
        ]
    after: dict[str, str] = dict(execute("SELECT chat_id, xmin::text FROM marts.daily"))
    assert {chat for chat in after if after[chat] == before.get(chat)} == {"c3", "c4", "c5"}
    assert execute("SELECT n FROM mine.report WHERE chat_id = 'c2'") == [(20,)]
    [described] = execute(
        "SELECT obj_description('marts.daily'::regclass), col_description('marts.daily'::regclass, 2)"
    )
    assert described == ("A row per day.", "Messages.")


def test_held_mart_keeps_its_rows_until_it_passes(execute: Callable[..., Rows], publish: Callable[..., None]) -> None:
    publish("thread")
    assert execute("SELECT to_regclass('marts.thread')") == [(None,)], "there was none before"
    publish()
    execute("UPDATE marts_build.daily SET n = -1")
    publish("daily")
    assert execute("SELECT sum(n)::int FROM marts.daily") == [(15,)]
    assert execute("SELECT sum(n)::int FROM marts.thread") == [(-5,)]
    publish()
    assert execute("SELECT sum(n)::int FROM marts.daily") == [(-5,)]


def test_open_reader_neither_waits_nor_blocks(
    execute: Callable[..., Rows], publish: Callable[..., None], address: str
) -> None:
    publish()
    with closing(psycopg2.connect(address)) as reader, reader.cursor() as cursor:
        reader.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT sum(n)::int FROM marts.daily")
        execute("UPDATE marts_build.daily SET n = 0")
        publish()
        assert execute("SELECT sum(n)::int FROM marts.daily") == [(0,)]
        cursor.execute("SELECT sum(n)::int FROM marts.daily")
        assert cursor.fetchall() == [(15,)]


BROKEN_VIEW = """CREATE OR REPLACE VIEW marts_build.thread
AS SELECT chat_id, '' AS title, 6 / (n + 1) AS n FROM marts_build.daily"""


@pytest.mark.parametrize("fault", ["ALTER TABLE marts.thread ADD CHECK (n >= 0)", BROKEN_VIEW])
def test_mart_that_cannot_be_copied_fails_alone(
    fault: str, execute: Callable[..., Rows], publish: Callable[..., None]
) -> None:
    publish()
    execute(fault, "UPDATE marts_build.daily SET n = -1")
    with pytest.raises(RefusedMartsError, match="could not be copied to readers: thread;"):
        publish()
    assert execute("SELECT sum(n)::int FROM marts.daily") == [(-5,)]
    assert execute("SELECT sum(n)::int FROM marts.thread") == [(15,)], "as it was"
    execute("UPDATE marts_build.daily SET n = 2")
    publish()
    assert execute("SELECT sum(n)::int FROM marts.thread") == [(10,)]


def test_changed_columns_keep_views_that_do_not_use_them(
    execute: Callable[..., Rows], publish: Callable[..., None]
) -> None:
    execute("CREATE SCHEMA marts", "CREATE VIEW marts.daily AS SELECT 1 AS n")  # as of an earlier release
    publish()
    execute(
        "CREATE VIEW mine.chats AS SELECT chat_id FROM marts.daily",
        "CREATE VIEW mine.lost AS SELECT n FROM marts.daily",
    )
    execute(
        "DROP VIEW marts_build.thread",
        "ALTER TABLE marts_build.daily DROP COLUMN n, ADD COLUMN first_day date DEFAULT '2026-01-02'",
    )
    publish()
    assert execute("SELECT chat_id FROM mine.chats ORDER BY 1") == [(f"c{n}",) for n in range(1, 6)]
    assert execute("SELECT to_regclass('mine.lost')") == [(None,)]
    assert execute("SELECT DISTINCT first_day::text FROM marts.daily") == [("2026-01-02",)]


def test_rows_that_are_there_twice_are_copied_twice(execute: Callable[..., Rows], publish: Callable[..., None]) -> None:
    publish()
    execute("INSERT INTO marts_build.daily SELECT * FROM marts_build.daily")
    publish()
    assert execute("SELECT count(*)::int, sum(n)::int FROM marts.daily") == [(10, 30)]
    execute("DELETE FROM marts_build.daily WHERE ctid > '(0,5)'")
    publish()
    assert execute("SELECT count(*)::int, sum(n)::int FROM marts.daily") == [(5, 15)]


def test_readers_wait_for_seconds_while_columns_change(
    execute: Callable[..., Rows], publish: Callable[..., None], address: str
) -> None:
    publish()
    execute("ALTER TABLE marts_build.daily ADD COLUMN first_day date")
    with closing(psycopg2.connect(address)) as analyst, ThreadPoolExecutor(1) as pool:
        analyst.cursor().execute("SELECT * FROM marts.daily")  # and leaves the transaction open
        publishing = pool.submit(publish)
        waiting: Rows = []
        while not waiting:
            assert not publishing.done()
            waiting = execute("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")
        execute("SET statement_timeout = '10s'", "SELECT count(*) FROM marts.daily")
        analyst.rollback()
        publishing.result(timeout=60)
    assert execute("SELECT count(first_day)::int, sum(n)::int FROM marts.daily") == [(0, 15)]


@pytest.mark.parametrize("fault", ["connection", "statement timeout", "permission"])
def test_mart_that_cannot_be_read_stops_others_only_if_the_connection_is_lost(
    execute: Callable[..., Rows], publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    publish()
    monkeypatch.setenv("SYNC__STATEMENT_TIMEOUT_SECONDS", "2" if fault == "statement timeout" else "60")
    execute("UPDATE marts_build.daily SET n = 0", "CREATE SCHEMA IF NOT EXISTS slow")
    execute("CREATE OR REPLACE FUNCTION slow.wait() RETURNS text LANGUAGE sql AS $$ SELECT pg_sleep(30)::text $$")
    # The last mart by name, so that rows of the others are written before.
    execute("CREATE VIEW marts_build.zones AS SELECT slow.wait() AS zone")
    if fault == "permission":
        execute(
            "DROP ROLE IF EXISTS nobody_here",
            "CREATE ROLE nobody_here",
            "GRANT ALL ON SCHEMA marts_build TO nobody_here",
        )
        execute(
            "CREATE TABLE mine.secret (zone text)",
            "CREATE OR REPLACE VIEW marts_build.zones AS SELECT zone FROM mine.secret",
        )
        execute("ALTER VIEW marts_build.zones OWNER TO nobody_here")
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        if fault == "connection":
            sleeping = "FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            while not execute(f"SELECT pid {sleeping}"):
                assert not publishing.done()
            execute(f"SELECT pg_terminate_backend(pid) {sleeping}")
        with pytest.raises(duckdb.Error if fault == "connection" else RefusedMartsError) as error:
            publishing.result(timeout=60)
    message = server.explain(str(error.value), "postgres") if fault == "connection" else str(error.value)
    assert ("connection to the server was lost" if fault == "connection" else "readers: zones;") in (message or "")
    total = 15 if fault == "connection" else 0
    assert execute("SELECT sum(n)::int FROM marts.daily") == [(total,)], "without a connection, all marts or none"
    execute("DROP VIEW marts_build.zones", "DROP OWNED BY nobody_here" if fault == "permission" else "SELECT 1")
    publish()
    assert execute("SELECT sum(n)::int FROM marts.daily") == [(0,)]


def test_statistics_of_a_table_that_is_empty_now_are_removed(
    execute: Callable[..., Rows], publish: Callable[..., None], tmp_path: Path
) -> None:
    publish()
    execute("ANALYZE marts.daily", "ANALYZE marts_build.daily", "TRUNCATE marts.daily")
    build_destination(Workspace.from_path(tmp_path / "company.duckdb", "postgres")).remove_old_versions()
    quoted = "SELECT schemaname FROM pg_stats WHERE tablename = 'daily' AND attname = 'chat_id'"
    assert execute(quoted) == [("marts_build",)], "of the other table they are renewed"
