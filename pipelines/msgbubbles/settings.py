"""Declare the settings of the connector, each once with its type, range and default.

Imports no dlt, so that commands that only need a setting start quickly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, inspect

from .errors import ConfigurationError
from .times import BEGINNING_MS, HOUR_MS, to_epoch_ms

MAX_TIMEOUT_SECONDS = 24 * 3600.0
# A smaller batch could end within rows of one timestamp, and the next one would begin there again.
MIN_BATCH_PAGES = 20
# A run after a long pause does not catch up on all of it: that would take just as long.
MAX_MINUTES_BETWEEN_RUNS = 60.0
# A host, perhaps a port and a path: no user, whom the requests would name in place of the key, and no second address.
BASE_URL = re.compile(
    r"https?://(\[[\da-f:.]+\]|[\w.-]+)(:\d+)?(?!.*://)(?!.*(/v\d+)/*\3/*$)(/[\w.~%+:!$&()*,;=@-]*)*", re.I
)

Hours = Annotated[float, Meta(gt=0)]


class RefreshRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read rows of the last `within_hours` (of any age without it) again every `every_hours`."""

    every_hours: Hours
    within_hours: Hours | None = None

    @property
    def every_ms(self) -> int:
        return round(self.every_hours * HOUR_MS)

    @property
    def within_ms(self) -> int | None:
        return None if self.within_hours is None else round(self.within_hours * HOUR_MS)


def is_date(text: str) -> bool:
    """Return whether a text is an ISO 8601 date or time."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def is_base_url(text: str) -> bool:
    """Return whether a text is the address of an API, without the slips that only requests would show."""
    return BASE_URL.fullmatch(text) is not None


RefreshRules = Annotated[
    tuple[RefreshRule, ...],
    Meta(
        description="a list of tables like { within_hours = 72, every_hours = 1 }; without within_hours a table is for "
        "rows of any age; hours are more than 0"
    ),
]
Date = Annotated[str, Meta(description='a date like "2026-01-31"', extra={"check": is_date})]
BASE_URL_HELP = (
    'an address like "https://api.msgbubbles.com/v1", which begins with https:// and has no spaces, quotes, user, '
    "query or repeated part"
)
BaseUrl = Annotated[str, Meta(description=BASE_URL_HELP, extra={"check": is_base_url})]


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the source. `dlt_config/config.toml` documents each."""

    base_url: BaseUrl = "https://api.msgbubbles.com/v1"
    start_date: Date | None = None
    lookback_seconds: Annotated[float, Meta(ge=0)] = 300.0
    # A rename does not change the cursor time, at any age. Statuses, receipts and edits come within days.
    refresh_chats: RefreshRules = (RefreshRule(every_hours=24),)
    refresh_messages: RefreshRules = (RefreshRule(every_hours=1, within_hours=72),)
    refresh_share: Annotated[float, Meta(gt=0, le=1)] = 0.25
    read_participants: bool = False
    sender_field: str | None = None
    requests_per_minute: Annotated[int, Meta(ge=0)] = 120
    parallel_requests: Annotated[int, Meta(ge=1)] = 16
    budget_dir: str | None = None
    timeout_seconds: Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_SECONDS)] = 30.0
    max_attempts: Annotated[int, Meta(ge=1)] = 8

    @property
    def start_ms(self) -> int:
        """The time in milliseconds since 1970 before which no rows are read."""
        return BEGINNING_MS if self.start_date is None else to_epoch_ms(datetime.fromisoformat(self.start_date))

    @property
    def lookback_ms(self) -> int:
        return round(self.lookback_seconds * 1000)

    @property
    def refresh_rules(self) -> dict[str, tuple[RefreshRule, ...]]:
        """The rows that each stream reads again, and how often."""
        return {"chats": self.refresh_chats, "messages": self.refresh_messages}

    def limit_refresh(self, last_run_ms: int, now_ms: int) -> float:
        """Return how many requests a stream may spend on a refresh, by the time since the last run."""
        if not self.requests_per_minute:
            return math.inf
        minutes = min(max((now_ms - last_run_ms) / 60_000, 0.0), MAX_MINUTES_BETWEEN_RUNS)
        # Half for each of the two streams. One is always allowed: otherwise a small share would never refresh anything.
        return max(self.requests_per_minute * self.refresh_share / 2 * minutes, 1.0)


DEFAULTS = SourceSettings()


def build_source_settings(values: Mapping[str, Any]) -> SourceSettings:
    """Check values and build the settings. Raises `ConfigurationError`, which names the key and the valid values."""
    hints = list_settings(SourceSettings)
    return SourceSettings(**{key: convert(key, value, hints[key]) for key, value in values.items()})


@cache
def list_settings(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the settings that a struct declares, with their types and ranges."""
    return get_type_hints(struct, include_extras=True)


def convert(key: str, value: Any, hint: Any) -> Any:
    """Convert a value to the type of a setting; lists and tables may be JSON, as in environment variables.

    Raises `ConfigurationError`, which does not quote the value.
    """
    if isinstance(value, date):  # a TOML date needs no quotes
        value = value.isoformat()
    try:
        try:
            converted = msgspec.convert(value, hint, strict=False)
        except msgspec.ValidationError:
            if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
                raise
            converted = msgspec.convert(json.loads(value), hint, strict=False)
        checks = [meta.extra["check"] for meta in _find_metas(hint) if meta.extra]
        if (isinstance(converted, float) and not math.isfinite(converted)) or not all(
            check(converted) for check in checks if converted is not None
        ):
            raise ValueError
    except ValueError:  # includes msgspec's and json's errors
        raise ConfigurationError(f"{key} must be {describe_type(hint)}") from None
    return converted


def describe_type(hint: Any) -> str:
    """Describe the valid values of a setting, for an error message."""
    descriptions = [meta.description for meta in _find_metas(hint) if meta.description]
    if descriptions:
        return descriptions[0]
    kind = inspect.type_info(hint)
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        kind = next(member for member in kind.types if not isinstance(member, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(json.dumps(value) for value in kind.values)}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        bounds = [
            f"{words} {bound:,g}"
            for words, bound in (("at least", kind.ge), ("more than", kind.gt), ("at most", kind.le))
            if bound is not None
        ]
        number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return f"{number} of {' and '.join(bounds)}" if bounds else number
    return "true or false" if isinstance(kind, inspect.BoolType) else 'text in quotes, like "..."'


def _find_metas(hint: Any) -> list[Meta]:
    """Return the annotations of a type, or of the members of a union."""
    return [
        meta
        for part in (hint, *get_args(hint))
        for meta in (part, *getattr(part, "__metadata__", ()))
        if isinstance(meta, Meta)
    ]
