"""Tables that somebody has changed by hand between two runs of the job, in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import psycopg2
import pytest

from helpers.context import LoggingConsole, RecordingConsole, build_context, build_destination, serve_to_this_process
from helpers.hooks import spool, typing, workspace_in
from helpers.sizes import nightly
from helpers.warehouse_rows import differences
from msgbubbles_sync import job
from msgbubbles_sync.context import Limits
from msgbubbles_sync.inspect.check import check_destination
from msgbubbles_sync.privacy.erase import erase
from msgbubbles_sync.sandbox import NewMessage, Server
from msgbubbles_sync.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),  # dlt calls it
]

CopyFirstRun = Callable[[Path, Server], Workspace]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_to_this_process(chats=20, messages=100) as server:
        yield server


def run_complete(workspace: Workspace) -> str:
    """Run the job to a complete end, and return what it reports as errors."""
    console = RecordingConsole()
    report = job.run(build_context(workspace, console=console), Limits(with_transform=False))
    assert report.outcome.exit_status == 0, (report.outcome, console.errors)
    return "\n".join(console.errors)


# Statements, and what the run says that somebody has changed.
CHANGES = [
    {
        "ALTER TABLE messages ALTER COLUMN text TYPE INTEGER USING 1": "messages.text (INTEGER)",
        "ALTER TABLE messages ALTER COLUMN extra TYPE BLOB USING 'x'": "messages.extra (BLOB)",
        "ALTER TABLE stream_coverage ALTER COLUMN complete_to TYPE DATE": "stream_coverage.complete_to (DATE)",
        "UPDATE numbers SET label = ''; ALTER TABLE numbers ALTER label SET NOT NULL": "numbers.label",
        "ALTER TABLE chats RENAME TO chats_before; CREATE VIEW chats AS FROM chats_before": "chats (a view",
        "ALTER TABLE attachments DROP COLUMN id": "attachments (without id, now attachments_replaced)",
        "ALTER TABLE webhook_events DROP COLUMN _dlt_load_id": "webhook_events._dlt_load_id (missing)",
        "ALTER TABLE webhook_events DROP COLUMN received_at": "webhook_events.received_at (missing)",
        "ALTER TABLE messages DROP COLUMN _fetched_at": "messages._fetched_at (missing)",
        "ALTER TABLE participant_lists DROP COLUMN _fetched_at": "now participant_lists_replaced)",
        "DROP TABLE sync_runs; CREATE TABLE sync_runs AS SELECT 1 AS run_id": "sync_runs.run_id (INTEGER)",
        "DROP TABLE failed_reads; CREATE TABLE failed_reads AS SELECT 'x' AS tries": "failed_reads.tries (VARCHAR)",
    },
    {
        "DROP TABLE messages; CREATE VIEW messages AS SELECT 1 AS id": "messages (a view, now messages_replaced)",
        "DROP TABLE attachments; ALTER TABLE chats DROP COLUMN title": "changed or removed a table",
        "CREATE TABLE numbers_replaced AS FROM numbers": "numbers (without",
        "DROP TABLE numbers; CREATE TABLE numbers AS SELECT 1 AS x": "now numbers_replaced_2)",
        "DROP TABLE sync_runs; CREATE VIEW sync_runs AS SELECT 1 AS x": "sync_runs (a view, now sync_runs_replaced)",
        "DROP TABLE _dlt_version; DROP TABLE _dlt_loads": "changed or removed a table",
    },
    {"DROP TABLE chat_titles": "chat_titles (missing)"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_tables_that_somebody_changed_are_loaded_completely(
    changes: dict[str, str], tmp_path: Path, server: Server, copy_first_run: CopyFirstRun
) -> None:
    workspace = copy_first_run(tmp_path, server)
    spool(workspace, [typing(1)])
    run_complete(workspace)
    with duckdb.connect(str(workspace.work)) as database:
        database.execute("USE msgbubbles")
        for statements in changes:
            database.execute(statements)
    chat_id = server.truth().chats[0]["id"]
    server.account.add_message(NewMessage(chat_id, "inbound", "again", datetime.now(UTC), "received"))
    spool(workspace, [typing(2)])
    errors = run_complete(workspace)
    assert [change for change in changes.values() if change not in errors] == []
    assert differences(workspace.database, server.truth()) == {}
    assert run_complete(workspace) == ""
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        assert database.execute("SELECT count(*) FROM msgbubbles.webhook_events").fetchall() == [(2,)]
        titles = "SELECT DISTINCT chat_id, title FROM msgbubbles.chat_titles ORDER BY ALL"
        chats = "SELECT id, title FROM msgbubbles.chats WHERE title IS NOT NULL ORDER BY ALL"
        assert database.execute(titles).fetchall() == database.execute(chats).fetchall() != []
    named = " ".join([*changes, *(what for what in changes.values() if "view" not in what)])
    checked = check_destination(build_context(workspace)).what
    assert {*re.findall(r"\w+_replaced\w*", checked)} >= {*re.findall(r"\w+_replaced\w*", named)}


def test_run_records_that_cannot_be_stored_fail_alone(tmp_path: Path, server: Server) -> None:
    workspace = workspace_in(tmp_path)

    def replace_runs(line: str) -> None:
        if line == "publishing":
            with duckdb.connect(str(workspace.work)) as database:
                database.execute("CREATE VIEW msgbubbles.sync_runs AS SELECT 1 AS run_id")

    console = LoggingConsole(on_line=replace_runs)
    report = job.run(build_context(workspace, console=console), Limits(with_transform=False))
    assert report.outcome.exit_status == 3
    assert report.record["failed_parts"].keys() == {"sync_runs"}
    assert differences(workspace.database, server.truth()) == {}
    run_complete(workspace)
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        query = "SELECT exit_status FROM msgbubbles.sync_runs ORDER BY started_at"
        assert database.execute(query).fetchall() == [(3,), (0,)]


# Statements, the table that they concern, what fixes it, and what the run says.
HELD = {
    "numbers": (
        "ALTER TABLE numbers ALTER label TYPE INTEGER USING 1; CREATE INDEX own ON numbers(label)",
        "DROP INDEX own",
        "numbers.label (INTEGER)",
    ),
    "messages": (
        "ALTER TABLE messages ALTER text TYPE INTEGER USING 1; CREATE INDEX own ON messages(text)",
        "DROP INDEX own",
        'ALTER TABLE msgbubbles."messages" DROP COLUMN "text"',
    ),
    "chats": (
        "ALTER TABLE chats ADD COLUMN own INTEGER DEFAULT 0; UPDATE chats SET own = rowid + 1; "
        "CREATE UNIQUE INDEX own ON chats(own)",
        "DROP INDEX own; ALTER TABLE chats DROP COLUMN own",
        "were added to the table chats, and run again",
    ),
}


# A number is held back as a message is.
@pytest.mark.parametrize("table", ["messages", "chats", pytest.param("numbers", marks=nightly)])
def test_table_that_cannot_be_changed_back_is_held_back_alone(
    table: str, tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNC__MEMORY_LIMIT", "512MB")  # the rows are tried while dlt has the file open as well
    workspace = copy_first_run(tmp_path, server)
    change, fix, what = HELD[table]
    with duckdb.connect(str(workspace.work)) as database:
        database.execute(f"USE msgbubbles; {change}")
    for chat in server.truth().chats[:2]:
        server.account.add_message(NewMessage(chat["id"], "inbound", "again", datetime.now(UTC), "received"))
    for _ in range(2):
        console = RecordingConsole()
        report = job.run(build_context(workspace, console=console), Limits(with_transform=False))
        assert (report.outcome.exit_status, report.record["outcome"]) == (3, "partial")
        assert report.record["failed_parts"].keys() == {table}
        assert what in "\n".join(console.errors)
        wrong = differences(workspace.database, server.truth())
        assert {name.partition(".")[0] for name in wrong} <= {table, "attachments"}, "the others are complete"
    with duckdb.connect(str(workspace.work)) as database:
        database.execute(f"USE msgbubbles; {fix}")
    run_complete(workspace)
    assert differences(workspace.database, server.truth()) == {}
    assert run_complete(workspace) == ""


# A column of each table that the job writes itself.
OWN_COLUMNS = {
    "sync_runs": "exit_status", "failed_reads": "tries", "_account": "claim", "_version": "version",
    "privacy": "record", "erasures": "people",
}  # fmt: skip


def test_tables_of_the_job_that_cannot_be_changed_back_stop_no_run_and_no_erasure(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", "c0ffee" * 11)
    workspace = copy_first_run(tmp_path, server)
    run_complete(workspace)
    with duckdb.connect(str(workspace.work)) as database:
        database.execute("USE msgbubbles; CREATE TABLE privacy (record VARCHAR); CREATE TABLE _account (claim VARCHAR)")
        for table, column in OWN_COLUMNS.items():
            database.execute(f"ALTER TABLE {table} ALTER {column} TYPE DATE USING DATE '2026-01-01'")
            database.execute(f"CREATE INDEX own_{table} ON {table}({column})")
    chat = next(chat for chat in server.truth().chats if not chat["is_group"])
    server.account.add_message(NewMessage(chat["id"], "inbound", "again", datetime.now(UTC), "received"))
    report = job.run(build_context(workspace), Limits(with_transform=False))
    assert (report.outcome.exit_status, report.record["outcome"]) == (3, "complete")
    assert report.record["failed_parts"].keys() == OWN_COLUMNS.keys()
    assert 'run ALTER TABLE msgbubbles."sync_runs"' in report.record["failed_parts"]["sync_runs"]
    assert differences(workspace.database, server.truth()) == {}
    assert erase(build_context(workspace), [chat["remote_handle"]]).people == 1
    with duckdb.connect(str(workspace.work)) as database:
        for table in OWN_COLUMNS:
            database.execute(f"DROP INDEX msgbubbles.own_{table}")
    run_complete(workspace)
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        remaining = "SELECT count(*) FROM msgbubbles.chats WHERE remote_handle = ?"
        assert database.execute(remaining, [chat["remote_handle"]]).fetchall() == [(0,)]
        stored = "SELECT (SELECT record FROM msgbubbles.privacy), (SELECT version FROM msgbubbles._version)"
        assert database.execute(stored).fetchall() == [
            ((workspace.folder / "privacy.json").read_text(), workspace.version)
        ]
    assert run_complete(workspace) == ""


def test_tables_that_the_role_may_not_write_are_held_back(
    new_role: Callable[..., str], postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = new_role("loading")
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address.replace("postgres:@", f"{role}:@"))
    with closing(psycopg2.connect(postgres_address)) as admin, admin, admin.cursor() as cursor:
        cursor.execute(f"""CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles._account AS SELECT '{{}}'::text AS claim;
            CREATE TABLE msgbubbles.numbers (handle TEXT); CREATE TABLE msgbubbles.sync_runs (run_id TEXT);
            CREATE TABLE msgbubbles.chats (id TEXT, _fetched_at TIMESTAMPTZ, _dlt_load_id TEXT);
            CREATE TABLE msgbubbles.mine (id TEXT);
            ALTER SCHEMA msgbubbles OWNER TO {role}; GRANT SELECT ON msgbubbles._account TO {role};
            GRANT ALL ON msgbubbles.chats TO {role}; GRANT CREATE ON DATABASE {admin.info.dbname} TO {role}""")
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "postgres")
    workspace.make_folders()
    destination = build_destination(workspace)
    destination.prepare()
    assert destination.held.keys() == {"numbers"}
    assert destination.unwritable.keys() == {"_account", "sync_runs"}
    assert f'run ALTER TABLE msgbubbles.numbers OWNER TO "{role}"' in destination.held["numbers"]


def test_row_is_not_rejected_for_a_lock_of_another_session(
    postgres_address: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)
    monkeypatch.setenv("SYNC__LOCK_TIMEOUT_SECONDS", "1")
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "postgres")
    workspace.make_folders()
    run_complete(workspace)
    chat_id = server.truth().chats[0]["id"]
    for text in ("wanted", "unwanted"):
        server.account.add_message(NewMessage(chat_id, "inbound", text, datetime.now(UTC), "received"))
    with closing(psycopg2.connect(postgres_address)) as session, session.cursor() as cursor:
        cursor.execute("ALTER TABLE msgbubbles.messages ADD CHECK (text <> 'unwanted')")
        session.commit()

        def lock_messages(line: str) -> None:
            if "row by row" in line:
                cursor.execute("LOCK TABLE msgbubbles.messages IN SHARE MODE")

        context = build_context(workspace, console=LoggingConsole(on_line=lock_messages))
        report = job.run(context, Limits(with_transform=False))
        assert (report.outcome.exit_status, "session" in report.outcome.message) == (1, True), report.outcome
        session.rollback()
        report = job.run(build_context(workspace), Limits(with_transform=False))
        assert report.outcome.exit_status == 3
        cursor.execute("SELECT row::jsonb ->> 'text' FROM msgbubbles.rejected_rows")
        assert cursor.fetchall() == [("unwanted",)]
        cursor.execute("SELECT count(*) FROM msgbubbles.messages")
        assert cursor.fetchall() == [(len(server.truth().messages) - 1,)]
