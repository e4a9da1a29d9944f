"""The job in this process, against the sandbox over a socket."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import duckdb
import pytest
from dlt.pipeline.state_sync import generate_pipeline_state_version_hash
from msgspec import structs

from helpers.context import LoggingConsole, RecordingConsole, build_context, serve_to_this_process
from helpers.hooks import spool, typing, workspace_in
from helpers.sizes import pick_size
from helpers.warehouse_rows import differences
from msgbubbles.source import chats, readers
from msgbubbles.source.run import MissingRows
from msgbubbles.tables import TABLES as SOURCE_TABLES
from msgbubbles_sync import job, load_streams, restore
from msgbubbles_sync.cli.sync_report import describe_failed_tests
from msgbubbles_sync.context import Limits
from msgbubbles_sync.dbt.build_result import BuildResult
from msgbubbles_sync.destinations import duckdb_file, duckdb_load
from msgbubbles_sync.destinations.duckdb_load import read_state
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import TransformError, UsageError
from msgbubbles_sync.groups.ledger import LEDGER, Ledger
from msgbubbles_sync.groups.observed import open_ledger
from msgbubbles_sync.outcome import EXIT_FAILED, EXIT_INCOMPLETE
from msgbubbles_sync.privacy import reapply, rewrite
from msgbubbles_sync.privacy.erase import erase
from msgbubbles_sync.privacy.files import purge_files
from msgbubbles_sync.sandbox import NewMessage, Server
from msgbubbles_sync.sandbox.seed import advance
from msgbubbles_sync.settings import Settings, load_settings
from msgbubbles_sync.webhooks.spool import spool_folder
from msgbubbles_sync.workspace import Step, Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),  # dlt calls it
]

CopyFirstRun = Callable[[Path, Server], Workspace]
# More than a batch.
MESSAGES = 4_200


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve an account, by default a small one. A run may publish after each batch, of which the first has 20 pages."""
    monkeypatch.setattr(job, "EARLY_SECONDS", 0.0)
    monkeypatch.setattr(load_streams, "FIRST_BATCH_MINUTES", 20 / 3000)
    messages = getattr(request, "param", 300)
    with serve_to_this_process(chats=60, messages=messages, requests_per_minute=3000) as server:
        yield server


@pytest.mark.parametrize("server", [MESSAGES], indirect=True)
def test_long_run_publishes_rows_and_events_after_its_first_batch(tmp_path: Path, server: Server) -> None:
    workspace = workspace_in(tmp_path)
    published = []

    def follow(line: str) -> None:
        if line == "batch 1 loaded":
            spool(workspace, [typing(1)])
        elif line == job.PUBLISHED_EARLY:
            published.append(read_published(workspace))

    report = job.run(build_context(workspace, console=LoggingConsole(on_line=follow)), Limits(with_transform=False))

    assert report.record["outcome"] == "complete"
    assert report.batches == 2
    messages, events, runs = published[0]
    assert MESSAGES / 4 < messages < MESSAGES / 2
    assert (events, runs) == (1, [("partial", 1)])
    assert read_published(workspace) == (MESSAGES, 1, [("complete", report.batches)])
    assert differences(workspace.database, server.truth()) == {}


def read_published(workspace: Workspace) -> tuple[int, int, list[tuple[str, int]]]:
    """Return the number of messages and of events that readers see, and the outcome and the batches of each run."""
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        counts = [
            len(database.execute(f"SELECT 1 FROM msgbubbles.{table}").fetchall())
            for table in ("messages", "webhook_events")
        ]
        runs = database.execute("SELECT outcome, batches FROM msgbubbles.sync_runs").fetchall()
    return counts[0], counts[1], runs


@pytest.mark.parametrize("server", [MESSAGES], indirect=True)
def test_run_reads_on_after_marts_that_fail_between_batches(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, console, builds = workspace_in(tmp_path), LoggingConsole(), 0

    def transform(*_arguments: object) -> BuildResult:
        nonlocal builds
        builds += 1
        if builds == 1:
            raise TransformError("no space")
        return BuildResult()

    monkeypatch.setattr(job, "transform", transform)
    report = job.run(build_context(workspace, console=console), Limits())
    assert builds == report.batches
    assert console.errors == ["only the rows: no space"]

    assert report.record["outcome"] == "complete"
    assert differences(workspace.database, server.truth()) == {}


@pytest.mark.usefixtures("server")
def test_events_before_the_first_run_are_no_sign_of_a_restored_backup(tmp_path: Path) -> None:
    workspace, console = workspace_in(tmp_path), RecordingConsole()
    spool(workspace, [typing(1)])
    for _ in range(2):
        job.run(build_context(workspace, console=console), Limits(with_transform=False))
    assert console.errors == []


def test_database_is_not_read_for_damage_after_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_in(tmp_path)
    context = build_context(workspace, console=RecordingConsole())
    spool(workspace, [typing(1)])
    assert job.load_webhooks(context, Limits(with_transform=False)).published
    monkeypatch.setattr(restore, "is_damaged", Mock(side_effect=AssertionError("read")))
    restore.restore(context.destination, pytest.fail)


def test_combined_file_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb", account="north")
    spool(workspace, [typing(1)])
    lock = workspace.folder.with_name("company") / "combine.lock"
    lock.mkdir(parents=True)
    context = build_context(workspace, Settings())
    report = job.load_webhooks(context, Limits(with_transform=False))
    assert report.outcome.exit_status == EXIT_INCOMPLETE
    assert f"{lock} is a folder" in report.failed_parts["combined file"]
    with context.destination.open_reader() as published:
        assert len(published.execute("FROM msgbubbles.webhook_events").fetchall()) == 1
    lock.rmdir()
    report = job.load_webhooks(context, Limits(with_transform=False))
    assert report.failed_parts == {}
    assert workspace.combined.exists()


def test_rows_are_published_whatever_keeps_the_marts_from_being_built(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_in(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(job, "transform", Mock(side_effect=PermissionError(13, "Permission denied", "/models/a.sql")))
        report = job.run(build_context(workspace), Limits())
        assert report.outcome.exit_status == EXIT_FAILED
        assert "the marts could not be built: /models/a.sql cannot be read or written" in report.outcome.message
        assert differences(workspace.database, server.truth()) == {}

        broken.undo()
        broken.setitem(sys.modules, "dbt.adapters.duckdb.connections", None)  # not installed
        broken.delitem(sys.modules, "msgbubbles_sync.dbt.process", raising=False)
        report = job.run(build_context(workspace), Limits())
        assert report.outcome.exit_status == EXIT_FAILED
        assert "the marts could not be built: dbt is not installed" in report.outcome.message
        assert report.published


@pytest.mark.parametrize(("pending", "function"), [(None, "expire"), ("erase", "purge"), ("policy", "apply_policy")])
def test_rows_are_loaded_and_not_published_while_others_cannot_be_removed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, pending: Step | None, function: str
) -> None:
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__TEXT_DAYS", "36500")
    workspace, console = workspace_in(tmp_path), RecordingConsole()
    context = build_context(workspace, console=console)
    if pending is not None:
        workspace.make_folders()
        workspace.set_pending(pending)
    with monkeypatch.context() as broken:
        broken.setattr(job, function, Mock(side_effect=OSError(5, "Input/output error", "/a/file")))
        report = job.run(context, Limits(with_transform=False))
    assert (report.outcome.exit_status, report.published) == (EXIT_FAILED, False)
    assert "/a/file: Input/output error" in report.outcome.message
    spool(workspace, [typing(1)])
    report = job.load_webhooks(context, Limits(with_transform=False))
    assert (report.outcome.exit_status, report.published) == (EXIT_INCOMPLETE, False)
    assert f"publish: {job.NOT_PUBLISHED}" in console.errors
    assert not workspace.database.exists()
    report = job.run(context, Limits(with_transform=False))
    assert (report.outcome.exit_status, report.published) == (0, True)
    assert report.record["tables"]["messages"]["new"] == 0, "the first run has loaded them"
    assert differences(workspace.database, server.truth()) == {}


@pytest.mark.parametrize("pending", ["policy", "erase"])
def test_nothing_else_publishes_before_an_interrupted_erasure_or_policy_is_finished(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch, pending: Step
) -> None:
    workspace = copy_first_run(tmp_path, server)
    monkeypatch.setattr(job, "transform", Mock(return_value=BuildResult()))
    workspace.set_pending(pending)
    spool(workspace, [typing(1)])
    context, chats = build_context(workspace), MissingRows(chats=[server.truth().chats[0]["id"]])
    assert not job.load_webhooks(context, Limits()).published
    assert not job.repair(context, chats, Limits()).published
    assert job.run(context, Limits(with_transform=False)).outcome.exit_status == 0
    assert not workspace.is_pending(pending, "publish")
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        assert database.execute("SELECT count(*) FROM msgbubbles.webhook_events").fetchone() == (1,)


@pytest.mark.parametrize(
    ("ending", "has_new_rows"),
    # Without new rows, the models have changed, and only the pending build says that it is due.
    [(KeyboardInterrupt(), True), (KeyboardInterrupt(), False), (TransformError("a failed statement"), True)],
)
def test_marts_of_a_build_that_did_not_finish_are_not_published(
    tmp_path: Path,
    server: Server,
    copy_first_run: CopyFirstRun,
    monkeypatch: pytest.MonkeyPatch,
    ending: BaseException,
    has_new_rows: bool,
) -> None:
    workspace = copy_first_run(tmp_path, server)
    context = build_context(workspace)

    def build(version: int, *marts: str) -> None:
        with context.destination.open_writer() as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS marts")
            for mart in marts:
                connection.execute(f"CREATE OR REPLACE TABLE marts.{mart} AS SELECT {version} AS version")

    def interrupted(*_arguments: object) -> BuildResult:
        build(2, "contact")
        raise ending

    def finished(*_arguments: object) -> BuildResult:
        build(2, "contact", "thread_activity")
        return BuildResult()

    def run(*, with_transform: bool) -> list[tuple[int, int]]:
        report = job.run(context, Limits(with_transform=with_transform))
        is_held = workspace.is_pending("build") and not with_transform
        assert report.failed_parts == ({"marts": job.UNFINISHED} if is_held else {})
        assert report.outcome.exit_status == EXIT_INCOMPLETE or not is_held
        with duckdb.connect(str(workspace.database), read_only=True) as database:
            return database.execute("FROM marts.contact, marts.thread_activity").fetchall()

    build(1, "contact", "thread_activity")
    context.destination.publish()
    outdated = iter([True])
    monkeypatch.setattr(job, "is_outdated", lambda *_: next(outdated, False))
    workspace.set_done("transform")
    if has_new_rows:
        server.account.rename(server.truth().chats[0]["id"], "renamed", datetime.now(UTC))
    monkeypatch.setattr(job, "transform", interrupted)
    assert run(with_transform=True) == [(1, 1)]
    assert run(with_transform=False) == [(1, 1)]
    assert differences(workspace.database, server.truth()) == {}, "the rows are published"
    monkeypatch.setattr(job, "transform", finished)
    assert run(with_transform=True) == [(2, 2)]
    assert not workspace.is_pending("build", "transform", "publish")


def test_failed_data_tests_of_an_erasure_are_said_to_concern_published_marts(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_first_run(tmp_path, server)
    context = build_context(workspace)
    with context.destination.open_writer() as connection:
        connection.execute("CREATE SCHEMA marts; CREATE TABLE marts.contact AS SELECT 1 AS version")
    monkeypatch.setattr(rewrite, "transform", Mock(return_value=BuildResult(["a_test"], ["contact"])))
    with rewrite.rewriting(context):
        pass
    report = job.run(build_context(workspace), Limits(with_transform=False))
    assert (report.outcome.exit_status, report.held_marts) == (EXIT_INCOMPLETE, [])
    assert "contact; they are published anyway, because rows were removed" in describe_failed_tests(report)[0]


def test_marts_that_a_killed_rewriting_has_dropped_are_built_before_anything_is_published(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_first_run(tmp_path, server)
    context = build_context(workspace)
    with context.destination.open_writer() as connection:
        connection.execute("CREATE SCHEMA marts; CREATE TABLE marts.contact AS SELECT 1 AS version")
    context.destination.publish()
    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "transform", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), rewrite.rewriting(context):
            pass
    build = Mock(return_value=BuildResult())
    monkeypatch.setattr(job, "transform", build)
    spool(workspace, [typing(1)])
    assert job.load_webhooks(build_context(workspace), Limits(with_transform=False)).published
    assert job.run(build_context(workspace), Limits(with_transform=False)).outcome.exit_status == 0
    assert build.call_count == 1


@pytest.mark.parametrize("change", ["policy", "erase"])
def test_marts_that_cannot_be_built_keep_no_removed_row_with_readers(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch, change: Step
) -> None:
    workspace = copy_first_run(tmp_path, server)
    query = "SELECT remote_handle FROM msgbubbles.chats WHERE remote_handle ^@ '+'"
    context = build_context(workspace)
    with context.destination.open_writer() as connection:
        handles = [handle for (handle,) in connection.execute(query).fetchall()]
        connection.execute(f"CREATE SCHEMA marts; CREATE TABLE marts.contact AS {query}")
    context.destination.publish()
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__KEY", "k" * 64)
    if change == "policy":
        monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "analytics")
    monkeypatch.setattr(rewrite, "transform", Mock(side_effect=TransformError("dbt did not start")))
    with pytest.raises(TransformError, match="changed and published, but the marts are missing: dbt did not start"):
        reapply.apply(build_context(workspace)) if change == "policy" else erase(build_context(workspace), handles)
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        assert database.execute(query).fetchall() == []
        assert database.execute("FROM duckdb_tables() WHERE schema_name = 'marts'").fetchall() == []
    assert not workspace.is_pending(change)
    assert workspace.is_pending("transform")
    report = job.run(build_context(workspace), Limits(with_transform=False))
    assert report.outcome.exit_status == 0
    assert not workspace.is_pending("privacy_files")


def test_files_that_cannot_be_changed_keep_no_stricter_policy_from_readers(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, vault = copy_first_run(tmp_path, server), tmp_path / "vault.sqlite"
    ledger, segment = workspace.folder / LEDGER, spool_folder(workspace) / "1.jsonl"
    for name, value in (("PRESET", "analytics"), ("KEY", "k" * 64), ("VAULT", str(vault))):
        monkeypatch.setenv(f"SOURCES__MSGBUBBLES__PRIVACY__{name}", value)
    for path in (ledger, vault):
        path.write_bytes(b"not a database" * 500)
    segment.mkdir(parents=True)

    context = build_context(workspace)
    reapply.apply(context)
    failures = purge_files(context)[1]
    assert [path for path in (segment, vault, ledger) if not any(str(path) in reason for reason in failures)] == []
    with duckdb.connect(str(workspace.database), read_only=True) as database:
        query = "SELECT count(*), count(*) FILTER (remote_handle LIKE 'p\\_%' ESCAPE '\\') FROM msgbubbles.chats"
        assert database.execute(query).fetchone() == (60, 60), "readers have pseudonyms only"
    with pytest.raises(UsageError, match=r"run chats\.py first"), open_ledger(build_context(workspace)):
        pass

    report = job.run(build_context(workspace), Limits(with_transform=False))
    assert report.outcome.exit_status == EXIT_INCOMPLETE
    assert report.record["failed_parts"].keys() == {"privacy files", "group operations", "webhook events", "vault"}
    segment.rmdir()
    (workspace.folder / "loaded_with").write_bytes(b"\xff not a hash")
    vault.unlink()
    ledger.unlink()
    with Ledger.open(workspace.folder):
        pass
    assert job.run(build_context(workspace), Limits(with_transform=False)).outcome.exit_status == 0
    assert not ledger.exists()
    assert not workspace.is_pending("privacy_files", "former_ledger")


def test_damaged_ledger_next_to_restored_tables_fails_alone(tmp_path: Path, server: Server) -> None:
    workspace = workspace_in(tmp_path)
    workspace.make_folders()
    ledger = workspace.folder / LEDGER
    ledger.write_bytes(b"not a database" * 500)
    workspace.set_pending("restored")
    workspace.set_pending("erase")
    for _ in range(2):
        report = job.run(build_context(workspace), Limits(with_transform=False))
        assert report.outcome.exit_status == EXIT_INCOMPLETE
        assert report.record["failed_parts"].keys() == {"privacy files", "group operations"}
        assert all(f"{ledger} is damaged" in reason for reason in report.record["failed_parts"].values())
        assert not workspace.is_pending("erase"), "the tables are done"
    assert differences(workspace.database, server.truth()) == {}
    assert not workspace.is_pending("restored")
    ledger.unlink()
    with Ledger.open(workspace.folder):
        pass
    assert job.run(build_context(workspace), Limits(with_transform=False)).outcome.exit_status == 0
    assert not workspace.is_pending("ledger")


def test_row_that_was_garbled_once_leaves_the_rejected_rows(tmp_path: Path, server: Server) -> None:
    workspace = workspace_in(tmp_path)
    oldest = server.truth().messages[-1]["id"]

    def run() -> tuple[int, list[tuple[str]]]:
        report = job.run(build_context(workspace), Limits(with_transform=False))
        with duckdb.connect(str(workspace.database), read_only=True) as database:
            return report.outcome.exit_status, database.execute(
                "SELECT stream FROM msgbubbles.rejected_rows"
            ).fetchall()

    server.knobs.transform_row = lambda _kind, row: "?" if row.get("id") == oldest else row
    assert run() == (EXIT_INCOMPLETE, [("messages",)])
    server.knobs.transform_row = None
    assert run() == (0, [])
    assert differences(workspace.database, server.truth()) == {}


def test_model_that_fails_is_built_again_with_new_rows(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, builds = workspace_in(tmp_path), 0

    def transform(*_arguments: object) -> BuildResult:
        nonlocal builds
        builds += 1
        return BuildResult(failed_models=["own"])

    def run() -> tuple[int, int]:
        return job.run(build_context(workspace), Limits()).outcome.exit_status, builds

    monkeypatch.setattr(job, "transform", transform)
    monkeypatch.setattr(job, "load_build_result", lambda _workspace: BuildResult(failed_models=["own"]))
    monkeypatch.setattr(job, "is_outdated", lambda *_arguments: False)
    monkeypatch.setattr(job, "EARLY_SECONDS", 1e9)
    assert run() == (EXIT_INCOMPLETE, 1)
    assert run() == (EXIT_INCOMPLETE, 1)
    chat_id = server.truth().chats[0]["id"]
    server.account.add_message(NewMessage(chat_id, "inbound", "again", datetime.now(UTC), "received"))
    assert run() == (EXIT_INCOMPLETE, 2)


def test_api_that_lists_no_message_of_its_chats_is_reported_until_it_does(tmp_path: Path, server: Server) -> None:
    workspace = workspace_in(tmp_path)

    def run() -> tuple[int, str, list[str]]:
        report = job.run(build_context(workspace), Limits(with_transform=False))
        return report.outcome.exit_status, report.record["outcome"], list(report.record["failed_parts"])

    server.knobs.answer = lambda _method, path, _query: (204, {}, b"") if path.endswith("/messages") else None
    assert run() == (EXIT_INCOMPLETE, "partial", ["messages"])
    assert run() == (EXIT_INCOMPLETE, "partial", ["messages"])
    server.knobs.answer = None
    assert run() == (0, "complete", [])
    assert differences(workspace.database, server.truth()) == {}


def test_chat_whose_list_was_empty_once_is_read_by_the_next_run(tmp_path: Path, server: Server) -> None:
    workspace, oldest = workspace_in(tmp_path), min(server.truth().chats, key=lambda chat: chat["last_message_at"])
    context = build_context(workspace)

    def answer(_method: str, _path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes] | None:
        return (204, {}, b"") if query.get("conversation_id") == oldest["id"] else None

    server.knobs.feed, server.knobs.answer = False, answer
    assert job.run(context, Limits(with_transform=False)).outcome.exit_status == 0
    assert differences(workspace.database, server.truth()) != {}
    server.knobs.answer = None
    assert job.run(context, Limits(with_transform=False)).outcome.exit_status == 0
    assert differences(workspace.database, server.truth()) == {}


def test_dlt_starts_only_if_the_last_load_was_another_one(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, account, now = copy_first_run(tmp_path, server), server.account, datetime.now(UTC)
    chat = server.truth().chats[0]["id"]
    build = Mock(side_effect=build_pipeline)
    monkeypatch.setattr(load_streams, "build_pipeline", build)

    def run(outcome: str = "complete", settings: Settings | None = None) -> tuple[int, int]:
        """Return how many pipelines were built and how many requests were made."""
        before = build.call_count
        report = job.run(build_context(workspace, settings), Limits(with_transform=False))
        assert (report.record["outcome"], report.record["batches"]) == (outcome, 1)
        return build.call_count - before, report.run.traffic.total

    assert run() == (0, 3)
    changes: list[Callable[[], object]] = [
        lambda: account.add_message(NewMessage(chat, "inbound", "new", now, "received", id="new")),
        lambda: account.edit_text("new", "edited", now),
        lambda: account.rename(chat, "renamed", now),
        lambda: account.add_number("+14155550177", "new"),
        lambda: workspace.set_pending("repair"),
    ]
    for change in changes:
        change()
        assert run() == (0, 3)
        assert differences(workspace.database, server.truth()) == {}
    (workspace.folder / load_streams.LOADED_WITH).unlink()
    assert run() == (1, 3)
    assert run() == (0, 3)

    settings = load_settings()
    source = structs.replace(settings.source, lookback_seconds=settings.source.lookback_seconds + 1)
    assert run(settings=replace(settings, source=source)) == (1, 3)
    assert run()[0] == 1  # with the settings of before
    with monkeypatch.context() as patch:
        patch.setattr(chats, "HOUR_MS", 0)  # look for deleted chats
        assert run() == (0, 3)
    server.knobs.answer = lambda _method, path, _query: (404, {}, b"{}") if path.endswith("/numbers") else None
    assert run() == (0, 3)
    server.knobs.answer = lambda _method, path, _query: (401, {}, b"{}") if path.endswith("/chats") else None
    assert run("failed") == (0, 3)
    server.knobs.answer = None
    assert run() == (0, 3)
    assert differences(workspace.database, server.truth()) == {}
    account.run("DELETE FROM numbers WHERE label = 'new'")  # nothing to load, but to remember
    assert run() == (0, 3)
    state = read_state(workspace)
    assert run() == (0, 3)
    assert read_state(workspace) == state


def test_load_without_dlt_leaves_the_rows_and_the_state_that_dlt_would(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun
) -> None:
    account, random = server.account, Random(20)
    workspaces = [copy_first_run(tmp_path / name, server) for name in ("dlt", "direct")]

    def run_each() -> None:
        for workspace in workspaces:
            if workspace is workspaces[0]:
                (workspace.folder / load_streams.LOADED_WITH).unlink(missing_ok=True)
            job.run(build_context(workspace), Limits(with_transform=False))

    def read(workspace: Workspace) -> dict[str, list[Any]]:
        """Return the rows of each table, and the state, without the times of reading."""
        state = json.loads(read_state(workspace))["sources"]["msgbubbles"]["resources"]
        with duckdb.connect(str(workspace.database), read_only=True) as database:
            described = {name: readers._describe(part) for name, part in state.items()}
            described["chats"] = {k: v for k, v in described["chats"].items() if not k.endswith("_ms")}
            return {"state": [json.dumps(described, sort_keys=True)]} | {
                table: sorted(
                    database.execute(
                        f"SELECT to_json(r)::VARCHAR FROM (SELECT * EXCLUDE (_dlt_load_id, _fetched_at) "
                        f"FROM msgbubbles.{table}) AS r"
                    ).fetchall()
                )
                for table in SOURCE_TABLES
            }

    for step in range(pick_size(2, nightly=4)):
        chats_before = server.truth().chats
        advance(account, datetime.now(UTC), minimum=30)
        chat = random.choice(chats_before)["id"]
        now = datetime.now(UTC)
        account.rename(chat, f"name \uf027 {step}", now)
        account.delete_chat(random.choice(chats_before)["id"])
        messages = [row["id"] for row in account.all("SELECT id FROM messages ORDER BY created_us DESC LIMIT 20")]
        account.edit_text(random.choice(messages), f'edited "{step}"', now)
        account.add_message(NewMessage(chat, "inbound", "\x00 no text that can be stored", now, "received"))
        run_each()
        rows = [read(workspace) for workspace in workspaces]
        assert rows[0] == rows[1]
    pipeline = build_pipeline(build_context(workspaces[1]).destination)
    pipeline.sync_destination()
    state = pipeline.state
    assert state["_version_hash"] == generate_pipeline_state_version_hash(state)
    assert state["_local"]["_last_extracted_hash"] == state["_version_hash"]


@pytest.mark.parametrize(
    ("broken", "error", "needs_dlt"),
    [
        ("merge_rows", duckdb.IOException("no space"), False),
        ("merge_rows", duckdb.TransactionException("failed to commit"), False),
        ("write_privately", OSError("no space"), True),  # the tables have what the state does not know
    ],
)
def test_load_without_dlt_that_is_cut_off_loses_nothing(
    tmp_path: Path,
    server: Server,
    copy_first_run: CopyFirstRun,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    error: Exception,
    needs_dlt: bool,
) -> None:
    workspace = copy_first_run(tmp_path, server)

    def run() -> int:
        return job.run(build_context(workspace), Limits(with_transform=False)).outcome.exit_status

    build = Mock(side_effect=build_pipeline)
    monkeypatch.setattr(load_streams, "build_pipeline", build)
    advance(server.account, datetime.now(UTC), minimum=30)
    with monkeypatch.context() as patch:
        patch.setattr(duckdb_load, broken, Mock(side_effect=error))
        assert run() == EXIT_FAILED
    assert not build.called
    version = json.loads(read_state(workspace))["_state_version"]
    assert run() == 0
    assert build.called == needs_dlt
    assert json.loads(read_state(workspace))["_state_version"] > version
    assert differences(workspace.database, server.truth()) == {}


def test_run_without_dlt_that_fails_after_its_load_leaves_dlt_nothing_to_check(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_first_run(tmp_path, server)
    advance(server.account, datetime.now(UTC), minimum=30)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(duckdb_file, "publish", Mock(side_effect=full))
        assert job.run(build_context(workspace), Limits(with_transform=False)).outcome.exit_status == EXIT_FAILED
    check = Mock()
    monkeypatch.setattr(restore, "_is_damaged_pipeline", check)
    restore.restore(build_context(workspace).destination, print)
    assert not check.called


def test_load_that_the_database_refuses_without_dlt_is_done_by_dlt(
    tmp_path: Path, server: Server, copy_first_run: CopyFirstRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = copy_first_run(tmp_path, server)
    new = advance(server.account, datetime.now(UTC), minimum=30)
    monkeypatch.setattr(duckdb_load, "merge_rows", Mock(side_effect=duckdb.ConstraintException("refused")))
    report = job.run(build_context(workspace), Limits(with_transform=False))
    assert report.record["outcome"] == "complete"
    assert report.record["tables"]["messages"]["new"] == new
    assert differences(workspace.database, server.truth()) == {}
