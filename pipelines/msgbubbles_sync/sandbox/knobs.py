"""What the API's pages leave open, and what goes wrong on a bad day: read at every request, so a test may turn
any of them while the server runs.
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
    """Probabilities are from 0 to 1, durations in seconds. The defaults are the API as its pages describe it."""

    keys: set[str] = field(default_factory=lambda: {KEY})
    active: bool = True
    latency_seconds: float = 0.0
    rate_limit_per_minute: int | None = None
    # `fixed`: counted from each full minute on; `rolling`: in any minute. A test may have shorter minutes.
    rate_window: Literal["rolling", "fixed"] = "rolling"
    rate_window_seconds: float = 60.0
    retry_after: Literal["seconds", "date", "none"] = "seconds"
    server_errors: float = 0.0
    cut_bodies: float = 0.0
    malformed_bodies: float = 0.0
    # What was done, and is answered with 502 all the same. `cut_bodies` is of what was done as well.
    errors_after_acting: float = 0.0
    seed: int = 0

    tie_order: Literal["stable", "reversed", "random"] = "stable"
    shuffled_pages: bool = False
    before_inclusive: bool = False
    short_pages: float = 0.0
    nulls: Literal["first", "last"] = "first"
    nulls_with_before: bool = False
    feed: bool = True

    # How a payload is built, none of which is documented: around the message (with an id of its own), as the message
    # itself (without one), or of ids only.
    webhook_payload: Literal["nested", "flat", "ids"] = "nested"
    # By the Standard Webhooks specification, unless a test says otherwise.
    webhook_headers: tuple[str, str, str] = ("webhook-id", "webhook-timestamp", "webhook-signature")
    webhook_retry_seconds: float = 0.2
    webhook_max_retry_seconds: float = 5.0
    webhook_workers: int = 8
    # Of deliveries that were answered with 2xx and are made once more all the same.
    webhook_repeats: float = 0.0

    # Handles that no group can take: 400 `invalid_handle`.
    unreachable: set[str] = field(default_factory=set)
    # Says of a request (method, path) with which status and code it is refused.
    refusal: Callable[[str, str], tuple[int, str] | None] | None = None
    # Answers a request (method, path, query) in place of the account: status, headers and body as they are sent.
    answer: Callable[[str, str, Mapping[str, str]], tuple[int, dict[str, str], bytes] | None] | None = None
    # Status and body with which every write that was done is answered, in place of its own.
    write_answer: tuple[int, bytes] | None = None
    # Changes the body of a successful answer (path, body): for JSON that no encoder writes.
    transform_body: Callable[[str, bytes], bytes] | None = None

    participants_on_detail: bool = True
    sender_on_messages: bool = True
    created_at_on_messages: bool = True
    extra_fields: dict[str, Any] = field(default_factory=dict)
    transform_row: Callable[[str, dict[str, Any]], Any] | None = None
    on_request: Callable[[Account, int], None] | None = None
