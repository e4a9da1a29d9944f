"""The progress of a message when events and the API disagree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from msgbubbles.models import Message
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.compare import Comparison
from msgbubbles.source.message_progress import keep_progress
from msgbubbles.tables import MESSAGES

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)


def at(minutes: int) -> datetime:
    return NINE + timedelta(minutes=minutes)


READ: dict[str, Any] = {"status": "read", "delivered_at": at(1), "read_at": at(2), "updated_at": at(0)}


def merge(shown: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return the loaded message when the API shows `shown`, next to a new and an unchanged one."""
    others = [Message(id="m0", status="sent", updated_at=NINE), Message(id="m2", status="sent", updated_at=NINE)]
    incoming = build_arrow_table(MESSAGES, [(one, NINE) for one in (others[0], Message(id="m1", **shown), others[1])])
    known = build_arrow_table(MESSAGES, [(one, NINE) for one in (Message(id="m1", **stored), others[1])])
    rows = keep_progress(incoming, Comparison(incoming, known, MESSAGES)).to_pylist()
    assert [row["status"] for row in (rows[0], rows[2])] == ["sent", "sent"]
    return {name: rows[1][name] for name in ("status", "delivered_at", "read_at", "updated_at")}


@pytest.mark.parametrize("updated_at", [at(0), at(-1)])
@pytest.mark.parametrize("status", ["queued", "sent", "failed", "delivered"])
def test_row_unchanged_by_the_api_reverts_no_progress(status: str, updated_at: datetime) -> None:
    shown = {"status": status, "delivered_at": at(1), "read_at": None, "updated_at": updated_at}
    assert merge(shown, READ) == READ | {"updated_at": updated_at}


@pytest.mark.parametrize("updated_at", [at(3), None])
def test_later_updated_at_of_the_api_wins(updated_at: datetime | None) -> None:
    shown = {"status": "failed", "delivered_at": None, "read_at": None, "updated_at": updated_at}
    assert merge(shown, READ) == shown


def test_further_progress_is_loaded_whatever_updated_at_says() -> None:
    shown = {"status": "read", "delivered_at": at(1), "read_at": at(3), "updated_at": at(0)}
    assert merge(shown, READ) == shown, "an event's time is near the API's own, and not the same"
    assert merge(shown | {"status": "unheard_of"}, READ)["status"] == "unheard_of"
    assert merge(shown, {"status": "sent", "updated_at": at(0)}) == shown
