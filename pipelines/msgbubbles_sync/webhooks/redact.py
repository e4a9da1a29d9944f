"""What the policy leaves of a delivery: before it is written to disk, and once more before it lands, because a policy
may have become stricter in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from msgbubbles.policy import FULL
from msgbubbles.redact_payloads import concerns_erased, redact_payload
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

from .bodies import parse_json
from .spool import Delivery

if TYPE_CHECKING:
    from msgbubbles.redact import Redactor

    from .events import Event

RedactDelivery = Callable[[Delivery], Delivery | None]


def redact_delivery(delivery: Delivery, redactor: Redactor) -> Delivery | None:
    """The delivery as it may be kept; null where it concerns somebody who was erased. Nobody knows who is in a body
    that cannot be parsed: of it, only that it came is kept.
    """
    if redactor.is_idle:
        return delivery
    try:
        payload = parse_json(delivery.body)
        if concerns_erased(redactor, payload):
            return None
        left = redact_payload(redactor, payload)
        body = delivery.body if left == payload else json.dumps(left)
    except (ValueError, RecursionError):
        body = ""
    redactor.save_vault()
    event_id = redactor.without_erased(delivery.event_id)
    if body == delivery.body and event_id == delivery.event_id:
        return delivery
    return msgspec.structs.replace(delivery, event_id=event_id, body=body)


def drop_payload(event: Event) -> Event:
    return msgspec.structs.replace(event, payload=msgspec.Raw(b""))


class CurrentPolicy:
    """Applies the policy of a warehouse to deliveries, as it is at that moment: it may be changed, and people erased,
    while a receiver runs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._read_at_ns: int | None = None
        self._redactor: Redactor | None = None
        self._refresh()

    def redact_delivery(self, delivery: Delivery) -> Delivery | None:
        """Redact a delivery. Raises `UsageError` where the warehouse and the configuration do not fit together."""
        self._refresh()
        return delivery if self._redactor is None else redact_delivery(delivery, self._redactor)

    def _refresh(self) -> None:
        try:
            found = (self._workspace.folder / "privacy.json").stat().st_mtime_ns
        except OSError:
            found = 0
        if found == self._read_at_ns:
            return
        settings = load_settings(self._workspace.account)
        # Nothing is configured about personal data, and nobody was erased.
        if settings.policy == FULL and settings.vault is None and not found:
            self._redactor = None
        else:
            # This imports dlt, which a receiver without a policy is spared.
            self._workspace.configure_dlt()
            from msgbubbles_sync.policy.applied import build_redactor

            self._redactor = build_redactor(self._workspace)
        self._read_at_ns = found
