"""Behaviour that the API's pages leave open, and faults.

Knobs are read at every request, so a test may change them while the server runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .account import Account

KEY = "sk_test_sandbox"


@dataclass
class Knobs:
    """Probabilities are from 0 to 1, durations in seconds. The defaults follow the API's pages."""

    keys: set[str] = field(default_factory=lambda: {KEY})
    active: bool = True
    latency_seconds: float = 0.0
    rate_limit_per_minute: int | None = None
    # `fixed` counts from each full minute, `rolling` in any minute. A test may shorten the minute.
    rate_window: Literal["rolling", "fixed"] = "rolling"
    rate_window_seconds: float = 60.0
    retry_after: Literal["seconds", "date", "none"] = "seconds"
    server_errors: float = 0.0
    cut_bodies: float = 0.0
    malformed_bodies: float = 0.0
    # Writes that succeed and are answered with 502. `cut_bodies` also affects writes that succeeded.
    errors_after_acting: float = 0.0
    seed: int = 0

    tie_order: Literal["stable", "reversed", "random"] = "stable"
    shuffled_pages: bool = False
    before_inclusive: bool = False
    short_pages: float = 0.0
    nulls: Literal["first", "last"] = "first"
    nulls_with_before: bool = False
    feed: bool = True

    # The payload, which is not documented: an event with an id around the message, the message itself without an id,
    # or ids only.
    webhook_payload: Literal["nested", "flat", "ids"] = "nested"
    # Deliveries that are repeated although they were answered with 2xx.
    webhook_repeats: float = 0.0

    # Handles that cannot be added to a group: 400 `invalid_handle`.
    unreachable: set[str] = field(default_factory=set)
    # Returns the status and code with which a request (method, path) is refused, or null.
    refusal: Callable[[str, str], tuple[int, str] | None] | None = None
    # Answers a request (method, path, query) in place of the account: status, headers and raw body.
    answer: Callable[[str, str, Mapping[str, str]], tuple[int, dict[str, str], bytes] | None] | None = None
    # Replaces the status and body of the answer to every successful write.
    write_answer: tuple[int, bytes] | None = None
    # Changes the body of a successful answer (path, body), for JSON that no encoder writes.
    transform_body: Callable[[str, bytes], bytes] | None = None

    participants_on_detail: bool = True
    sender_on_messages: bool = True
    created_at_on_messages: bool = True
    extra_fields: Mapping[str, object] = field(default_factory=dict)
    transform_row: Callable[[str, dict[str, Any]], Any] | None = None
    on_request: Callable[[Account, int], None] | None = None
