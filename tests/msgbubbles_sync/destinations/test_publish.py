"""The published file: replaced as a whole, through symbolic links, and written to by nobody else."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pytest
from tenacity import stop_after_delay

from helpers.context import build_destination
from msgbubbles_sync.destinations import duckdb_file
from msgbubbles_sync.destinations import publish as publishing
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.destinations.duckdb_file import DuckDBFile
from msgbubbles_sync.destinations.publish import publish, read_mark
from msgbubbles_sync.destinations.union_accounts import combine
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

WRITER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
for line in sys.stdin:
    connection.execute(line)
    print("done", flush=True)
connection.close()
"""
DELETE = "DELETE FROM msgbubbles.chats WHERE id = 5"
ROWS = "SELECT list(id ORDER BY id) FROM msgbubbles.chats"


class Writer:
    """Another process that has a database open to write."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.execute("SELECT 1")

    def execute(self, sql: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{sql}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self, *, killed: bool) -> None:
        if killed:
            self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=30)


@pytest.fixture
def writer() -> Iterator[Callable[[Path], Writer]]:
    made: list[Writer] = []

    def make(database: Path) -> Writer:
        made.append(Writer(database))
        return made[-1]

    yield make
    for one in made:
        one.end(killed=True)


def work_of(workspace: Workspace, first: int = 0) -> Workspace:
    workspace.make_folders()
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
        connection.execute(f"CREATE OR REPLACE TABLE msgbubbles.chats AS SELECT i AS id FROM range({first}, 10) t(i)")
    return workspace


def rows(database: Path) -> list[int]:
    with duckdb.connect(str(database), read_only=True) as connection:
        found: list[int] = connection.execute(ROWS).fetchall()[0][0]
    return found


def test_file_stays_open_from_the_first_connection_until_closed(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "w.duckdb")
    workspace.make_folders()
    destination = build_destination(workspace)
    is_open = []
    with destination.stay_open():
        for step in (nullcontext, destination.open_writer, destination.close, destination.open_writer):
            with step() or nullcontext():
                pass
            command = [sys.executable, "-c", WRITER, str(workspace.work)]
            is_open.append(subprocess.run(command, input=b"", capture_output=True, check=False).returncode != 0)
    assert is_open == [False, True, False, False]


def test_work_file_that_another_process_has_open_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_file.DuckDBFile._connect.retry, "stop", stop_after_delay(10))
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    hold = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(0.1)"
    command = [sys.executable, "-c", hold, str(workspace.work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with build_destination(workspace).open_writer() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("account", [None, "north"])
def test_writer_during_a_publish_changes_no_published_row(
    tmp_path: Path,
    writer: Callable[[Path], Writer],
    account: str | None,
    killed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb", account=account))
    if account:
        claim(build_destination(workspace), sandbox=False, say=print)
    destination = DuckDBFile(workspace, SyncSettings())
    destination.publish()
    shown = workspace.combined
    assert not destination.is_publish_due(60)
    writing = writer(shown)
    work_of(workspace, first=3)
    destination.publish()
    assert rows(shown) == [*range(3, 10)]
    assert "open read-write in another process" in caplog.text
    writing.execute(DELETE)
    writing.end(killed=killed)
    assert Path(f"{shown}.wal").exists() == killed
    # Nothing is new, but the published file was changed.
    assert destination.is_publish_due(60) == killed
    destination.publish()
    assert rows(shown) == [*range(3, 10)]
    assert not Path(f"{shown}.wal").exists()
    assert not destination.is_publish_due(60)


def test_changed_or_missing_file_is_published_again(tmp_path: Path, writer: Callable[[Path], Writer]) -> None:
    workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb"))
    destination = DuckDBFile(workspace, SyncSettings())
    destination.publish()
    writing = writer(workspace.database)
    writing.execute(DELETE)
    writing.end(killed=False)  # which writes the log into the file
    assert 5 not in rows(workspace.database)
    assert destination.is_publish_due(60)
    destination.publish()
    assert 5 in rows(workspace.database)
    assert not destination.is_publish_due(60)
    ahead = time.time() + 1000
    os.utime(workspace.database, (ahead, ahead))
    (workspace.folder / "published.json").write_text(json.dumps(read_mark(workspace.database)))
    assert destination.is_publish_due(60), "the clock was set back since"
    workspace.database.unlink()
    assert destination.is_publish_due(60)


def test_leftover_log_is_removed_before_a_publish(tmp_path: Path, writer: Callable[[Path], Writer]) -> None:
    workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb"))
    destination = DuckDBFile(workspace, SyncSettings())
    destination.publish()
    writing = writer(workspace.database)
    writing.execute(DELETE)
    assert destination.is_publish_due(60), "somebody writes to it"
    destination.publish()
    writing.execute("DELETE FROM msgbubbles.chats")
    writing.end(killed=True)
    assert rows(workspace.database) == [*range(10)]
    assert not destination.is_publish_due(60)


def test_held_mart_has_no_changes_of_a_leftover_log(tmp_path: Path, writer: Callable[[Path], Writer]) -> None:
    work, database = tmp_path / "work.duckdb", tmp_path / "company.duckdb"
    with duckdb.connect(str(work)) as connection:
        connection.execute("CREATE SCHEMA marts; CREATE TABLE marts.contact AS FROM range(3) AS numbers (id)")
    publish(work, database)
    writing = writer(database)
    writing.execute("DELETE FROM marts.contact")
    writing.end(killed=True)
    assert Path(f"{database}.wal").exists()
    publish(work, database, ["contact"])
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM marts.contact").fetchone() == (3,)


def test_log_of_a_writer_that_comes_late_is_removed_before_and_after_the_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb"))
    log, logs_at_replacement = Path(f"{workspace.database}.wal"), []
    clone, replace = publishing.clone, Path.replace

    def clone_late(source: Path, target: Path) -> None:
        clone(source, target)
        log.touch()

    def replace_early(copy: Path, file: Path) -> Path:
        logs_at_replacement.append(log.exists())
        done = replace(copy, file)
        log.touch()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "clone", clone_late)
        patch.setattr(Path, "replace", replace_early)
        publish(workspace.work, workspace.database)
    assert (logs_at_replacement, log.exists()) == ([False], False)


def test_published_file_is_read_only_and_keeps_read_permissions(tmp_path: Path) -> None:
    workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb"))
    DuckDBFile(workspace, SyncSettings()).publish()
    assert workspace.database.stat().st_mode & 0o222 == 0
    workspace.database.chmod(0o264)
    DuckDBFile(workspace, SyncSettings()).publish()
    assert workspace.database.stat().st_mode & 0o777 == 0o444


def test_foreign_log_of_an_account_stays_out_of_the_combined_file(
    tmp_path: Path, writer: Callable[[Path], Writer]
) -> None:
    files = {}
    for name in ("north", "south"):
        workspace = work_of(Workspace.from_path(tmp_path / "company.duckdb", account=name))
        publish(workspace.work, workspace.database)
        files[name] = workspace.database
    shown, noted = tmp_path / "company.duckdb", tmp_path / "combined.json"
    combine(files, "north", shown, noted, {})
    writing = writer(files["south"])
    writing.execute(DELETE)
    writing.end(killed=True)
    publish(work_of(Workspace.from_path(shown, account="north"), first=8).work, files["north"])
    combine(files, "north", shown, noted, {})
    assert rows(shown) == [*range(8), 8, 8, 9, 9]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("link", ["relative", "absolute", "chain", "dangling", "other file system", "linked folder"])
@pytest.mark.parametrize("account", [None, "north"])
def test_publish_writes_through_a_symbolic_link(
    tmp_path: Path, stack: ExitStack, link: str, account: str | None
) -> None:
    shown = tmp_path / "here" / "company.duckdb"
    data = tmp_path / "data" / "deep"
    if link == "other file system":
        if not os.access("/dev/shm", os.W_OK):  # noqa: S108
            pytest.skip("no other file system")
        data = Path(stack.enter_context(TemporaryDirectory(dir="/dev/shm"))) / "data"
    for folder in (shown.parent, data):
        folder.mkdir(parents=True)
    target = data / "real.duckdb"
    if link != "dangling":
        target.write_bytes(b"checksumDUCK and what was there")
    pointing = target if link in ("absolute", "other file system") else Path("../data/deep/real.duckdb")
    if link == "chain":
        shown.symlink_to("second.duckdb")
        shown.with_name("second.duckdb").symlink_to(pointing)
    elif link == "linked folder":
        (tmp_path / "elsewhere").symlink_to(data)
        shown.symlink_to("../elsewhere/../deep/real.duckdb")
    else:
        shown.symlink_to(pointing)
    leftover = data / ".real.duckdb.1.publishing"
    leftover.write_text("rows")
    workspace = work_of(Workspace.from_path(shown, account=account))
    if account:
        claim(build_destination(workspace), sandbox=False, say=print)
    for first in (0, 5):
        work_of(workspace, first)
        DuckDBFile(workspace, SyncSettings()).publish()
        assert shown.is_symlink()
        assert rows(target) == rows(shown) == [*range(first, 10)]
    assert [path.name for path in data.iterdir()] == ["real.duckdb"]
    assert (shown.parent / ".msgbubbles").is_dir(), "the job's own files stay next to the path that was named"


def test_unusable_published_path_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "circle.duckdb").symlink_to("back.duckdb")
    (tmp_path / "back.duckdb").symlink_to("circle.duckdb")
    (tmp_path / "lost.duckdb").symlink_to("nowhere/file.duckdb")
    os.mkfifo(tmp_path / "pipe.duckdb")
    for name in (
        "circle.duckdb",
        "lost.duckdb",
        "pipe.duckdb",
        "it's.duckdb",
        'a"b.duckdb',
        "100%.duckdb",
        "a*.duckdb",
    ):
        with pytest.raises(UsageError, match="--database"):
            Workspace.from_path(tmp_path / name)
    with pytest.raises(UsageError, match="--database"):
        Workspace.from_path(tmp_path / "a[1].duckdb", "filesystem")


def read_descriptions(database: Path) -> list[tuple[str, str | None, str | None]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(
            """SELECT columns.table_name, coalesce(tables.comment, views.comment), columns.comment
            FROM duckdb_columns() AS columns LEFT JOIN duckdb_tables() AS tables USING (schema_name, table_name)
            LEFT JOIN duckdb_views() AS views ON views.view_name = columns.table_name
            WHERE columns.schema_name = 'marts' ORDER BY ALL"""
        ).fetchall()


def test_published_and_held_marts_keep_their_descriptions(tmp_path: Path) -> None:
    work, database = tmp_path / "work.duckdb", tmp_path / "company.duckdb"
    with duckdb.connect(str(work)) as connection:
        connection.execute(
            "CREATE SCHEMA marts; CREATE TABLE marts.daily AS SELECT 1 AS chat_id;"
            "CREATE VIEW marts.contact AS SELECT chat_id FROM marts.daily;"
            "COMMENT ON TABLE marts.daily IS 'daily'; COMMENT ON COLUMN marts.daily.chat_id IS 'The chat''s id.';"
            "COMMENT ON VIEW marts.contact IS 'contact'; COMMENT ON COLUMN marts.contact.chat_id IS 'The chat.'"
        )
    described = [("contact", "contact", "The chat."), ("daily", "daily", "The chat's id.")]
    publish(work, database)
    assert read_descriptions(database) == described
    publish(work, database, ["contact", "daily"])
    assert read_descriptions(database) == described


def test_held_mart_in_a_damaged_part_of_the_published_file_is_left_out(tmp_path: Path) -> None:
    work, database = tmp_path / "work.duckdb", tmp_path / "company.duckdb"
    with duckdb.connect(str(work)) as connection:
        connection.execute(
            "CREATE SCHEMA marts; CREATE TABLE marts.daily AS SELECT md5(i::TEXT) FROM range(100000) t(i)"
        )
        connection.execute("CREATE TABLE marts.contact AS SELECT 1 AS chat_id")
    publish(work, database)
    content = bytearray(database.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = os.urandom(1000)
    database.unlink()
    database.write_bytes(content)
    publish(work, database, ["contact", "daily"])
    with duckdb.connect(str(database), read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("contact",)]


FAULTS = [None, 0, OSError(errno.EXDEV, "another file system"), OSError(errno.ENOSPC, "full"), AttributeError()]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_copy_is_whole_whatever_the_system_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    content = bytes(range(256)) * 1024
    source.write_bytes(content)
    monkeypatch.setattr(publishing, "COPIED_AT_ONCE", 100_000)
    monkeypatch.setattr("fcntl.ioctl", raising(OSError(errno.EOPNOTSUPP, "no reflink")))
    copied = os.copy_file_range
    calls = iter(range(10))

    def copy_file_range(*arguments: int) -> int:
        if fault is not None and next(calls) == 1:
            return 0 if fault == 0 else raising(fault)()
        return copied(*arguments)

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    if getattr(fault, "errno", None) == errno.ENOSPC:
        with pytest.raises(OSError, match="full"):
            publishing.clone(source, target)
        return
    publishing.clone(source, target)
    assert target.read_bytes() == content


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail
