"""Split a signed delivery into its events, each with an id that identifies it in repeated deliveries.

The id is the event's own; else the id of the delivery, if that is signed (with the event's index, if there are several
events); else a hash of the event. Retries are signed with a new timestamp, so the hash of an event that can happen only
once (a message was sent, read, ...) excludes the timestamp. Other events, such as typing, may happen again with the
same content: their hash includes the signed timestamp, and a retry without an id counts as another event.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from typing import Any

from .bodies import decode_text, parse_json
from .signature import hash_body
from .spool import Delivery

# Events that happen to a message only once.
ONE_TIME_TYPES = ("message.received", "message.sent", "message.delivered", "message.read", "message.failed")
# The ids of events that `webhooks.py test` sends begin with this.
TEST_EVENT = "evt_test_"
LISTS = ("events", "data")
OWN_IDS = ("event_id", "id")
TYPE_NAMES = ("type", "event", "event_type")
# A longer list is stored whole, as one event without a type.
MAX_EVENTS = 10_000


def split_deliveries(body: bytes, delivery_id: str | None, timestamp: str, now: datetime) -> list[Delivery]:
    """Split a body into deliveries of one event. `delivery_id` and `timestamp` are signed, or null and empty.

    A body that is not JSON is one delivery, which becomes a dead letter when it is loaded.
    """
    delivery_id = _validate_id(delivery_id)
    text = decode_text(body)
    try:
        payload = parse_json(text)
    except (ValueError, RecursionError):
        return [Delivery(delivery_id or hash_body(body), now, body.decode("utf-8", "backslashreplace"))]
    events = _find_events(payload)
    base = read_event_id(payload) or delivery_id
    if events is None:
        return [Delivery(base or _hash_event(body, payload, timestamp), now, text)]
    deliveries = []
    repeats: Counter[str] = Counter()
    for index, event in enumerate(events):
        text = json.dumps(event)
        event_id = read_event_id(event) or (f"{base}:{index}" if base else None)
        if event_id is None:
            event_id = _hash_event(text.encode(), event, timestamp)
            repeats[event_id] += 1
            if repeats[event_id] > 1:
                event_id += f":{repeats[event_id]}"
        deliveries.append(Delivery(event_id, now, text))
    return deliveries


def _validate_id(event_id: Any) -> str | None:
    return event_id if isinstance(event_id, str) and re.fullmatch("[!-~]{1,200}", event_id) else None


def read_event_id(payload: Any) -> str | None:
    """Return the event's own id. An `id` counts only with the prefix of an event: it may be the message's."""
    if not isinstance(payload, dict):
        return None
    own = _validate_id(payload.get("event_id"))
    if own is not None:
        return own
    other = _validate_id(payload.get("id"))
    return other if other is not None and re.match("evt|event", other) else None


def read_event_type(payload: Any) -> str | None:
    """Return the type of event that a payload names."""
    names = TYPE_NAMES if isinstance(payload, dict) else ()
    return next((value for name in names if isinstance(value := payload.get(name), str) and value), None)


def _find_events(payload: Any) -> list[Any] | None:
    """Return the events of a list, or of a list in an object with the object's other fields; null for one event."""
    if _is_list_of_events(payload):
        return list(payload)
    if isinstance(payload, dict):
        name = next((key for key in LISTS if _is_list_of_events(payload.get(key))), None)
        if name is not None:
            shared = {key: value for key, value in payload.items() if key != name and key not in OWN_IDS}
            return [shared | event if isinstance(event, dict) else event for event in payload[name]]
    return None


def _is_list_of_events(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_EVENTS and any(isinstance(item, dict) for item in value)


def _hash_event(text: bytes, payload: Any, timestamp: str) -> str:
    return hash_body(text, "" if read_event_type(payload) in ONE_TIME_TYPES else timestamp)
