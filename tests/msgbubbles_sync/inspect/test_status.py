"""What `status` prints about the last runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from msgbubbles.source.coverage import Coverage
from msgbubbles_sync.cli.inspect_report import print_status
from msgbubbles_sync.inspect.status import Status, describe_failed_runs
from msgbubbles_sync.run_record import RunRecord
from msgbubbles_sync.settings import Settings


def record(minute: int, error: str | None = None) -> RunRecord:
    started_at = f"2026-11-25T22:{minute:02}:00.000+00:00"
    return RunRecord(run_id=str(minute), started_at=started_at, outcome="complete", exit_status=0, error=error)


def test_reasons_of_failures_are_shown_once_and_newest_first() -> None:
    runs = [record(1, "no host api.example"), record(2, None), record(3, "401 unauthorized")]
    runs += [record(minute, "401 unauthorized") for minute in (4, 5)]
    assert describe_failed_runs(runs) == ["2026-11-25 22:05 401 unauthorized", "2026-11-25 22:01 no host api.example"]
    assert describe_failed_runs([record(1, None)]) == []


@pytest.mark.parametrize("width", [40, 80])
def test_status_fits_a_narrow_terminal(width: int) -> None:
    now = datetime(2026, 11, 25, 22, 30, tzinfo=UTC)
    runs = [record(10), record(20)]
    status = Status(
        now - timedelta(minutes=1), 1.0, {"messages": 0, "chats": 1}, {"messages": 0, "chats": 0}, 1, [], runs
    )
    local: Any = SimpleNamespace(
        find_oldest_ms=lambda _: None,
        load_coverage=lambda _: Coverage([(0, int(now.timestamp() * 1000), 0)]),
        settings=Settings(),
    )
    output = StringIO()
    print_status(status, local, now, Console(file=output, width=width))
    text = output.getvalue()
    assert "1 minute ago." in text.replace(" \n", " ")
    assert "1 request in the last hour." in text
    assert "2026-11-25 22:20  complete (0)" in text
    assert "..." not in text
    assert ("requests  new" in text) is (width == 80)
    timelines = [line for line in text.splitlines() if line.endswith(" now")]
    assert len(timelines) == 2
    assert max(map(len, timelines)) <= width
