"""Erasure, policy changes and retention, for one of several accounts, on each destination."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import duckdb
import psycopg2
import pytest

from helpers.context import build_context, build_destination
from helpers.sizes import IS_NIGHTLY, nightly
from helpers.two_versions import ANN, BEN, find, load, query, run_on_server
from msgbubbles.policy import PRESETS, Policy
from msgbubbles_sync.dbt.build_result import BuildResult
from msgbubbles_sync.destinations.attached import Attached
from msgbubbles_sync.destinations.postgres import Postgres
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.policy.applied import CONFIRMED, Record
from msgbubbles_sync.privacy import erase as erasing
from msgbubbles_sync.privacy import reapply, rewrite
from msgbubbles_sync.privacy.retention import DONE, expire
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow
# What finds old versions and files in a lake is seen by the first of its tests below and by test_restored.py, and what
# is done for any server by those of PostgreSQL.
of_a_lake = pytest.param("ducklake", marks=nightly)


def copy_messages_without_key(workspace: Workspace) -> None:
    """Leave what a run leaves after somebody has dropped the key of the table."""
    destination = build_destination(workspace)
    if isinstance(destination, Attached):
        with destination.open_writer() as connection:
            messages = f"{destination.write_schema}.messages"
            connection.execute(f"CREATE TABLE {messages}_replaced AS SELECT * EXCLUDE (id) FROM {messages}")
    if isinstance(destination, Postgres):
        run_on_server("CREATE VIEW north_crm.of_analyst AS SELECT text FROM north_crm.messages_replaced")


# In a bucket, versions are removed as in a folder, and destinations/test_bucket.py removes files of failed loads.
@pytest.mark.parametrize(
    "workspace", ["postgres", "ducklake", pytest.param("bucket", marks=nightly), "filesystem"], indirect=True
)
def test_erased_person_is_in_no_version_of_a_row(workspace: Workspace) -> None:
    copy_messages_without_key(workspace)
    run_on_server("ANALYZE")  # statistics quote values
    sought = [ANN, *(f"canary {version} m1" for version in ("now", "now of", "before", "before of"))]
    assert find(workspace, *sought).keys() >= {ANN, "canary now m1", "canary now of m1"}
    schema = load_settings().sync.raw_schema
    is_bucket = (workspace.database.parent / "buckets").exists()
    lake = workspace.database.parent / ("buckets/lake/lake" if is_bucket else "lake")
    left_by_killed_job = lake / f"north_{schema}" / "messages" / "ducklake-1.parquet"
    if workspace.destination == "ducklake" and left_by_killed_job.parent.exists():
        for path in (left_by_killed_job, left_by_killed_job.with_name("not-of-the-lake.txt")):
            path.write_text("canary of a killed job" if path == left_by_killed_job else "")
        sought.append("canary of a killed job")
    certificate = erasing.erase(build_context(workspace), [ANN])
    assert left_by_killed_job.with_name("not-of-the-lake.txt").exists() == ("canary of a killed job" in sought)
    assert (certificate.people, certificate.rows["chats"], certificate.rows["messages"]) == (1, 2, 2)
    assert " 1 person; " in str(certificate)
    assert "backups" in str(certificate)
    assert find(workspace, *sought) == {}
    shown = query(workspace, "SELECT id, title FROM msgbubbles.chats ORDER BY id")
    assert shown == [("c2", "Ben"), ("g", "canary title [erased]")]
    shown = query(workspace, "SELECT id, text, metadata->>'of' FROM msgbubbles.messages ORDER BY id")
    assert shown == [("m2", "canary now m2", BEN), ("m4", "canary now m4", BEN)]
    assert query(workspace, "SELECT people FROM msgbubbles.erasures") == [(1,)]
    shown = query(workspace, "SELECT handle, contact FROM msgbubbles.contact_aliases")
    assert shown == [(BEN, "canary now of m2")]
    destination = build_destination(workspace)
    if isinstance(destination, Attached):  # the views of all accounts
        with destination._attach("READ_ONLY") as connection:
            shown = connection.execute(f"SELECT account, id FROM warehouse.{schema}.messages ORDER BY id").fetchall()
        assert shown == [("north", "m2"), ("north", "m4")]
    if workspace.destination != "ducklake" or IS_NIGHTLY:  # by day, test_restored.py does so
        # The same rows are loaded, and merged by key, as before.
        load(workspace, "now")
        assert query(workspace, "SELECT count(*), count(DISTINCT id) FROM msgbubbles.messages") == [(4, 4)]


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_killed_erasure_is_finished_without_the_handles(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    context = build_context(workspace)

    @contextmanager
    def killed(_self: Any, _tables: Any = None) -> Iterator[Any]:
        with original(_self) as connection:
            yield connection
        raise KeyboardInterrupt

    original = type(context.destination).rewrite_rows
    with monkeypatch.context() as patch:
        patch.setattr(type(context.destination), "rewrite_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            erasing.erase(context, [ANN])
    assert workspace.is_pending("erase")
    with context.destination.open_writer() as connection:
        stored = connection.execute(f"SELECT record FROM {context.destination.write_schema}.privacy").fetchall()
    assert len(json.loads(stored[0][0])["erased"]) == 1, "the record comes before any row"
    erasing.purge(build_context(workspace))
    assert not workspace.is_pending("erase")
    assert find(workspace, ANN, "canary now m1", "canary before m1") == {}


@pytest.mark.parametrize(
    ("workspace", "outcome"),
    [
        ("postgres", BuildResult(unbuilt_marts=["contact"])),
        ("postgres", TransformError("dbt did not start")),
        # By day, an erasure empties tables of a lake in the same way.
        pytest.param("ducklake", BuildResult(unbuilt_marts=["contact"]), marks=nightly),
    ],
    indirect=["workspace"],
)
def test_marts_that_cannot_be_built_are_emptied(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, outcome: BuildResult | TransformError
) -> None:
    destination = build_destination(workspace)
    marts = {destination.name_schema(destination.marts_schema), destination.name_schema("marts")}
    tables = [*(f"{schema}.contact" for schema in marts), f"{destination.name_schema('staging')}.int_own"]
    own = f"{destination.name_schema('marts')}.of_an_analyst"
    with destination.open_writer() as connection:
        for table in (*tables, own):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS warehouse.{table.partition('.')[0]}")
            connection.execute(f"CREATE TABLE warehouse.{table} AS SELECT '{ANN}' AS handle")
        connection.execute(f"CREATE VIEW warehouse.{tables[-1]}_view AS SELECT 1 AS number")
    error = pytest.raises(TransformError, match="the marts are empty: dbt did not start")
    with monkeypatch.context() as broken, error if isinstance(outcome, TransformError) else nullcontext():
        broken.setattr(rewrite, "transform", Mock(side_effect=[outcome]))
        erasing.erase(build_context(workspace), [ANN])
    with destination.open_writer() as connection:
        counts = {table: connection.execute(f"FROM warehouse.{table}").fetchall() for table in (*tables, own)}
    assert counts == {own: [(ANN,)]} | {table: [] for table in tables}
    assert workspace.is_pending("transform")
    assert not workspace.is_pending("erase")


@pytest.mark.parametrize("workspace", ["postgres"], indirect=True)
def test_erasure_waits_for_a_reader_and_leaves_views_of_analysts(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = "north_crm.by_analyst"
    run_on_server(f"CREATE VIEW {view} AS SELECT id FROM north_crm.messages")
    monkeypatch.setenv("SYNC__LOCK_TIMEOUT_SECONDS", "1")
    reader = psycopg2.connect(os.environ["DESTINATION__POSTGRES__CREDENTIALS"])
    reader.cursor().execute("SELECT * FROM north_crm.messages")
    with pytest.raises(duckdb.Error) as error:
        erasing.erase(build_context(workspace), [ANN])
    assert "holds north_crm.messages" in (build_destination(workspace).explain(str(error.value)) or "")
    assert query(workspace, "SELECT count(*) FROM msgbubbles.chats") == [(3,)], "all or nothing"
    assert not list(workspace.folder.glob("rewriting*"))
    reader.close()
    erasing.purge(build_context(workspace))
    with build_destination(workspace).open_writer() as connection:
        assert connection.execute(f"FROM warehouse.{view} ORDER BY id").fetchall() == [("m2",), ("m4",)]


@pytest.mark.parametrize("workspace", ["postgres"], indirect=True)
def test_erasure_whose_connection_is_lost_is_repeated_whole(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_table = Postgres._empty_table

    def lose_connection(self: Postgres, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
        if table == "messages":
            run_on_server(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        empty_table(self, connection, schema, table)

    with monkeypatch.context() as patch:
        patch.setattr(Postgres, "_empty_table", lose_connection)
        with pytest.raises(duckdb.Error) as error:
            erasing.erase(build_context(workspace), [ANN])
    assert "the connection to the server was lost" in str(build_destination(workspace).explain(str(error.value)))
    assert query(workspace, "SELECT count(*) FROM msgbubbles.chats") == [(3,)], "all or nothing"
    certificate = erasing.purge(build_context(workspace))
    assert (certificate.people, certificate.rows["chats"], certificate.rows["messages"]) == (1, 2, 2)
    assert query(workspace, "SELECT people FROM msgbubbles.erasures") == [(1,)], "no certificate of the attempt"
    assert find(workspace, ANN, "canary now m1", "canary before m1") == {}


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_stricter_policy_reaches_every_version(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_messages_without_key(workspace)
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "minimal")
    changed = reapply.apply(build_context(workspace))
    assert changed["messages"] >= 4
    assert find(workspace, ANN, BEN, "canary") == {}
    assert query(workspace, "SELECT count(*), count(text) FROM msgbubbles.messages") == [(4, 0)]
    record = Record.load(workspace)
    assert record is not None
    assert record.policy == PRESETS["minimal"]


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_old_texts_and_chats_expire_once_a_day(workspace: Workspace) -> None:
    def expired(**days: int) -> dict[str, int]:
        settings = replace(load_settings(), policy=Policy(**days))  # type: ignore[arg-type]
        return dict(expire(build_context(workspace, settings)))

    write_privately(workspace.folder / CONFIRMED, json.dumps(datetime.now(UTC).isoformat()))
    copy_messages_without_key(workspace)
    assert expired(text_days=10) == {"texts": 2}
    assert find(workspace, "canary before m1", "canary now m1", "canary now m4").keys() == {"canary now m4"}
    assert expired(thread_days=10) == {}, "not due"
    (workspace.folder / DONE).unlink()
    assert expired(thread_days=10) == {"threads": 2, "messages": 2}
    assert find(workspace, ANN, "canary now m1", "canary now m4").keys() == {ANN, "canary now m4"}
    assert query(workspace, "SELECT id FROM msgbubbles.chats") == [("g",)]
