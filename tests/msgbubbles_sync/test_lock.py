"""Who holds a warehouse's lock, and whether that job still makes progress."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from helpers.context import build_context
from helpers.full_disk import full_disk
from msgbubbles.source.run import Run
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.inspect.check import check_lock
from msgbubbles_sync.lock import (
    STALLED_AFTER,
    AnotherJobRunsError,
    JobStalledError,
    hold_lock,
    read_holder,
    record_progress,
)
from msgbubbles_sync.outcome import explain_end
from msgbubbles_sync.workspace import Workspace

COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.from_path(tmp_path / "warehouse.duckdb")
    workspace.make_folders()
    return workspace


def age(workspace: Workspace, past: timedelta, name: str = "job") -> None:
    """Let the last progress be so long ago."""
    at = time.time() - past.total_seconds()
    os.utime(workspace.folder / f"{name}.json", (at, at))


def refusal(workspace: Workspace, name: str = "job") -> AnotherJobRunsError:
    with pytest.raises(AnotherJobRunsError) as raised, hold_lock(workspace.folder, name):
        pass
    return raised.value


@pytest.mark.parametrize("name", ["job", "apply"])
def test_job_without_progress_is_reported_as_stuck(workspace: Workspace, name: str) -> None:
    with hold_lock(workspace.folder, name):
        assert not isinstance(refusal(workspace, name), JobStalledError)
        age(workspace, STALLED_AFTER + timedelta(minutes=1), name)
        stuck = refusal(workspace, name)
        assert isinstance(stuck, JobStalledError)
        assert f"process {os.getpid()}, since {datetime.now(UTC):%Y-%m-%d}" in str(stuck)
        assert f"kill -9 {os.getpid()}" in str(stuck)
        # Whatever it wrote, or could not write.
        (workspace.folder / f"{name}.json").write_text("")
        age(workspace, STALLED_AFTER + timedelta(minutes=1), name)
        assert isinstance(refusal(workspace, name), JobStalledError)
    with hold_lock(workspace.folder, name):
        pass


def test_check_shows_a_stuck_job(workspace: Workspace) -> None:
    assert check_lock(workspace).what == "no job is active"
    with hold_lock(workspace.folder):
        assert check_lock(workspace).state == "ok"
        age(workspace, 2 * STALLED_AFTER)
        found = check_lock(workspace)
        assert (found.state, str(os.getpid()) in found.what) == ("failed", True)
    (workspace.folder / "job.json").write_text(json.dumps({"pid": 1, "since": "then"}))
    assert read_holder(workspace.folder) is None, "one that was killed holds nothing"


def test_status_of_an_active_job_includes_its_progress(workspace: Workspace) -> None:
    reporter, run = Reporter(quiet=True, as_json=True), Run()
    with hold_lock(workspace.folder), reporter.follow(run):
        run.on_wait("rate limit", 40.0)
        holder = read_holder(workspace.folder)
        assert holder is not None
        assert (holder.pid, holder.progress) == (os.getpid(), "0 requests · waiting 40 s (rate limit)")
        assert holder.since
    assert not (workspace.folder / "job.json").exists()
    assert not (workspace.folder / "job.new").exists()


@pytest.mark.parametrize("progress", ["page", "phase", "wait"])
def test_pages_phases_and_waits_count_as_progress(
    workspace: Workspace, progress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgbubbles_sync.lock.PROGRESS_INTERVAL_SECONDS", 0.0)
    reporter, run = Reporter(quiet=True, as_json=True), Run()
    with hold_lock(workspace.folder), reporter.follow(run):
        age(workspace, 2 * STALLED_AFTER)
        if progress == "page":
            run.on_page()
        elif progress == "phase":
            reporter.say("publishing")
        else:
            run.on_wait("429 from the API", 3600.0)
            assert (workspace.folder / "job.json").stat().st_mtime > time.time() + 3500
        assert not isinstance(refusal(workspace), JobStalledError)


def test_progress_is_recorded_only_for_held_locks(workspace: Workspace) -> None:
    record_progress()
    with hold_lock(workspace.folder):
        pass
    record_progress()
    assert not (workspace.folder / "job.json").exists()


def test_stall_timeout_is_documented() -> None:
    assert f"no progress for {STALLED_AFTER.total_seconds() / 60:.0f} minutes" in COMMANDS.read_text()


@pytest.mark.parametrize("name", ["job.json", "job.lock"])
def test_folder_in_the_place_of_a_lock_is_named(workspace: Workspace, name: str) -> None:
    path = workspace.folder / name
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory") as raised, hold_lock(workspace.folder):
        pass
    outcome = explain_end(raised.value, build_context(workspace))
    assert f"{path} is a folder, and has to be a file: move it away, and run again" in outcome.message
    path.rmdir()
    with hold_lock(workspace.folder):
        pass


def test_lock_is_held_on_a_full_disk_without_a_record_of_an_earlier_job(workspace: Workspace) -> None:
    record = workspace.folder / "job.json"
    record.write_text(json.dumps({"pid": 1, "since": "2026-01-01T00:00:00+00:00"}))
    age(workspace, STALLED_AFTER * 2)
    with full_disk(), hold_lock(workspace.folder):
        assert "it has just started" in str(refusal(workspace))
    assert read_holder(workspace.folder) is None
