from __future__ import annotations

from typing import Any

import pytest

from msgbubbles.errors import ConfigurationError
from msgbubbles.source.config import REFRESH_CHATS, REFRESH_MESSAGES, settings_of, tiers_of
from msgbubbles.source.coverage import HOUR_MS, Tier
from msgbubbles.source.fetch import walks_at_once

GOOD: dict[str, Any] = {
    "start_date": None,
    "lookback_seconds": 300.0,
    "refresh_chats": REFRESH_CHATS,
    "refresh_messages": REFRESH_MESSAGES,
    "refresh_share": 0.25,
    "requests_per_minute": 120,
}


def test_the_defaults() -> None:
    settings = settings_of(**GOOD)
    assert settings.tiers == {"chats": (Tier(24 * HOUR_MS),), "messages": (Tier(HOUR_MS, 72 * HOUR_MS),)}
    assert settings.refresh_per_minute == 15, "a quarter of 120, half of it for each stream"
    assert settings_of(**GOOD | {"requests_per_minute": 0}).refresh_per_minute is None


@pytest.mark.parametrize(
    ("per_minute", "latency_seconds", "walks"),
    [(120, 0.2, 1), (120, 0.4, 2), (1200, 0.02, 1), (1200, 0.2, 8), (1200, 5.0, 16), (0, 0.005, 1), (0, 0.2, 8)],
)
def test_there_are_as_many_walks_as_it_takes_to_use_the_limit(
    per_minute: int, latency_seconds: float, walks: int
) -> None:
    assert walks_at_once(per_minute, latency_seconds) == walks


def test_tiers_may_be_json_as_an_environment_variable_has_them() -> None:
    assert tiers_of("x", '[{"every_hours": 0.5}, {"within_hours": 2, "every_hours": 1}]') == (
        Tier(HOUR_MS // 2),
        Tier(HOUR_MS, 2 * HOUR_MS),
    )
    assert tiers_of("x", []) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("refresh_share", 0),
        ("refresh_share", 1.5),
        ("lookback_seconds", -1),
        ("parallel_requests", 0),
        ("start_date", "yesterday"),
        ("refresh_chats", "often"),
        ("refresh_chats", [{"every_hours": 0}]),
        ("refresh_chats", [{"within_hours": 3}]),
        ("refresh_messages", [{"every_hours": 1, "within_days": 3}]),
        ("refresh_messages", [{"every_hours": "1"}]),
        ("refresh_messages", 5),
        ("refresh_messages", [{"within_hours": -3, "every_hours": 1}]),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_expected(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{key} is .*(expected|like)"):
        settings_of(**GOOD | {key: value})
