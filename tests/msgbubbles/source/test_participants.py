from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from msgbubbles.decode import read_participants
from msgbubbles.models import Chat


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["+2", "+1", "", "+2"], ["+1", "+2"]),
        ([{"handle": "+1", "name": "x"}, "+0"], ["+0", "+1"]),
        ([], []),
        (None, None),
        ("+1", None),
        ([{"name": "x"}], None),
        ([5], None),
    ],
)
def test_participants_are_read_in_any_documented_form(shown: Any, expected: list[str] | None) -> None:
    assert read_participants(Chat(id="x", extra=Raw(msgspec.json.encode({"participants": shown})))) == expected


def test_chat_without_participants_has_none() -> None:
    assert read_participants(Chat(id="x")) is None
