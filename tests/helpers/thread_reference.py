"""Compute the marts of threads in Python, as `marts_reference` does the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from helpers.message_reference import (
    EPOCH,
    LOOKBACK,
    Message,
    Row,
    World,
    as_of,
    chats_and_threads,
    coverage,
    is_closed,
    percentile,
    read_until,
    seconds,
    threads,
)
from msgbubbles.handles import fold_handle

SECOND = timedelta(seconds=1)


def main_channel(messages: list[Message]) -> str | None:
    with_channel = [m for m in messages if m.row["channel"]]
    counts = Counter(m.row["channel"] for m in with_channel)
    latest = {m.row["channel"]: m.at for m in with_channel}  # messages are in order
    best = sorted(counts, key=lambda channel: (-counts[channel], EPOCH - latest[channel], channel))
    return best[0] if best else None


def thread_activity(world: World, zone: ZoneInfo, close_after_days: int = 0) -> list[Row]:
    return [
        _thread(chat, messages, typing_events(world, chat), world, zone, close_after_days)
        for chat, messages in chats_and_threads(world, zone)
    ]


def _thread(
    chat: Row,
    messages: list[Message],
    events: list[datetime],
    world: World,
    zone: ZoneInfo,
    close_after_days: int,
) -> Row:
    since, until, shown = coverage(world)[0], read_until(world), as_of(world)
    began = min([m.at for m in messages[:1]] + [chat["created_at"] or EPOCH])
    beginning_read = since is not None and since <= began
    if chat["deleted_at"] and not chat["created_at"]:
        beginning_read = False
    latest = messages[-1].at if messages else None
    last = chat["last_message_at"]
    last_covered = last is not None and since is not None and shown is not None and since <= last < shown - LOOKBACK
    end_read = last is None or (latest is not None and latest >= last) or last_covered
    within_coverage = until is None or all(at is None or at < until for at in (last, latest))
    known = bool(messages) or (beginning_read and end_read)

    def counted(wanted: Iterable[Any]) -> int | None:
        return len(list(wanted)) if known else None

    def recent(days: int) -> int | None:
        if shown is None or since is None or not known:
            return None
        today = shown.astimezone(zone).date()
        first_day = today - timedelta(days=days - 1)
        window = datetime.combine(first_day, datetime.min.time(), zone)
        chat_began = min([m.at for m in messages[:1]] + [chat["created_at"]] * bool(chat["created_at"]), default=window)
        if since > max(window, chat_began):
            return None
        count: int = sum(first_day <= m.day <= today for m in messages)
        return count

    ours = [m for m in messages if m.asked_at and m.side == "us"]
    theirs = [m for m in messages if m.asked_at and m.side == "them"]
    voices = [m for m in messages if m.side]
    delivered = [m for m in messages if m.delivered]
    read = [m for m in messages if m.read]
    outbound = [m for m in messages if m.outbound]
    waiting_on: str | None
    if chat["deleted_at"]:
        waiting_on = "nobody"
    elif not end_read or not known:
        waiting_on = None
    elif not voices or is_closed(world, voices[-1].at, close_after_days):
        waiting_on = "nobody"
    else:
        waiting_on = {"them": "us", "us": "them"}[voices[-1].side or ""]
    unanswered_since = None
    if waiting_on == "us":
        for message in reversed(voices):
            if message.side == "us":
                break
            unanswered_since = message.at
    gaps = [later.at - earlier.at for earlier, later in pairwise(messages)]
    return {
        "chat_id": chat["id"],
        **{name: chat[name] for name in ("from_handle", "remote_handle", "is_group", "title")},
        "chat_created_at": chat["created_at"],
        "deleted_at": chat["deleted_at"],
        "last_message_at": last,
        "first_message_at": messages[0].at if messages else None,
        "latest_message_at": latest,
        "messages_total": counted(messages),
        "messages_inbound": counted(m for m in messages if m.inbound),
        "messages_outbound": counted(outbound),
        "messages_failed": counted(m for m in messages if m.failed),
        "messages_delivered": counted(delivered),
        "messages_read": counted(read),
        "delivery_rate": len(delivered) / len(outbound) if outbound else None,
        "read_rate": len(read) / len(delivered) if delivered else None,
        "messages_imessage": counted(m for m in messages if m.row["channel"] == "imessage"),
        "messages_sms": counted(m for m in messages if m.row["channel"] == "sms"),
        "messages_whatsapp": counted(m for m in messages if m.row["channel"] == "whatsapp"),
        "main_channel": main_channel(messages),
        "attachments_total": sum(m.row["attachment_count"] or 0 for m in messages) if known else None,
        "distinct_senders": counted({fold_handle(m.sender) for m in messages if m.sender is not None}),
        "active_days": counted({m.day for m in messages}),
        "messages_last_7_days": recent(7),
        "messages_last_30_days": recent(30),
        "dormant_days": None
        if not (latest and shown and end_read)
        else max(shown - latest, 0 * SECOND) // timedelta(days=1),
        "longest_gap_seconds": seconds(max(gaps)) if gaps else None,
        "last_inbound_at": max((m.at for m in messages if m.inbound), default=None),
        "last_outbound_at": max((m.at for m in outbound), default=None),
        "began_on": messages[0].day if messages and beginning_read else None,
        "initiator": voices[0].side if voices and beginning_read else None,
        "waiting_on": waiting_on,
        "unanswered_since": unanswered_since,
        "our_replies": counted(ours),
        "their_replies": counted(theirs),
        "our_first_response_seconds": seconds(ours[0].waited) if ours and beginning_read else None,
        "their_first_response_seconds": seconds(theirs[0].waited) if theirs and beginning_read else None,
        **_reply_percentiles("our", ours, p90=True),
        **_reply_percentiles("their", theirs, p90=True),
        **_typed(messages, events, is_end_read=end_read),
        "messages_complete_since": since,
        "is_complete": beginning_read and end_read and within_coverage,
        "fetched_at": max(row["_fetched_at"] for row in [chat, *(m.row for m in messages)]),
    }


def _reply_percentiles(whose: str, replies: list[Message], *, p90: bool) -> Row:
    waited = [m.waited for m in replies if m.waited is not None]
    row = {f"{whose}_median_reply_seconds": percentile(Fraction(1, 2), waited)}
    if p90:
        row[f"{whose}_p90_reply_seconds"] = percentile(Fraction(9, 10), waited)
    return row


def _traffic(messages: list[Message]) -> Row:
    return {
        "messages_total": len(messages),
        "messages_inbound": sum(m.inbound for m in messages),
        "messages_outbound": sum(m.outbound for m in messages),
    }


def _replies(messages: list[Message]) -> Row:
    return {
        "messages_failed": sum(m.failed for m in messages),
        "our_replies": sum(bool(m.asked_at) and m.side == "us" for m in messages),
        "their_replies": sum(bool(m.asked_at) and m.side == "them" for m in messages),
    }


def thread_activity_daily(world: World, zone: ZoneInfo) -> list[Row]:
    days: dict[tuple[str, date], list[Message]] = defaultdict(list)
    for chat, messages in threads(world, zone).items():
        for message in messages:
            days[chat, message.day].append(message)
    return [
        {
            "chat_id": chat,
            "day": day,
            **_traffic(messages),
            **_replies(messages),
            "distinct_senders": len({fold_handle(m.sender) for m in messages if m.sender is not None}),
            "first_message_at": messages[0].at,
            "latest_message_at": messages[-1].at,
        }
        for (chat, day), messages in days.items()
    ]


def thread_activity_hours(world: World, zone: ZoneInfo) -> list[Row]:
    hours: dict[tuple[str, int, int], list[Message]] = defaultdict(list)
    for chat, messages in threads(world, zone).items():
        for message in messages:
            hours[chat, message.local.isoweekday(), message.local.hour].append(message)
    return [
        {"chat_id": chat, "weekday": weekday, "hour": hour, **_traffic(messages)}
        for (chat, weekday, hour), messages in hours.items()
    ]


def number_activity_daily(world: World, zone: ZoneInfo) -> list[Row]:
    days: dict[tuple[str, date], list[Message]] = defaultdict(list)
    for chat, messages in chats_and_threads(world, zone):
        for message in messages:
            if chat["from_handle"] is not None:
                days[chat["from_handle"], message.day].append(message)
    return [
        {
            "from_handle": handle,
            "day": day,
            "threads_active": len({m.chat["id"] for m in messages}),
            **_traffic(messages),
            **_replies(messages),
            **_reply_percentiles("our", [m for m in messages if m.asked_at and m.side == "us"], p90=True),
            **_reply_percentiles("their", [m for m in messages if m.asked_at and m.side == "them"], p90=False),
        }
        for (handle, day), messages in days.items()
    ]


def typing_events(world: World, chat: Row) -> list[datetime]:
    """Return when the other side was seen typing in a chat."""
    return sorted(
        row["occurred_at"]
        for row in world["webhook_events"]
        if row["chat_id"] == chat["id"]
        and row["event_type"] == "conversation.typing"
        and row["is_typing"] is not False
        and row["direction"] != "outbound"
        and (row["handle"] is None or fold_handle(row["handle"]) != fold_handle(chat["from_handle"] or ""))
    )


def _typed(messages: list[Message], events: list[datetime], *, is_end_read: bool) -> Row:
    last = max(events, default=None)
    if last is None:
        unsent = None
    elif any(m.inbound and m.at >= last for m in messages):
        unsent = False
    else:
        unsent = True if is_end_read else None
    return {"last_typing_at": last, "has_typed_unsent": unsent}


SPELL = timedelta(minutes=5)


def typing_daily(world: World, zone: ZoneInfo) -> list[Row]:
    days: dict[tuple[str, date], list[tuple[list[datetime], bool]]] = defaultdict(list)
    for chat, messages in chats_and_threads(world, zone):
        wrote = [m.at for m in messages if m.inbound]
        spells: list[list[datetime]] = []
        for at in typing_events(world, chat):
            before = spells[-1][-1] if spells else None
            if before is not None and at - before < SPELL and not any(before <= time < at for time in wrote):
                spells[-1].append(at)
            else:
                spells.append([at])
        for spell in spells:
            is_sent = any(spell[-1] <= time < spell[-1] + SPELL for time in wrote)
            days[chat["id"], spell[0].astimezone(zone).date()].append((spell, is_sent))
    return [
        {
            "chat_id": chat_id,
            "day": day,
            "spells": len(spells),
            "spells_sent": sum(is_sent for _, is_sent in spells),
            "spells_unsent": sum(not is_sent for _, is_sent in spells),
            "first_started_at": min(spell[0] for spell, _ in spells),
            "last_typing_at": max(spell[-1] for spell, _ in spells),
        }
        for (chat_id, day), spells in days.items()
    ]
