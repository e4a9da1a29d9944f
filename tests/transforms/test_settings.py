"""Tests that a changed setting of the marts counts for the messages of earlier loads too."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from helpers.marts_reference import MARTS
from helpers.sizes import IS_NIGHTLY, pick_size
from msgbubbles_sync.service_levels import BusinessHours, ServiceLevels, Target

from .conftest import Built


def target(minutes: float) -> ServiceLevels:
    return ServiceLevels(targets=(Target(metric="first_response", minutes=minutes),))


def hours(text: str, *holidays: date) -> BusinessHours:
    return BusinessHours(hours=(text,), holidays=holidays)


# On a Monday, and answered two hours later.
ASKED_AT = datetime(2026, 11, 2, 8, 30, tzinfo=UTC)
MONDAY = date(2026, 11, 2)
BEFORE = {"sla": target(60), "business_hours": hours("mon-fri 09:00-17:00")}  # 90 business minutes: breached
# What is changed, and the business seconds of the answer, the state of its target and its day after that.
CHANGES: dict[str, tuple[dict[str, Any], tuple[int, str, date]]] = {
    "all": (
        {"sla": target(50), "business_hours": hours("mon-fri 10:00-18:30"), "time_zone": "Asia/Tokyo"},
        (3600, "breached", MONDAY),  # asked at 17:30
    ),
    "target": ({"sla": target(120)}, (5400, "met", MONDAY)),
    "hours": ({"business_hours": hours("mon-fri 10:00-17:00")}, (1800, "met", MONDAY)),
    "holiday": ({"business_hours": hours("mon-fri 09:00-17:00", MONDAY)}, (0, "met", MONDAY)),
    "zone in the east": ({"time_zone": "Pacific/Auckland"}, (0, "met", MONDAY)),  # asked at 21:30
    "zone in the west": ({"time_zone": "Pacific/Honolulu"}, (0, "met", date(2026, 11, 1))),  # asked at 22:30
}


@pytest.mark.parametrize("change", list(CHANGES)[: pick_size(1, nightly=len(CHANGES))])
def test_increments_after_a_change_equal_a_full_build(change: str, recorded: Path, tmp_path: Path) -> None:
    settings, expected = CHANGES[change]
    changed = Built(tmp_path / "changed", copy_of=recorded)
    whole = Built(tmp_path / "whole", copy_of=recorded)
    chat = {"id": "b", "from_handle": "+1", "remote_handle": "+2", "is_group": False}
    messages = [
        {"id": str(n), "conversation_id": "b", "cursor_at": ASKED_AT + timedelta(hours=2 * n), "direction": direction}
        for n, direction in enumerate(("inbound", "outbound", "inbound"))
    ]
    for number, (values, message) in enumerate(
        zip((BEFORE if IS_NIGHTLY else {}, BEFORE | settings, BEFORE | settings), messages, strict=True)
    ):
        for built in (changed, whole):
            built.warehouse.load(f"1{number}", chats=[chat], messages=[message])
        changed.build(**{"data_tests": "off"} | values if values else {})
    assert changed.planned[0] == (not IS_NIGHTLY), "with the settings of before, by day those of any warehouse"
    whole.build(data_tests="off", **BEFORE | settings)
    assert changed.warehouse.marts(MARTS) == whole.warehouse.marts(MARTS)
    [event] = changed.warehouse.mart("sla_events")
    assert (event["elapsed_seconds"], event["state"], event["day"]) == expected
