"""The same job with its tables as files in a folder, and marts that Spark makes of them: `make test-spark`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from helpers.canary import PRIVACY_KEY, find_words
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import COUNT_CONTACT, change, list_contacts, needs_spark, query
from helpers.marts_reference import check_marts
from msgbubbles_sync.workspace import Workspace

INTO = ("--destination", "filesystem")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))


@needs_spark
@pytest.mark.usefixtures("files")
def test_the_whole_job_with_spark(new_job: Callable[..., Job], tmp_path: Path) -> None:
    job = new_job(chats=130, messages=1500)
    job.environment = {
        "SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]',
        "TRANSFORMS__DATA_TESTS": "hold",
        "SOURCES__MSGBUBBLES__PRIVACY__KEY": PRIVACY_KEY,
    }
    workspace = Workspace.from_path(job.database, "filesystem")
    assert job.run(*INTO, transform=True).summary["outcome"] == "complete"

    deleted, written = change(job)
    person = list_contacts(job)[0]
    spool(workspace, [typing(1, conversation_id=written, created_at=datetime.now(UTC).isoformat())])
    for do_transform in (False, False, True):
        last = job.run(*INTO, transform=do_transform).summary
    assert (last["failed_tests"], last["held_marts"]) == ([], [])
    gone = query(workspace, "SELECT chat_id FROM marts.thread_activity WHERE deleted_at IS NOT NULL")
    assert gone == [{"chat_id": deleted}]
    check_marts(partial(query, workspace), sync_runs=[])
    assert query(workspace, COUNT_CONTACT) == [{"n": 1}]
    assert all(one["state"] != "failed" for one in job.ask("check", *INTO))

    job.ask("erase", person, "--yes", *INTO)
    assert find_words(tmp_path / "lake", [person]) == find_words(workspace.folder, [person]) == {}
    check_marts(partial(query, workspace), sync_runs=[])
    assert query(workspace, COUNT_CONTACT) == [{"n": 1}], "the other handle of the contact"


@needs_spark
@pytest.mark.usefixtures("files")
def test_spark_that_cannot_be_started_is_told_of(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=5, messages=10)
    job.environment = {"TRANSFORMS__SPARK": '{"spark.master": "nonsense"}'}
    _, errors = (process := job.start(*INTO, transform=True)).communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Spark did not start" in errors
    log = job.folder / ".msgbubbles" / "company.filesystem" / "dbt" / "spark.log"
    assert str(log) in errors
    assert "Master must" in log.read_text()
    assert job.run(*INTO).summary["outcome"] == "complete"
