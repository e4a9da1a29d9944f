from __future__ import annotations

import math
from typing import Any

import pytest

from msgbubbles.errors import ConfigurationError
from msgbubbles.settings import DEFAULTS, RefreshRule, build_source_settings
from msgbubbles.source.fetch import count_workers


def test_defaults_read_chats_daily_and_new_messages_hourly() -> None:
    assert DEFAULTS.refresh_rules == {"chats": (RefreshRule(24),), "messages": (RefreshRule(1, 72),)}
    assert DEFAULTS.limit_refresh(0, 60_000) == 15, "a quarter of 120, half of it for each stream"
    assert DEFAULTS.limit_refresh(0, 0) == 1
    assert build_source_settings({"requests_per_minute": 0}).limit_refresh(0, 0) == math.inf


@pytest.mark.parametrize(
    ("per_minute", "latency_seconds", "workers"),
    [(120, 0.2, 1), (120, 0.4, 2), (1200, 0.02, 1), (1200, 0.2, 8), (1200, 5.0, 16), (0, 0.005, 1), (0, 0.2, 8)],
)
def test_workers_suffice_to_use_the_rate_limit(per_minute: int, latency_seconds: float, workers: int) -> None:
    assert count_workers(per_minute, latency_seconds) == workers


def test_refresh_rules_may_be_json_as_in_variables() -> None:
    text = '[{"every_hours": 0.5}, {"within_hours": 2, "every_hours": 1}]'
    assert build_source_settings({"refresh_chats": text}).refresh_chats == (RefreshRule(0.5), RefreshRule(1, 2))
    assert build_source_settings({"refresh_chats": []}).refresh_chats == ()
    assert build_source_settings({"refresh_chats": [{"every_hours": "1"}]}).refresh_chats == (RefreshRule(1),)


RULES = "a list of tables like { within_hours = 72, every_hours = 1 }"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("refresh_share", 0, "a number of more than 0 and at most 1"),
        ("refresh_share", 1.5, "a number of more than 0 and at most 1"),
        ("lookback_seconds", -1, "a number of at least 0"),
        ("lookback_seconds", math.inf, "a number of at least 0"),
        ("requests_per_minute", -5, "a whole number of at least 0"),
        ("requests_per_minute", "-1", "a whole number of at least 0"),
        ("requests_per_minute", "abc", "a whole number of at least 0"),
        ("requests_per_minute", math.nan, "a whole number of at least 0"),
        ("requests_per_minute", math.inf, "a whole number of at least 0"),
        ("requests_per_minute", None, "a whole number of at least 0"),
        ("requests_per_minute", [], "a whole number of at least 0"),
        ("parallel_requests", 0, "a whole number of at least 1"),
        ("timeout_seconds", 0, "a number of more than 0 and at most 86,400"),
        ("timeout_seconds", math.nan, "a number of more than 0 and at most 86,400"),
        ("max_attempts", 0, "a whole number of at least 1"),
        ("read_participants", "maybe", "true or false"),
        *(
            ("base_url", url, 'an address like "https://api.msgbubbles.com/v1", which begins with https://')
            for url in (
                5,
                "api.msgbubbles.com/v1",
                '"https://api.msgbubbles.com/v1"',
                "https://api.msgbubbles.com/v1 ",
                "https://api.msgbubbles.com/v1/v1",
                "https://api.msgbubbles.com/v1https://api.msgbubbles.com/v1",
                "https://api.msgbubbles.com/v1?limit=5",
            )
        ),
        ("start_date", "yesterday", 'a date like "2026-01-31"'),
        ("refresh_chats", "often", RULES),
        ("refresh_chats", [{"every_hours": 0}], RULES),
        ("refresh_chats", [{"within_hours": 3}], RULES),
        ("refresh_messages", [{"every_hours": 1, "within_days": 3}], RULES),
        ("refresh_messages", [{"every_hours": "often"}], RULES),
        ("refresh_messages", 5, RULES),
        ("refresh_messages", [{"within_hours": -3, "every_hours": 1}], RULES),
    ],
)
def test_value_out_of_range_is_refused_with_the_valid_range(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        build_source_settings({key: value})
    assert str(refusal.value).startswith(f"{key} must be {expected}")
