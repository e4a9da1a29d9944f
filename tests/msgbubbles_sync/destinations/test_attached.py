"""The views of all accounts on a server and in a lake, with concurrent writers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pytest

from helpers.context import build_destination
from helpers.sizes import nightly
from msgbubbles_sync.destinations import server
from msgbubbles_sync.destinations.attached import Attached
from msgbubbles_sync.destinations.claims import explain_same_numbers
from msgbubbles_sync.destinations.server import build_config, loaded_extensions
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

Of = Callable[..., Attached]


@pytest.fixture(params=["postgres", "ducklake"])
def of(request: pytest.FixtureRequest, postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Of:
    """Return a function that builds the destination of an account by its name."""
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__CATALOG", postgres_address)
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__BUCKET_URL", str(tmp_path / "lake"))

    def make(account: str | None) -> Attached:
        workspace = Workspace.from_path(tmp_path / f"company.{request.param}", request.param, account)
        workspace.make_folders()
        found = build_destination(workspace)
        assert isinstance(found, Attached)
        return found

    return make


def run_statements(of: Attached, *statements: str) -> None:
    with of.open_writer() as connection:
        for statement in (f"CREATE SCHEMA IF NOT EXISTS {of.write_schema}", *statements):
            connection.execute(statement.replace("@", f"{of.write_schema}."))


def begun(of: Of, account: str) -> Attached:
    found = of(account)
    found.prepare()
    run_statements(found, f"CREATE TABLE @chats AS SELECT '{account}' || 1 AS id")
    return found


def shown(of: Attached, table: str = "chats") -> list[Any]:
    """Return the rows of a table as a reader sees them who knows nothing of accounts."""
    with of._attach("READ_ONLY") as connection:
        return sorted(connection.execute(f"FROM msgbubbles.{table}").fetchall())


def test_job_of_another_machine_is_refused_while_one_is_active(
    of: Of, postgres_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOCK_WAIT_SECONDS", 0.0)
    here, there = of(None), of(None)
    key = f"hashtext('msgbubbles job'), hashtext('{here._lock_scope}{here.dataset}')"
    with here.lock(), of("north").lock():  # an account with schemas of its own
        with (
            pytest.raises(AnotherJobRunsError, match="another job is active on this warehouse") as refused,
            there.lock(),
        ):
            pass
        ended = re.search(r"pg_terminate_backend\((\d+)\)", str(refused.value))
        assert ended is not None
        elsewhere = psycopg2.connect(postgres_address, dbname="postgres")
        with closing(elsewhere), elsewhere.cursor() as cursor, here._attach_server() as connection:
            cursor.execute(f"SELECT pg_advisory_xact_lock_shared({key})")
            holders = server.query(connection, server.LOCK_HOLDER.format(key=key))
            assert [pid for pid, *_ in holders] == [int(ended[1])], "not of the same lock in another database"
            horizon = f"SELECT backend_xmin::text AS x FROM pg_stat_activity WHERE pid = {ended[1]}"
            assert server.query(connection, horizon) == [(None,)], "it keeps no deleted row"
            assert server.query(connection, f"SELECT {ended[0]} AS is_ended") == [(True,)]
        monkeypatch.setattr(server, "LOCK_WAIT_SECONDS", 9.0)  # the server takes a moment to end the session
        with there.lock():
            pass
    with there.lock():
        pass


def test_lock_whose_session_has_ended_is_taken_again(
    of: Of, postgres_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOCK_WAIT_SECONDS", 0.0)
    own, other = of(None), of(None)

    def end_sessions() -> None:  # as when the server is restarted
        with closing(psycopg2.connect(postgres_address)) as admin, admin, admin.cursor() as cursor:
            database = "SELECT oid FROM pg_database WHERE datname = current_database()"
            locks = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = ({database})"
            cursor.execute(f"SELECT count(pg_terminate_backend(pid)) FROM ({locks}) AS holders")
            assert cursor.fetchone() == (1,)

    with own.lock():
        end_sessions()
        own.keep_lock()
        with pytest.raises(AnotherJobRunsError), other.lock():
            pass
        end_sessions()
        with other.lock(), pytest.raises(AnotherJobRunsError, match="another job is active on this warehouse"):
            run_statements(own)
        run_statements(own)

    def fail_without_a_session() -> None:
        with own.lock():
            end_sessions()
            raise ConnectionError

    with pytest.raises(ConnectionError):  # and the process does not abort
        fail_without_a_session()


def test_tables_stay_open_through_steps_a_lost_server_and_an_error(of: Of, postgres_address: str) -> None:
    own = begun(of, "north")
    sessions = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def list_sessions(what: str = "pid") -> set[int]:
        with closing(psycopg2.connect(postgres_address)) as admin, admin, admin.cursor() as cursor:
            cursor.execute(f"SELECT {what} {sessions}")
            return {each for (each,) in cursor.fetchall()}

    def read(table: str) -> list[Any]:
        with own.open_reader() as connection:
            return connection.execute(f"FROM msgbubbles.{table}").fetchall()

    with own.stay_open():
        assert read("chats") == [("north1",)]
        run_statements(of("north"), "CREATE TABLE @zero AS SELECT 0 AS id")  # the job of another machine
        with own.lock():
            assert read("zero") == [(0,)]
    with own.lock(), own.stay_open():
        with own._open() as first, own._open() as second:
            for connection, table in ((first, "one"), (second, "two")):
                connection.execute(f"CREATE TABLE {own.write_schema}.{table} AS SELECT 1 AS id")
        opened = list_sessions()
        for table in ("one", "two"):
            assert read(table) == [(1,)]
            run_statements(own, f"DROP TABLE @{table}")
        assert own.exists()
        assert list_sessions() <= opened
        with own.rewrite_rows({"erasures"}) as connection:
            connection.execute("CREATE TABLE msgbubbles.erasures AS SELECT 1 AS people")
        assert read("erasures") == [(1,)]
        assert len(list_sessions()) > 1, "the lock's is not the only one"
        list_sessions("pg_terminate_backend(pid)")
        run_statements(own, "CREATE TABLE @three AS SELECT 3 AS id")
        assert read("three") == [(3,)]
        run_statements(of("north"), "DROP TABLE @three")
        with pytest.raises(duckdb.Error):
            read("three")
        run_statements(own, "CREATE TABLE IF NOT EXISTS @three AS SELECT 4 AS id")
        assert read("three") == [(4,)]
    deadline = time.monotonic() + 5  # the server takes a moment to notice
    while list_sessions() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list_sessions()


def test_signature_of_an_extension_is_checked_until_it_is_loaded(of: Of) -> None:
    names = ["postgres_scanner"] if of(None).title == "postgres" else ["postgres_scanner", "ducklake"]
    loaded_extensions.clear()
    assert build_config(names) == {}
    with of(None).open_writer():
        assert build_config(names) == {"allow_unsigned_extensions": "true"}
    assert build_config([*names, "httpfs"]) == {}


def test_later_tables_and_columns_appear_in_the_views(of: Of) -> None:
    north, south = begun(of, "north"), begun(of, "south")
    for one in (north, south):
        one.publish()
    assert shown(north) == [("north", "north1"), ("south", "south1")]
    with north.open_reader() as connection:
        assert connection.execute("FROM msgbubbles.chats").fetchall() == [("north1",)]
    assert explain_same_numbers(north) is None
    more = (
        "CREATE TABLE @later AS SELECT 1 AS id",
        "CREATE TABLE @numbers AS SELECT '+14155550100' AS handle",
        "ALTER TABLE @chats ADD COLUMN more VARCHAR",
    )
    for one, both in ((south, False), (north, True)):
        run_statements(one, *more, "UPDATE @chats SET more = 'more'")
        one.publish()
        assert shown(one) == [("north", "north1", "more" if both else None), ("south", "south1", "more")]
        assert shown(one, "later") == [("north", 1)] * both + [("south", 1)]
    assert "north and south have the same numbers" in (explain_same_numbers(north) or "")
    with north.open_writer() as connection:
        connection.execute(f"DROP SCHEMA warehouse.{south.dataset} CASCADE")
    north.publish()
    assert (shown(north), shown(north, "accounts")) == ([("north", "north1", "more")], [("north",)])


def test_outdated_views_are_replaced_after_a_concurrent_job(of: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    north, south = begun(of, "north"), of("south")
    show = north._replace_views
    overtaken: list[bool] = []

    def show_late(connection: Any, views: Any) -> None:
        if not overtaken:
            overtaken.append(True)
            begun(of, "south").publish()
        show(connection, views)

    monkeypatch.setattr(north, "_replace_views", show_late)
    north.publish()
    assert shown(north) == [("north", "north1"), ("south", "south1")]
    assert shown(south, "accounts") == [("north",), ("south",)]


def test_first_jobs_of_four_accounts_run_concurrently(of: Of) -> None:
    names = ["east", "north", "south", "west"]

    def run(name: str) -> None:
        begun(of, name).publish()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, names))
    assert shown(of("north")) == [(name, f"{name}1") for name in names]


def test_unnamed_account_and_named_accounts_do_not_mix(of: Of) -> None:
    alone = of(None)
    alone.prepare()
    run_statements(alone, "CREATE TABLE @chats AS SELECT 'c1' AS id")
    with pytest.raises(UsageError, match="holds one account, which has no name"):
        of("north").prepare()
    run_statements(alone, "DROP TABLE @chats")
    begun(of, "north").publish()
    with pytest.raises(UsageError, match="shows several accounts"):
        alone.prepare()


# The statements are the same in a lake.
@pytest.mark.parametrize("of", ["postgres", pytest.param("ducklake", marks=nightly)], indirect=True)
def test_old_states_of_dlt_are_deleted_before_a_run(of: Of) -> None:
    account = begun(of, "north")
    states = "SELECT name AS pipeline_name, n::VARCHAR AS _dlt_load_id, '{}' AS state FROM range(100, 125) AS ids (n)"
    run_statements(
        account,
        "CREATE TABLE @_dlt_version AS "
        "SELECT 'msgbubbles' AS schema_name, '{\"tables\": {}}' AS schema, current_timestamp AS inserted_at",
        f"CREATE TABLE @_dlt_pipeline_state AS {states}, (VALUES ('chats'), ('groups')) AS pipelines (name)",
    )
    account.prepare()
    with account.open_reader() as connection:
        query = "SELECT pipeline_name, min(_dlt_load_id), count(*) FROM msgbubbles._dlt_pipeline_state GROUP BY ALL"
        assert sorted(connection.execute(query).fetchall()) == [("chats", "115", 10), ("groups", "115", 10)]
