"""What a signed delivery holds: one event or several, each with the id by which it is known when it comes again.

An event is known by its own id; else by the delivery's, where that is signed (of several events, with its place among
them); else by a hash of what it says. A retry is signed anew, so the hash of an event that can only happen once (a
message was sent, read, ...) leaves the time of signing out. Anything else, such as typing, may happen again and say the
same: the signed timestamp is part of its hash, and a retry that has no id to be known by counts as another event.
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

# Each happens to a message once.
STATES = frozenset({"message.received", "message.sent", "message.delivered", "message.read", "message.failed"})
LISTS = ("events", "data")
OWN_IDS = ("event_id", "id")
TYPE_NAMES = ("type", "event", "event_type")
# A longer list is kept whole, as one event of no kind.
MAX_EVENTS = 10_000


def split_deliveries(body: bytes, delivery_id: str | None, timestamp: str, now: datetime) -> list[Delivery]:
    """Return the lines for the spool. `delivery_id` and `timestamp` are signed, or null and empty. A body that is no
    JSON is one line too, which the load puts aside.
    """
    delivery_id = usable_id(delivery_id)
    text = decode_text(body)
    try:
        payload = parse_json(text)
    except (ValueError, RecursionError):
        return [Delivery(delivery_id or hash_body(body), now, body.decode("utf-8", "backslashreplace"))]
    events = _events_in(payload)
    base = read_event_id(payload) or delivery_id
    if events is None:
        return [Delivery(base or _hash_of(body, payload, timestamp), now, text)]
    deliveries = []
    repeats: Counter[str] = Counter()
    for place, event in enumerate(events):
        written = json.dumps(event)
        event_id = read_event_id(event) or (f"{base}:{place}" if base else None)
        if event_id is None:
            event_id = _hash_of(written.encode(), event, timestamp)
            repeats[event_id] += 1
            if repeats[event_id] > 1:
                event_id += f":{repeats[event_id]}"
        deliveries.append(Delivery(event_id, now, written))
    return deliveries


def usable_id(event_id: Any) -> str | None:
    return event_id if isinstance(event_id, str) and re.fullmatch("[!-~]{1,200}", event_id) else None


def read_event_id(payload: Any) -> str | None:
    """The event's own id. An `id` counts only where it says that it is an event's: it may be the message's, of which
    there are many events.
    """
    if not isinstance(payload, dict):
        return None
    own = usable_id(payload.get("event_id"))
    if own is not None:
        return own
    other = usable_id(payload.get("id"))
    return other if other is not None and re.match("evt|event", other) else None


def read_event_type(payload: Any) -> str | None:
    """Return the kind of event that a payload names."""
    names = TYPE_NAMES if isinstance(payload, dict) else ()
    return next((value for name in names if isinstance(value := payload.get(name), str) and value), None)


def _events_in(payload: Any) -> list[Any] | None:
    """The events of a list, or of an object around a list, whose other fields each of them gets; null for one event."""
    if _is_list_of_events(payload):
        return list(payload)
    if isinstance(payload, dict):
        name = next((one for one in LISTS if _is_list_of_events(payload.get(one))), None)
        if name is not None:
            around = {key: value for key, value in payload.items() if key != name and key not in OWN_IDS}
            return [around | event if isinstance(event, dict) else event for event in payload[name]]
    return None


def _is_list_of_events(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_EVENTS and any(isinstance(one, dict) for one in value)


def _hash_of(written: bytes, payload: Any, timestamp: str) -> str:
    return hash_body(written, "" if read_event_type(payload) in STATES else timestamp)
