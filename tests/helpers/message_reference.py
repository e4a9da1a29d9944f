"""Read the messages of a world: the base of the marts' second computation in Python.

A world has the rows of the loaded tables by table name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

Row = dict[str, Any]
World = dict[str, list[Row]]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How late a message may become visible.
LOOKBACK = timedelta(seconds=300)


def seconds(span: timedelta | None) -> float:
    assert span is not None
    return (span // timedelta(microseconds=1)) / 1_000_000


def percentile(share: Fraction, spans: Iterable[timedelta]) -> float | None:
    """Interpolate linearly between the ranks. Returns seconds, rounded half up to the millisecond."""
    values = sorted(span // timedelta(microseconds=1) for span in spans)
    if not values:
        return None
    rank = share * (len(values) - 1)
    low = values[int(rank)]
    high = values[min(int(rank) + 1, len(values) - 1)]
    microseconds = low + (high - low) * (rank - int(rank))
    return int(microseconds / 1000 + Fraction(1, 2)) / 1000


class Message:
    """A message of a chat. `asked_at` is when the other side began to wait, if the message is a reply."""

    def __init__(self, row: Row, chat: Row, zone: ZoneInfo) -> None:
        self.row = row
        self.chat = chat
        self.at: datetime = row["cursor_at"]
        self.local = self.at.astimezone(zone)
        self.day = self.local.date()
        self.inbound = row["direction"] == "inbound"
        self.outbound = row["direction"] == "outbound"
        self.failed = self.outbound and row["status"] == "failed"
        self.side = "them" if self.inbound else "us" if self.outbound and not self.failed else None
        self.read = self.side == "us" and (row["status"] == "read" or row["read_at"] is not None)
        self.delivered = self.side == "us" and (
            self.read or row["status"] == "delivered" or row["delivered_at"] is not None
        )
        self.sender: str | None = None
        if self.outbound:
            self.sender = chat["from_handle"]
        elif self.inbound:
            self.sender = row["sender_handle"] or (chat["remote_handle"] if chat["is_group"] is False else None)
        self.asked_at: datetime | None = None

    @property
    def waited(self) -> timedelta | None:
        return None if self.asked_at is None else self.at - self.asked_at


def threads(world: World, zone: ZoneInfo) -> dict[str, list[Message]]:
    """Return the messages of each chat in order."""
    ordered = {}
    by_chat = defaultdict(list)
    for row in world["messages"]:
        if row["cursor_at"] is not None:
            by_chat[row["conversation_id"]].append(row)
    for chat in world["chats"]:
        messages = [Message(row, chat, zone) for row in by_chat[chat["id"]]]
        messages.sort(key=lambda m: (m.at, m.inbound, m.row["id"]))
        turn_side, turn_began = None, None
        for message in messages:
            if message.side is not None and message.side != turn_side:
                message.asked_at = turn_began
                turn_side, turn_began = message.side, message.at
        ordered[chat["id"]] = messages
    return ordered


def chats_and_threads(world: World, zone: ZoneInfo) -> list[tuple[Row, list[Message]]]:
    """Return each chat with its messages in order."""
    by_chat = threads(world, zone)
    return [(chat, by_chat[chat["id"]]) for chat in world["chats"]]


def as_of(world: World) -> datetime | None:
    """Return the time that the world shows."""
    to = coverage(world)[1]
    complete = [row["started_at"] for row in world.get("sync_runs", []) if row["outcome"] == "complete"]
    return None if to is None else max([to, *complete])


def read_until(world: World) -> datetime | None:
    """Return the time to which all messages are known to have been read."""
    to, shown = coverage(world)[1], as_of(world)
    return to and shown and max(to, shown - LOOKBACK)


def is_closed(world: World, silent_since: datetime, close_after_days: int) -> bool:
    """Return whether the world closes a chat in which no side has written since. Zero days close none."""
    shown = as_of(world)
    return bool(close_after_days and shown and shown - silent_since >= timedelta(days=close_after_days))


def coverage(world: World) -> tuple[datetime | None, datetime | None]:
    for row in world["stream_coverage"]:
        if row["stream"] == "messages":
            return row["complete_since"], row["complete_to"]
    return None, None
