"""`check` when checks cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from helpers.context import build_context, serve_to_this_process
from helpers.permissions import obey_permissions
from msgbubbles.client import Client
from msgbubbles.errors import Interrupted
from msgbubbles.transport import Transport
from msgbubbles_sync.check_result import Check, CheckResult, run_checks
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.inspect.check import list_checks
from msgbubbles_sync.outcome import explain_end
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.workspace import Workspace


def test_error_in_a_check_does_not_stop_the_others(tmp_path: Path) -> None:
    context = build_context(Workspace(tmp_path / "warehouse.duckdb"))
    context.workspace.make_folders()

    def connect() -> Client:
        raise UsageError("No API key.")

    def fail_halfway() -> Iterator[CheckResult]:
        yield CheckResult("halfway", "ok", "the first half")
        raise duckdb.InternalException("row +14155550123")

    checks: list[Check] = [("broken", fail_halfway)]
    checks += [check for check in list_checks(context, connect) if check[0] != "transforms"]
    results = list(run_checks(checks, lambda error: explain_end(error, context).message))
    assert [result.name for result in results if result.state == "failed"] == ["broken", "configuration"]
    assert results[2].what == "No API key."
    assert [result.name for result in results if result.state == "ok"] == [
        "halfway", "destination", "state", "disk", "lock", "last run", "failed reads", "privacy policy",
    ]  # fmt: skip
    assert "+14155550123" not in str(results)
    context.workspace.set_pending("erase")
    results = list(run_checks(checks, lambda error: explain_end(error, context).message))
    assert [result.fix for result in results if result.name == "privacy policy"] == ["run chats.py, which finishes it"]


def test_folder_that_cannot_be_created_fails_one_check(tmp_path: Path) -> None:
    context = build_context(Workspace(tmp_path / "warehouse.duckdb"))
    tmp_path.chmod(0o500)
    checks = [check for check in list_checks(context, Client) if check[0] != "configuration"]  # type: ignore[arg-type]
    results = obey_permissions(lambda: list(run_checks(checks, lambda error: explain_end(error, context).message)))
    [failed] = [result for result in results if result.state == "failed"]
    assert (failed.name, failed.what) == ("destination", f"{tmp_path / '.msgbubbles'}: Permission denied")


def test_folder_of_a_first_run_is_of_no_older_release(tmp_path: Path) -> None:
    context = build_context(Workspace(tmp_path / "warehouse.duckdb"))
    context.workspace.folder.mkdir(parents=True)  # a job has begun to make it
    check_version(context.destination)
    (context.workspace.folder / "state.json").touch()
    with pytest.raises(UsageError, match="older release"):
        check_version(context.destination)


def test_part_that_failed_in_the_last_run_is_reported(tmp_path: Path) -> None:
    context = build_context(Workspace(tmp_path / "warehouse.duckdb"))
    context.workspace.folder.mkdir(parents=True)
    parts = {"webhook events": "1 file cannot be read"}
    RunLog(context.workspace.folder).add(
        {"run_id": "1", "started_at": "2026-06-01", "outcome": "complete", "exit_status": 3, "failed_parts": parts}
    )
    [check] = [check for check in list_checks(context, Client) if check[0] == "last run"]  # type: ignore[arg-type]
    [result] = run_checks([check], str)
    assert result.state == "failed"
    assert "webhook events: 1 file cannot be read" in result.what


def test_signal_ends_the_checks() -> None:
    def stop() -> Iterator[CheckResult]:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        list(run_checks([("api", stop)], str))


@pytest.mark.parametrize("endpoint", ["chats", "numbers", "messages"])
def test_endpoint_that_fails_is_named_and_the_others_are_checked(endpoint: str, tmp_path: Path) -> None:
    context = build_context(Workspace(tmp_path / "warehouse.duckdb"))
    with serve_to_this_process(chats=5, messages=20) as server:

        def connect() -> Client:
            return Client(Transport(server.url, server.key, None, max_attempts=1))

        def refuse(path: str, status: int) -> None:
            server.knobs.answer = lambda _method, asked, _query: (status, {}, b"") if asked.startswith(path) else None

        checks = [check for check in list_checks(context, connect) if check[0] == "configuration"]
        for status in (401, 500):
            refuse(f"/v1/{endpoint}", status)
            results = {result.name: result for result in run_checks(checks, str)}
            assert str(status) in results[endpoint].what
            failed = {name for name, result in results.items() if result.state == "failed"}
            # They ask the same endpoints about a group.
            assert failed - {"senders", "participants"} == {endpoint}
            assert {"api", "clock", "messages", "participants", "timestamps", "before"} <= results.keys()
            refuse("/", status)
            assert [result.name for result in run_checks(checks, str)] == ["api"]
