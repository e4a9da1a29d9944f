"""Compute the marts of days in Python, as `marts_reference` does the others."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import date, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from helpers.message_reference import Message, Row, World, as_of, coverage, percentile, read_until, threads
from helpers.turns_reference import at_minute, thread_turns


def calendar(world: World, zone: ZoneInfo) -> list[Row]:
    since, until, shown = coverage(world)[0], read_until(world), as_of(world)
    days = {message.day for messages in threads(world, zone).values() for message in messages}
    if not days:
        return []
    last = max(days | ({shown.astimezone(zone).date()} if shown else set()))
    rows = []
    for number in range((last - min(days)).days + 1):
        day = min(days) + timedelta(days=number)
        begins, ends = (at_minute(day + timedelta(days=more), 0, zone) for more in (0, 1))
        rows.append(
            {
                "day": day,
                "weekday": day.isoweekday(),
                "week": day - timedelta(days=day.weekday()),
                "month": day.replace(day=1),
                "is_complete": since is not None and until is not None and since <= begins and ends <= until,
            }
        )
    return rows


def backlog_daily(world: World, zone: ZoneInfo, close_after_days: int = 0) -> list[Row]:
    chats = {chat["id"]: chat for chat in world["chats"]}
    turns: dict[str, list[tuple[Row, date | None]]] = defaultdict(list)
    for turn in thread_turns(world, zone):
        ends = [turn["answered_at"] or chats[turn["chat_id"]]["deleted_at"]]
        if close_after_days:
            ends.append(turn["ended_at"] + timedelta(days=close_after_days))
        end = min((at.astimezone(zone).date() for at in ends if at), default=None)
        if turn["from_handle"] is not None:
            turns[turn["from_handle"]].append((turn, end))
    rows = []
    for row in calendar(world, zone):
        day = row["day"]
        for number, of_number in turns.items():
            if day < min(turn["day"] for turn, _ in of_number):
                continue
            waiting = [turn for turn, end in of_number if turn["day"] <= day and (end is None or day < end)]

            direct, groups = (
                [(turn["side"], (day - turn["day"]).days) for turn in waiting if turn["is_group"] is is_group]
                for is_group in (False, True)
            )
            rows.append(
                {
                    "from_handle": number,
                    "day": day,
                    "waiting_on_us": count_waits(direct, "them", 0),
                    "waiting_on_us_1_day": count_waits(direct, "them", 1),
                    "waiting_on_us_3_days": count_waits(direct, "them", 3),
                    "waiting_on_us_7_days": count_waits(direct, "them", 7),
                    "waiting_on_them": count_waits(direct, "us", 0),
                    "waiting_on_them_7_days": count_waits(direct, "us", 7),
                    "groups_waiting_on_us": count_waits(groups, "them", 0),
                }
            )
    return rows


def count_waits(waits: list[tuple[str, int]], side: str, days: int) -> int:
    return sum(who == side and age >= days for who, age in waits)


def delivery_daily(world: World, zone: ZoneInfo) -> list[Row]:
    groups: dict[tuple[Any, ...], list[Message]] = defaultdict(list)
    for messages in threads(world, zone).values():
        for m in messages:
            if m.outbound and m.chat["from_handle"] is not None:
                code = error_code(m.row["error"]) if m.failed else None
                groups[m.chat["from_handle"], m.day, m.row["channel"], m.row["status"], code].append(m)

    def median(messages: list[Message], end: str) -> float | None:
        spans = [m.row[end] - (m.row["sent_at"] or m.at) for m in messages if m.row[end] is not None]
        return percentile(Fraction(1, 2), [span for span in spans if span >= timedelta()])

    names = ("from_handle", "day", "channel", "status", "error_code")
    return [
        dict(zip(names, key, strict=True))
        | {
            "messages_total": len(messages),
            "median_delivery_seconds": median(messages, "delivered_at"),
            "median_read_seconds": median(messages, "read_at"),
        }
        for key, messages in groups.items()
    ]


def error_code(error: Any) -> str | None:
    if isinstance(error, str):
        error = json.loads(error)
    return (error.get("code") or error.get("error")) if isinstance(error, dict) else None


def reactions_daily(world: World, zone: ZoneInfo) -> list[Row]:
    chats = {chat["id"] for chat in world["chats"]}
    groups: dict[tuple[Any, ...], list[str | None]] = defaultdict(list)
    for event in world["webhook_events"]:
        if event["event_type"] == "message.reaction" and event["chat_id"] in chats:
            key = event["chat_id"], event["occurred_at"].astimezone(zone).date(), event["reaction"]
            groups[key].append(event["message_id"])
    return [
        {
            "chat_id": chat,
            "day": day,
            "reaction": reaction,
            "reactions": len(messages),
            "messages_with_reaction": len({*messages} - {None}),
        }
        for (chat, day, reaction), messages in groups.items()
    ]


def attachments_daily(world: World, zone: ZoneInfo) -> list[Row]:
    by_id = {m.row["id"]: m for messages in threads(world, zone).values() for m in messages}
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in world["attachments"]:
        m = by_id.get(row["message_id"])
        if row["removed_at"] is None and m is not None and m.chat["from_handle"] is not None:
            kind = row["mime_type"] and row["mime_type"].split("/")[0].lower()
            groups[m.chat["from_handle"], m.day, m.row["direction"], kind].append(row)
    return [
        {
            "from_handle": number,
            "day": day,
            "direction": direction,
            "kind": kind,
            "attachments": len(rows),
            "messages_with_attachment": len({row["message_id"] for row in rows}),
            "size_bytes": sum(sizes)
            if (sizes := [r["size_bytes"] for r in rows if r["size_bytes"] is not None])
            else None,
        }
        for (number, day, direction, kind), rows in groups.items()
    ]
