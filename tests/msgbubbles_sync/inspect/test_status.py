"""What `status` prints about the last runs."""

from __future__ import annotations

from typing import Any

from msgbubbles_sync.inspect.status import describe_failures


def record(minute: int, error: str | None) -> dict[str, Any]:
    return {"started_at": f"2026-11-25T22:{minute:02}:00.000+00:00", "error": error}


def test_reasons_of_failures_are_shown_once_and_newest_first() -> None:
    runs = [record(1, "no host api.example"), record(2, None), record(3, "401 unauthorized")]
    runs += [record(minute, "401 unauthorized") for minute in (4, 5)]
    assert describe_failures(runs) == ["2026-11-25 22:05 401 unauthorized", "2026-11-25 22:01 no host api.example"]
    assert describe_failures([record(1, None)]) == []
