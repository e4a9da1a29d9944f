"""Files in a folder: which row of a key counts, and which builds and folders readers are shown."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow as pa
import pytest

from helpers.canary import find_words
from msgbubbles_sync import migrations
from msgbubbles_sync.dbt.build_result import BuildResult, store_build_result
from msgbubbles_sync.destinations import parquet_dlt, parquet_files, parquet_rewrite, parquet_tables
from msgbubbles_sync.destinations.parquet_dlt import build_table_files
from msgbubbles_sync.destinations.parquet_files import STAGING, ParquetFiles
from msgbubbles_sync.destinations.parquet_tables import KeyedTable, read_tables, write_json
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError
from msgbubbles_sync.restore import restore
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.sql import store_value
from msgbubbles_sync.tables import PRIVACY
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

Rows = list[tuple[str, int, int]]  # a key, a value, and the second at which it was read

MARTS = ("contact", "thread_activity")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    return tmp_path / "lake"


@pytest.fixture
def build(files: Path, tmp_path: Path) -> Callable[..., ParquetFiles]:
    """Return a function that builds marts as Spark and dbt do, all of one number, or fails halfway."""
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "filesystem")
    workspace.make_folders()
    destination = ParquetFiles(workspace, SyncSettings())
    destination.prepare()
    assert files.is_dir()

    def made(number: int, *, fails: bool = False) -> ParquetFiles:
        with suppress(ZeroDivisionError), destination.open_build() as (tables, build):
            assert tables == files / "msgbubbles"
            for folder in (*(build / mart for mart in MARTS), build / STAGING / "int_thread_messages"):
                folder.mkdir(parents=True)
                duckdb.sql(f"COPY (SELECT {number} AS n) TO '{folder}/part-0.parquet' (FORMAT parquet)")
            assert 1 / (not fails)
        return destination

    return made


def test_job_of_another_machine_is_refused_while_one_is_active(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, north = (
        ParquetFiles(Workspace.from_path(tmp_path / f"{name}.duckdb", "filesystem", account), SyncSettings())
        for name, account in (("here", None), ("there", None), ("there", "north"))
    )
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "web-1")
        with here.lock(), north.lock():  # an account with tables of its own
            patch.undo()
            holder = f"another job is active on this database: process {os.getpid()} on web-1, since "
            with pytest.raises(AnotherJobRunsError, match=holder), there.lock():
                pass
    with there.lock():
        there.prepare()
    there.publish()
    assert (files / "warehouse.duckdb").exists(), "the lock is not taken for an account"


def shown(files: Path) -> dict[str, int]:
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as connection:
        names = connection.execute("SELECT view_name FROM duckdb_views() WHERE schema_name = 'marts'").fetchall()
        return {name: connection.execute(f"SELECT n FROM marts.{name}").fetchall()[0][0] for (name,) in names}


def test_readers_see_the_latest_complete_build(files: Path, build: Callable[..., ParquetFiles]) -> None:
    build(1).publish()
    assert shown(files) == {"contact": 1, "thread_activity": 1}
    destination = build(2)
    assert shown(files) == {"contact": 1, "thread_activity": 1}, "not before it is published"
    build(3, fails=True)
    destination.publish()
    assert shown(files) == {"contact": 2, "thread_activity": 2}
    assert not list(files.rglob("int_thread_messages")), "what nobody reads is gone"


def test_held_mart_keeps_its_earlier_build(files: Path, build: Callable[..., ParquetFiles]) -> None:
    build(1).publish(["contact"])
    assert shown(files) == {"thread_activity": 1}, "there was none before"
    build(2).publish()
    build(3).publish(["contact"])
    build(3).publish(["contact"])
    assert shown(files) == {"contact": 2, "thread_activity": 3}
    destination = build(4)
    store_build_result(destination.workspace, BuildResult(marts=["contact"]))
    migrations._rename_slices(destination)
    assert shown(files) == {"contact": 2, "thread_activity": 4}, "an upgrade publishes too"
    build(5).publish()
    assert shown(files) == {"contact": 5, "thread_activity": 5}


def test_replaced_files_stay_for_an_hour(
    files: Path, build: Callable[..., ParquetFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(1).publish()
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as reader:
        build(2).publish()
        build(3).publish()
        assert reader.execute("SELECT n FROM marts.contact").fetchall() == [(1,)]
    assert len(list((files / "marts").iterdir())) == 3
    (files / "marts" / "of a job that was killed").mkdir()
    monkeypatch.setattr(parquet_files, "REPLACED_FILES_SECONDS", 0)
    build(4).publish()
    [left] = (files / "marts").iterdir()
    assert json.loads((files / ".msgbubbles" / "_.json").read_text())["marts"] == dict.fromkeys(MARTS, left.name)
    assert shown(files) == {"contact": 4, "thread_activity": 4}


def test_rewriting_leaves_no_old_build(files: Path, build: Callable[..., ParquetFiles]) -> None:
    for number in (1, 2, 3):
        build(number).publish()
    build(4).publish_rewritten()
    [left] = (files / "marts").iterdir()
    assert shown(files) == {"contact": 4, "thread_activity": 4}
    view = json.loads((files / ".msgbubbles" / "_.json").read_text())
    assert (view["marts"], view.get("old", {})) == (dict.fromkeys(MARTS, left.name), {})


def test_interrupted_rewriting_is_finished_by_the_next_job(
    files: Path, build: Callable[..., ParquetFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = build(1)
    for value in ("secret", "other secret"):
        with destination.open_writer() as connection:
            store_value(connection, "msgbubbles", PRIVACY, value)

    def rewrite(replacement: str) -> None:
        with destination.rewrite_rows() as connection:
            assert connection.execute("FROM msgbubbles.privacy").fetchall() == [("other secret",)]
            connection.execute("UPDATE msgbubbles.privacy SET record = ?", [replacement])

    def fail(_path: Path, _to: Path | None = None) -> None:
        raise KeyboardInterrupt

    for function in ("sync_to_disk", "finish_replacing"):  # before all new files are written, and after
        with monkeypatch.context() as patch:
            patch.setattr(parquet_rewrite, function, fail)
            with pytest.raises(KeyboardInterrupt):
                rewrite(f"killed in {function}")
    destination.prepare()
    with destination.open_writer() as connection:
        assert connection.execute("FROM msgbubbles.privacy").fetchall() == [("killed in finish_replacing",)]
    assert find_words(files, ["secret", "sync_to_disk"]) == {}
    assert [path.name for path in (files / "msgbubbles").iterdir()] == ["privacy"]


def test_only_new_files_are_searched_for_damage_until_a_reader_finds_some(
    files: Path, build: Callable[..., ParquetFiles]
) -> None:
    destination, (old, new) = build(1), [files / "msgbubbles" / "chats" / f"{number}.parquet" for number in (1, 2)]
    old.parent.mkdir(parents=True)
    for path in (old, new):
        duckdb.sql(f"COPY (SELECT 1 AS n) TO '{path}' (FORMAT parquet)")
    os.utime(old, (1, 1))
    assert destination.move_damaged_files() == []
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    assert destination.move_damaged_files() == [], "it was whole"
    state = files / "msgbubbles" / "_dlt_pipeline_state" / "msgbubbles__1__x.jsonl"
    state.parent.mkdir()
    state.write_bytes(b"{")
    os.utime(state, (1, 1))
    assert [path.name[: len(state.name)] for path in destination.move_damaged_files()] == [state.name]
    assert destination.explain(f"File '{old}' too small to be a Parquet file") is not None
    new.write_bytes(b"")
    assert {path.name.partition(".damaged-")[0] for path in destination.move_damaged_files()} == {old.name, new.name}
    duckdb.sql(f"COPY (SELECT 1 AS n) TO '{new}' (FORMAT parquet)")
    assert destination.move_damaged_files() == []
    new.write_bytes(b"")
    assert len(destination.move_damaged_files()) == 1, "it was written since"
    duckdb.sql(f"COPY (SELECT range AS n, hash(range) AS text FROM range(9000)) TO '{old}' (FORMAT parquet)")
    os.utime(old, (1, 1))
    content = old.read_bytes()
    old.write_bytes(content[:99] + bytes(9999) + content[10098:])  # its first and last bytes are intact
    assert destination.move_damaged_files() == []
    with pytest.raises(duckdb.InvalidInputException) as failure:
        duckdb.sql(f"SELECT sum(n), max(text) FROM '{old}'").fetchall()
    assert destination.explain(str(failure.value)) == f"{old} is damaged. Run a sync, which reads its rows again"
    assert len(destination.move_damaged_files()) == 1
    assert destination.move_damaged_files() == []


def test_new_files_get_the_permissions_of_the_folder(files: Path, build: Callable[..., ParquetFiles]) -> None:
    before = os.umask(0o077)
    try:
        build(1).publish()
        assert (files / "warehouse.duckdb").stat().st_mode & 0o777 == 0o400
        files.chmod(0o750)
        destination = build(2)
        destination.prepare()
        (files / "warehouse.duckdb").unlink()
        build(3).publish()
        assert (files / "warehouse.duckdb").stat().st_mode & 0o777 == 0o440
        part = max((files / "marts").glob("*/contact/*.parquet"))
        assert part.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dlt.Pipeline:
    monkeypatch.setenv("NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID", "true")
    monkeypatch.setenv("RUNTIME__LOG_LEVEL", "CRITICAL")
    destination = build_table_files(tmp_path / "lake")
    return dlt.pipeline("some", destination=destination, dataset_name="some", pipelines_dir=str(tmp_path / "dlt"))


def load(pipeline: dlt.Pipeline, *tables: Rows, strategy: str = "delete-insert") -> None:
    schema = pa.schema([("id", pa.string()), ("value", pa.int64()), ("_fetched_at", pa.timestamp("us", tz="UTC"))])

    disposition: Any = {"disposition": "merge", "strategy": strategy}
    columns: Any = {"_fetched_at": {"dedup_sort": "desc"}} if strategy == "delete-insert" else {}

    @dlt.resource(
        name="things",
        primary_key="id",
        write_disposition=disposition,
        columns=columns,
    )
    def things() -> Iterator[pa.Table]:
        for rows in tables:
            timestamps = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for _, _, second in rows]
            values = [[row[0] for row in rows], [row[1] for row in rows], timestamps]
            yield pa.table(values, schema=schema)

    pipeline.run(things(), loader_file_format="parquet")


def found(pipeline: dlt.Pipeline) -> tuple[list[Any], list[Any]]:
    """Return the rows that the job reads, after checking that readers see the same."""
    with pipeline.sql_client() as client, client.execute_query("SELECT id, value FROM things") as cursor:
        by_job = sorted(tuple(row) for row in cursor.fetchall())
    folder = Path(pipeline.sql_client().remote_client.dataset_path)
    query = read_tables(folder)["things"].build_query([f"{folder / 'things'}/*.parquet"])
    with duckdb.connect() as connection:
        return by_job, sorted(connection.execute(f"SELECT id, value FROM ({query})").fetchall())


def test_last_row_of_a_key_counts(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [("a", 1, 1), ("b", 2, 2)], [("b", 3, 1), ("c", 4, 1)])
    expected = [("a", 1), ("b", 2), ("c", 4)]
    assert found(pipeline) == (expected, expected), "of one load, what was read last"
    load(pipeline, [("a", 5, 0), ("d", 6, 1)], [("d", 7, 2)])
    expected = [("a", 5), ("b", 2), ("c", 4), ("d", 7)]
    assert found(pipeline) == (expected, expected), "of several, what was loaded last"


def test_first_row_of_an_insert_only_key_counts(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [("a", 1, 1)], strategy="insert-only")
    load(pipeline, [("a", 2, 2), ("b", 9, 2)], [("b", 3, 1)], strategy="insert-only")
    assert found(pipeline) == ([("a", 1), ("b", 3)], [("a", 1), ("b", 3)])


def test_only_small_files_are_compacted_and_readers_see_each_row_once(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "filesystem")
    workspace.make_folders()
    destination = ParquetFiles(workspace, SyncSettings(memory_limit="200MB"))
    destination.prepare()
    folder = files / "msgbubbles" / "things"
    folder.mkdir(parents=True)
    write_json(files / "msgbubbles" / "_tables.json", {"things": KeyedTable(("id",))})
    monkeypatch.setattr(parquet_tables, "MAX_FILES", 4)
    monkeypatch.setattr(parquet_tables, "SMALL_BYTES", 0)

    def write(name: str, first: int, rows: int, load_id: int) -> None:
        columns = f"{first} + range AS id, {load_id} AS value, '{load_id}' AS _dlt_load_id, now() AS _fetched_at"
        duckdb.sql(f"COPY (SELECT {columns} FROM range({rows})) TO '{folder}/{name}.parquet' (FORMAT parquet)")

    write("large", 0, 100_000, 1)
    (folder / ".1.new").write_text("of a killed run")
    written = []
    for load_id in range(2, 7):
        write(f"load{load_id}", 99_995, 10, load_id)  # five rows are changed, five are new at first
        written.append(folder / f"load{load_id}.parquet")
        destination.publish()
    names = {path.name for path in folder.iterdir()}
    assert len([name for name in names if name.startswith("compacted")]) == 1
    assert ".1.new" not in names
    counts = "SELECT count(*), count(DISTINCT id), sum(value) FROM msgbubbles.things"
    expected = [(100_005, 100_005, 99_995 + 10 * 6)]
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as reader:
        assert reader.execute(counts).fetchall() == expected
        monkeypatch.setattr(parquet_files, "REPLACED_FILES_SECONDS", 0)
        destination.publish()
        assert not [path for path in written[:4] if path.exists()]
        assert (folder / "large.parquet").exists()
        assert reader.execute(counts).fetchall() == expected, "a reader that was open before goes on"


def test_records_of_old_loads_are_removed(pipeline: dlt.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_dlt, "MAX_LOADS", 2)
    newest, records = [], []
    for value in range(4):
        load(pipeline, [("a", value, 1)])
        folder = Path(pipeline.sql_client().remote_client.dataset_path) / "_dlt_loads"
        records = sorted(path.stem for path in folder.glob("*.jsonl"))
        newest.append(records[-1])
    assert records == newest[-2:]
    assert found(pipeline) == ([("a", 3)], [("a", 3)])


def test_table_without_rows_has_its_columns(pipeline: dlt.Pipeline) -> None:
    load(pipeline, [])
    assert found(pipeline) == ([], [])


def test_destination_type_matches_the_state_of_earlier_runs(tmp_path: Path) -> None:
    # The name is on users' disks. dlt warns in every run if it differs.
    assert build_table_files(tmp_path).destination_type == "warehouse." + "lake_dlt.TableFiles"


def delta_folder(files: Path, workspace: Workspace) -> None:
    """Make a folder as an older release left it: Delta tables, and views of their files."""
    chats = files / "msgbubbles" / "chats"
    (chats / "_delta_log").mkdir(parents=True)
    (chats / "_delta_log" / "00000000000000000000.json").write_text("{}")
    duckdb.sql(f"COPY (SELECT 'old' AS id) TO '{chats}/part-0.parquet' (FORMAT parquet)")
    query = f"SELECT * FROM read_parquet(['{chats}/part-0.parquet'], union_by_name = true)"
    tables = {"msgbubbles": {"chats": {"columns": ["id"], "query": query}}, "marts": {}}
    shown = files / ".msgbubbles" / "_.json"
    shown.parent.mkdir()
    shown.write_text(json.dumps({"tables": tables, "marts": {}, "old": {}}))
    (workspace.folder / "dlt" / "msgbubbles").mkdir()


def test_delta_tables_are_renamed_and_read_again(files: Path, tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "filesystem")
    workspace.make_folders()
    delta_folder(files, workspace)
    destination = ParquetFiles(workspace, SyncSettings())
    with pytest.raises(UsageError, match=r"holds Delta tables of an older release.* Run chats\.py"):
        destination.prepare()
    messages: list[str] = []
    restore(destination, messages.append)
    [moved] = files.glob("msgbubbles.delta-*")
    assert len(messages) == 1
    assert f"{files / 'msgbubbles'} held Delta tables" in messages[0]
    assert f"moved to {moved}" in messages[0]
    assert (moved / "chats" / "_delta_log").is_dir()
    assert not (files / "msgbubbles").exists()
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as reader:
        rows = reader.execute("SELECT id FROM msgbubbles.chats").fetchall()
    assert rows == [("old",)], "readers keep what they had"
    destination.prepare()
    assert not (workspace.folder / "dlt" / "msgbubbles").exists(), "coverage starts again"
    restore(destination, messages.append)
    assert len(messages) == 1
