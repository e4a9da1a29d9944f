"""Erasure, policy changes, retention and lost records, for one of several accounts, on each destination."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dlt
import duckdb
import psycopg2
import pyarrow as pa
import pytest

from helpers import postgres, s3
from helpers.canary import find_words
from helpers.context import RecordingConsole, build_context, build_destination
from helpers.lake import lake_at, lake_in_bucket
from helpers.sizes import IS_NIGHTLY, nightly
from msgbubbles.policy import PRESETS, Policy, Pseudonymizer
from msgbubbles.source.arrow import build_arrow_schema, build_item
from msgbubbles.tables import CHATS, MESSAGES, NUMBERS, Table
from msgbubbles_sync import job
from msgbubbles_sync.dbt.build_result import BuildResult
from msgbubbles_sync.destinations import claims
from msgbubbles_sync.destinations.attached import Attached
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.destinations.postgres import Postgres
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.groups.ledger import Ledger, Observation
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.groups.observed import open_ledger
from msgbubbles_sync.policy import applied
from msgbubbles_sync.policy.applied import Record
from msgbubbles_sync.privacy import erase as erasing
from msgbubbles_sync.privacy import reapply, rewrite
from msgbubbles_sync.privacy.retention import DONE, expire
from msgbubbles_sync.restore import restore
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.tables import CONTACT_ALIASES
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow
# What finds old versions and files in a lake is seen by the first two of its tests below, and what is done for any
# server by those of PostgreSQL.
of_a_lake = pytest.param("ducklake", marks=nightly)

ANN, BEN, OURS = "+14155558111", "+14155558222", "+14155550100"
KEY = "of a test, and long enough to be a key"
NOW = datetime.now(UTC).replace(microsecond=0)
OLD, NEW = NOW - timedelta(days=50), NOW - timedelta(days=1)


@dataclass
class Copies:
    """Folders and databases that are loaded, for tests to copy: loading takes most of the time of a test."""

    folder: Path
    databases: ExitStack


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    with ExitStack() as databases:
        yield Copies(tmp_path_factory.mktemp("destinations"), databases)


@pytest.fixture(params=["postgres", "ducklake", "filesystem"])
def workspace(
    request: pytest.FixtureRequest,
    postgres_server: str,
    worker_id: str,
    copies: Copies,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workspace]:
    """Load account north twice, with other texts, so that there are old versions of rows."""
    # Always in this folder, and in a database of this name: the files of a lake and of dlt name them.
    folder, copied = copies.folder / request.param, copies.folder / f"{request.param}-loaded"
    template = f"{request.param}_{worker_id}"
    with ExitStack() as stack:
        options = f'TEMPLATE "{template}"' if copied.exists() else ""
        address = stack.enter_context(postgres.new_database(postgres_server, f"warehouse_{worker_id}", options))
        variables = {"DESTINATION__POSTGRES__CREDENTIALS": address, "SOURCES__MSGBUBBLES__PRIVACY__KEY": KEY}
        variables["DESTINATION__FILESYSTEM__BUCKET_URL"] = str(folder / "lake")
        if request.param not in ("duckdb", "filesystem"):  # and in schemas of other names
            variables |= {
                "SYNC__RAW_SCHEMA": "crm",
                "SYNC__STAGING_SCHEMA": "crm_work",
                "SYNC__MARTS_SCHEMA": "analytics",
            }
        if copied.exists():
            shutil.rmtree(folder)
            shutil.copytree(copied, folder, symlinks=True)
        folder.mkdir(exist_ok=True)
        if request.param == "bucket":
            (folder / "buckets" / "lake").mkdir(parents=True, exist_ok=True)
            port = stack.enter_context(s3.running(folder / "buckets"))
            variables |= lake_in_bucket(address, "lake", port)
        else:
            variables |= lake_at(address, folder / "lake")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        destination = "ducklake" if request.param == "bucket" else request.param
        workspace = Workspace.from_path(folder / "company.duckdb", destination, "north")
        workspace.make_folders()
        workspace.configure_dlt()
        if not copied.exists():
            build_destination(workspace).prepare()
            for version in ("before", "now"):
                load(workspace, version)
            build_destination(workspace).publish()
            copies.databases.enter_context(
                postgres.copied_database(postgres_server, f"warehouse_{worker_id}", template)
            )
            shutil.copytree(folder, copied, symlinks=True)
        yield workspace


def run_on_server(*statements: str) -> list[Any]:
    """Run statements in the database of the test. Returns the rows of the last one."""
    with closing(psycopg2.connect(os.environ["DESTINATION__POSTGRES__CREDENTIALS"])) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def load(workspace: Workspace, version: str) -> None:
    chats = [("c1", False, ANN, "Ann"), ("c2", False, BEN, "Ben"), ("g", True, "group:1", f"canary title {ANN}")]
    messages = [("m1", "c1", ANN, OLD), ("m2", "c2", BEN, OLD), ("m3", "g", ANN, NEW), ("m4", "g", BEN, NEW)]
    rows: dict[Table, list[dict[str, Any]]] = {
        NUMBERS: [{"handle": OURS}],
        CONTACT_ALIASES: [
            {"handle": handle, "contact": f"canary {version} of {id}"} for id, handle in (("m1", ANN), ("m2", BEN))
        ],
        CHATS: [
            {"id": id, "is_group": is_group, "remote_handle": handle, "title": title,
             "last_message_at": OLD if id != "g" else NEW}
            for id, is_group, handle, title in chats
        ],
        MESSAGES: [
            {"id": id, "conversation_id": chat, "sender_handle": sender, "cursor_at": at, "direction": "inbound",
             "text": f"canary {version} {id}", "metadata": json.dumps({"of": sender, "a": f"canary {version} of {id}"})}
            for id, chat, sender, at in messages
        ],
    }  # fmt: skip

    @dlt.resource(name="load")
    def items() -> Iterator[Any]:
        dlt.current.resource_state()["covered"] = version
        for table, found in rows.items():
            yield build_item(table, build_arrow(table, found))

    build_pipeline(workspace, build_destination(workspace)).run(items())


def build_arrow(table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"_fetched_at": NOW} | row for row in rows], build_arrow_schema(table))


def query(workspace: Workspace, sql: str) -> list[tuple[Any, ...]]:
    with build_destination(workspace).open_reader() as connection:
        return connection.execute(sql).fetchall()


def find(workspace: Workspace, *words: str) -> dict[str, list[str]]:
    """Return by word the files that have it, except the server's logs and the databases of other tests.

    PostgreSQL recycles its write-ahead log by itself, and its own log quotes statements that failed.
    """
    [(database,)] = run_on_server("CHECKPOINT", "SELECT oid FROM pg_database WHERE datname = current_database()")
    server = Path(os.environ["DESTINATION__POSTGRES__CREDENTIALS"].rpartition("=")[2])
    assert (server / "base" / str(database)).is_dir()
    others = rf"^pg_wal/|^log$|^base/(?!{database}/|pgsql_tmp)"
    found = find_words(workspace.database.parent, words)
    for word, paths in find_words(server, words, skip_paths=others).items():
        found[word] = [*found.get(word, ()), *paths]
    return found


# In a bucket, versions are removed as in a folder, and destinations/test_bucket.py removes files of failed loads.
@pytest.mark.parametrize(
    "workspace", ["postgres", "ducklake", pytest.param("bucket", marks=nightly), "filesystem"], indirect=True
)
def test_erased_person_is_in_no_version_of_a_row(workspace: Workspace) -> None:
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
    if workspace.destination != "ducklake" or IS_NIGHTLY:  # by day, after the erasure of a restored catalog below
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
        ("ducklake", BuildResult(unbuilt_marts=["contact"])),
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

    assert expired(text_days=10) == {"texts": 2}
    assert find(workspace, "canary before m1", "canary now m1", "canary now m4").keys() == {"canary now m4"}
    assert expired(thread_days=10) == {}, "not due"
    (workspace.folder / DONE).unlink()
    assert expired(thread_days=10) == {"threads": 2, "messages": 2}
    assert find(workspace, ANN, "canary now m1", "canary now m4").keys() == {ANN, "canary now m4"}
    assert query(workspace, "SELECT id FROM msgbubbles.chats") == [("g",)]


@pytest.mark.parametrize(
    "workspace", ["duckdb", "postgres", of_a_lake, pytest.param("bucket", marks=nightly), "filesystem"], indirect=True
)
def test_lost_folder_is_restored_from_the_destination(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, names = build_destination(workspace), Pseudonymizer(KEY)
    claims.claim(workspace, destination, sandbox=False, say=print)
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "minimal")
    Record(PRESETS["minimal"], names.check, frozenset({names.erased_handle(ANN)})).save(workspace)
    context = build_context(workspace)
    with Ledger.open(workspace.folder) as ledger:
        ledger.record_observation(Observation("support", "g", OURS, None, (BEN,), False, NOW))
    load_ledger(workspace, destination, context.redactor)
    with destination.open_writer() as connection:
        for store in (claims.store, applied.store):
            store(connection, workspace, destination.write_schema)
    destination.publish()
    shutil.rmtree(workspace.folder)
    workspace.make_folders()

    destination.prepare()
    with pytest.raises(UsageError, match="holds the rows of account north"):
        claims.claim(workspace, destination, sandbox=True, say=print)
    claims.claim(workspace, destination, sandbox=False, say=print)
    assert build_context(workspace).redactor.is_erased(ANN)
    with open_ledger(build_context(workspace)) as ledger:
        assert [(group.key, group.chat_id) for group in ledger.observations()] == [("support", "g")]
    pipeline = build_pipeline(workspace, destination)
    pipeline.sync_destination()
    states = pipeline.state["sources"]["msgbubbles"]["resources"]
    assert states["load"] == {"covered": "now"}, "what is covered is in a state like this"
    for name, value, message in (
        ("PRESET", "full", "keeps more than this warehouse was filled with"),
        ("KEY", f"{KEY}.", "is not the one that this warehouse was filled with"),
    ):
        (workspace.folder / applied.FILE).unlink()
        with monkeypatch.context() as patch:
            patch.setenv(f"SOURCES__MSGBUBBLES__PRIVACY__{name}", value)
            with pytest.raises(UsageError, match=message):
                build_context(workspace).check_policy()


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_restored_backup_of_the_tables_is_followed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, covered = build_destination(workspace), {"load": {"covered": "now"}}
    destination.prepare()
    assert build_pipeline(workspace, destination).state["sources"]["msgbubbles"]["resources"] == covered
    Record(erased=frozenset({Pseudonymizer(KEY).erased_handle(ANN)})).save(workspace)
    with Ledger.open(workspace.folder) as ledger:
        ledger.record_observation(Observation("support", "g", OURS, None, (BEN,), False, NOW))
        ledger.set_loaded(*ledger.not_loaded())
    if isinstance(destination, Attached):  # the tables are as after the first load
        with destination.open_writer() as connection:
            of_last_load = f"FROM {destination.write_schema}._dlt_loads"
            last = f"(SELECT max(load_id) {of_last_load})"
            connection.execute(f"DELETE {of_last_load} WHERE load_id = {last}")
    else:
        max((workspace.database.parent / "lake").glob("*/_dlt_pipeline_state/msgbubbles__*.jsonl")).unlink()

    unfinished = workspace.folder / "dlt" / "msgbubbles" / "load" / "normalized" / "1"
    unfinished.mkdir()
    destination.prepare()
    assert unfinished.exists(), "a load that has not finished is one ahead"
    unfinished.rmdir()
    destination.prepare()
    context = build_context(workspace)
    job._schedule_lost_work(context)
    pipeline = build_pipeline(workspace, destination)
    pipeline.sync_destination()
    assert pipeline.state["sources"]["msgbubbles"]["resources"] == {"load": {"covered": "before"}}
    assert workspace.is_pending("erase"), "they may be in the backup"
    monkeypatch.setattr(job, "load_ledger", lambda *_arguments: None)
    job._load_ledger(context)
    with open_ledger(context) as ledger:
        assert len(ledger.not_loaded()[1]) == 1
    destination.prepare()
    assert not workspace.is_pending("restored", "ledger")


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_tables_restored_before_the_next_load_are_erased_again(workspace: Workspace) -> None:
    destination = build_destination(workspace)
    destination.prepare()
    Record().save(workspace)
    context = build_context(workspace)
    job._schedule_lost_work(context)
    with destination.open_writer() as connection:
        applied.store(connection, workspace, destination.write_schema)  # what the backup has
    job._schedule_lost_work(context)
    assert not workspace.is_pending("erase", "policy")
    Record(PRESETS["minimal"], erased=frozenset({Pseudonymizer(KEY).erased_handle(ANN)})).save(workspace)
    job._schedule_lost_work(context)
    assert workspace.is_pending("erase")
    assert workspace.is_pending("policy")


@pytest.mark.parametrize("workspace", ["ducklake", pytest.param("bucket", marks=nightly)], indirect=True)
def test_restored_catalog_whose_files_were_erased_is_read_again(workspace: Workspace) -> None:
    destination = build_destination(workspace)
    assert isinstance(destination, Attached)
    with destination.open_writer() as connection:  # so many that they are in a file, and not in the catalog
        connection.execute(
            f"INSERT INTO {destination.write_schema}.messages BY NAME SELECT old.* REPLACE (number || old.id AS id) "
            f"FROM {destination.write_schema}.messages AS old, range(50) AS numbers (number)"
        )
    catalog = destination._lock_scope.removesuffix(".")
    names = f"SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('{catalog}') AND relkind = 'r'"
    run_on_server("CREATE SCHEMA backup")
    for (name,) in run_on_server(names):
        run_on_server(
            f'CREATE TABLE backup."{name}" (LIKE {catalog}."{name}" INCLUDING ALL)',
            f'INSERT INTO backup."{name}" SELECT * FROM {catalog}."{name}"',
        )
    erasing.erase(build_context(workspace), [ANN])
    run_on_server(f"DROP SCHEMA {catalog} CASCADE", f"ALTER SCHEMA backup RENAME TO {catalog}")

    with pytest.raises(duckdb.Error) as lost:
        query(workspace, "FROM msgbubbles.messages")
    assert "run chats.py: it empties the tables" in (destination.explain(str(lost.value)) or "")
    context = build_context(workspace, console=(console := RecordingConsole()))
    restore(workspace, context.destination, console.fail)
    assert f"{destination.dataset}.messages" in console.errors[0]
    context.destination.prepare()
    job._schedule_lost_work(context)
    assert workspace.is_pending("erase"), "they are in the catalog, and may be in files"
    erasing.purge(context)
    load(workspace, "now")
    assert query(workspace, "SELECT count(*), count(DISTINCT id) FROM msgbubbles.messages") == [(4, 4)]


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_restored_folder_of_the_job_continues_from_the_tables(workspace: Workspace) -> None:
    state = workspace.folder / "dlt" / "msgbubbles" / "state.json"
    state.write_text(state.read_text().replace('"_state_version":2', '"_state_version":1'))
    unfinished = workspace.folder / "dlt" / "msgbubbles" / "load" / "normalized" / "1"
    destination = build_destination(workspace)
    destination.prepare()
    assert state.exists(), "dlt itself continues from a newer state"
    unfinished.mkdir()
    destination.prepare()
    assert not unfinished.exists(), "its rows are older than those of the tables"
