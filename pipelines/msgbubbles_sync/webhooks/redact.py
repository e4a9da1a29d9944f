"""Apply the privacy policy to deliveries: before they are written, and again before they are loaded.

The policy may have become stricter in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from msgbubbles.policy import FULL
from msgbubbles.redact import Redactor
from msgbubbles.redact_payloads import concerns_erased, redact_payload
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.files import read_modified_at_ns
from msgbubbles_sync.policy.applied import FILE as RECORD
from msgbubbles_sync.policy.applied import build_redactor, has_rows, restore_record
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

from .bodies import parse_json
from .events import Event
from .spool import Delivery

RedactDelivery = Callable[[Delivery], Delivery | None]


def redact_delivery(delivery: Delivery, redactor: Redactor) -> Delivery | None:
    """Redact a delivery; null if it is about a person who was erased.

    Of a body that cannot be parsed, only the fact that it came is stored: it may name anybody.
    """
    if redactor.is_idle:
        return delivery
    try:
        payload = parse_json(delivery.body)
        if concerns_erased(redactor, payload):
            return None
        redacted = redact_payload(redactor, payload)
        body = delivery.body if redacted == payload else json.dumps(redacted)
    except (ValueError, RecursionError):
        body = ""
    redactor.save_vault()
    event_id = redactor.replace_erased(delivery.event_id)
    if body == delivery.body and event_id == delivery.event_id:
        return delivery
    return msgspec.structs.replace(delivery, event_id=event_id, body=body)


def drop_payload(event: Event) -> Event:
    return msgspec.structs.replace(event, payload=msgspec.Raw(b""))


class CurrentPolicy:
    """Redacts deliveries by the current policy, which may change while a receiver runs, as may the erased people."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._modified_at_ns: int | None = None
        self._redactor: Redactor | None = None
        self._refresh()

    def redact_delivery(self, delivery: Delivery) -> Delivery | None:
        """Redact a delivery. Raises `ConfigurationError` if the configured policy is not that of the warehouse."""
        self._refresh()
        return delivery if self._redactor is None else redact_delivery(delivery, self._redactor)

    def _refresh(self) -> None:
        modified_at_ns = read_modified_at_ns(self._workspace.folder / RECORD)
        if modified_at_ns == self._modified_at_ns:
            return
        settings = load_settings(self._workspace.account)
        if settings.policy == FULL and settings.vault is None and not modified_at_ns:
            self._redactor = None
        else:
            if has_rows(self._workspace):
                restore_record(build_destination(self._workspace, settings.sync))
            self._redactor = build_redactor(self._workspace, settings)
            if settings.policy.redacts and settings.vault is not None and self._redactor.vault is None:
                return  # it cannot be used; the next delivery tries again
        self._modified_at_ns = modified_at_ns
