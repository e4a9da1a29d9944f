"""Who holds a warehouse's lock, and whether that job still makes progress."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from msgbubbles.source.run import Run
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.inspect.check import _lock
from msgbubbles_sync.lock import STALLED_AFTER, AnotherJobRunsError, JobStalledError, holder_of, note_progress, one_job
from msgbubbles_sync.workspace import Place

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place.of(tmp_path / "warehouse.duckdb")
    place.make_folders()
    return place


def age(place: Place, past: timedelta, name: str = "job") -> None:
    """Let the last progress be so long ago."""
    at = time.time() - past.total_seconds()
    os.utime(place.folder / f"{name}.json", (at, at))


def refusal(place: Place, name: str = "job") -> AnotherJobRunsError:
    with pytest.raises(AnotherJobRunsError) as raised, one_job(place.folder, name):
        pass
    return raised.value


@pytest.mark.parametrize("name", ["job", "apply"])
def test_a_job_without_progress_is_reported_as_stuck(place: Place, name: str) -> None:
    with one_job(place.folder, name):
        assert not isinstance(refusal(place, name), JobStalledError)
        age(place, STALLED_AFTER + timedelta(minutes=1), name)
        stuck = refusal(place, name)
        assert isinstance(stuck, JobStalledError)
        assert f"kill -9 {os.getpid()}" in str(stuck)
        # Whatever it wrote, or could not write.
        (place.folder / f"{name}.json").write_text("")
        age(place, STALLED_AFTER + timedelta(minutes=1), name)
        assert isinstance(refusal(place, name), JobStalledError)
    with one_job(place.folder, name):
        pass


def test_check_shows_a_stuck_job(place: Place) -> None:
    assert _lock(place).what == "no job runs"
    with one_job(place.folder):
        assert _lock(place).state == "ok"
        age(place, 2 * STALLED_AFTER)
        found = _lock(place)
        assert (found.state, str(os.getpid()) in found.what) == ("failed", True)
    (place.folder / "job.json").write_text(json.dumps({"pid": 1, "since": "then"}))
    assert holder_of(place.folder) is None, "one that was killed holds nothing"


@pytest.mark.parametrize("progress", ["page", "phase", "wait"])
def test_what_a_job_does_counts_as_progress(place: Place, progress: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgbubbles_sync.lock.SECONDS_BETWEEN_NOTES", 0.0)
    reporter, run = Reporter(quiet=True, as_json=True), Run()
    with one_job(place.folder), reporter.following(run):
        age(place, 2 * STALLED_AFTER)
        if progress == "page":
            run.on_page()
        elif progress == "phase":
            reporter.say("publishing")
        else:
            run.on_wait("429 from the API", 3600.0)
            assert (place.folder / "job.json").stat().st_mtime > time.time() + 3500
        assert not isinstance(refusal(place), JobStalledError)


def test_progress_is_noted_for_the_locks_that_are_held_only(place: Place) -> None:
    note_progress()
    with one_job(place.folder):
        pass
    note_progress()
    assert not (place.folder / "job.json").exists()


def test_the_time_is_documented() -> None:
    assert f"no progress for {STALLED_AFTER.total_seconds() / 60:.0f} minutes" in README.read_text()
