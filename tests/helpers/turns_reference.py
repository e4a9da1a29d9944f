"""Compute the marts of turns in Python, as `marts_reference` does the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import msgspec

from helpers.message_reference import Message, Row, World, seconds, threads
from msgbubbles.handles import fold_handle
from msgbubbles_sync.dbt.project import build_variables
from msgbubbles_sync.service_levels import BusinessHours, NumberHours, Schedule, list_schedules
from msgbubbles_sync.settings import Settings, TransformSettings

SESSION_GAP = timedelta(hours=24)
# Days without hours, a holiday, hours over midnight and over the nights in which clocks change, and a number in another
# time zone.
BUSINESS = TransformSettings(
    business_hours=BusinessHours(
        hours=("mon-thu 09:00-12:30", "mon-thu 13:15-17:00", "fri-sat 22:00-04:00", "sun 23:30-24:00"),
        holidays=(date(2026, 1, 1), date(2026, 1, 6), date(2026, 3, 28), date(2026, 4, 6), date(2026, 4, 28)),
        numbers=(NumberHours("+2", ("mon-sun 08:00-20:00",), time_zone="Asia/Kolkata"),),
    )
)


def dbt_variables(settings: TransformSettings, zone: ZoneInfo) -> str:
    """Return the value of `--vars` with which dbt builds what the reference computes."""
    variables = build_variables(Settings(transforms=msgspec.structs.replace(settings, time_zone=zone.key)))
    return json.dumps(variables)


def chats_with_voices(world: World, zone: ZoneInfo) -> Iterator[tuple[Row, list[Message]]]:
    """Yield each chat with the messages that speak for a side."""
    by_chat = threads(world, zone)
    for chat in world["chats"]:
        yield chat, [m for m in by_chat[chat["id"]] if m.side]


def business_seconds(schedules: list[Schedule], chat: Row, earlier: datetime, later: datetime | None) -> float | None:
    """Go through the openings of each day in between."""
    if later is None:
        return None
    own = fold_handle(chat["from_handle"] or "")
    schedule = next((schedule for schedule in schedules if schedule.handle == own), schedules[0])
    zone = ZoneInfo(schedule.time_zone)
    total = timedelta()
    day = earlier.astimezone(zone).date() - timedelta(days=1)
    while day <= later.astimezone(zone).date():
        for weekday, opens, closes in schedule.openings:
            if weekday == day.isoweekday() and day not in schedule.holidays:
                begin, end = at_minute(day, opens, zone), at_minute(day, closes, zone)
                total += max(min(end, later) - max(begin, earlier), timedelta())
        day += timedelta(days=1)
    return seconds(total)


def at_minute(day: date, minute: int, zone: ZoneInfo) -> datetime:
    """Return when a clock shows this time: the later one if it shows it twice; if never, as much later as it skips."""
    local = datetime.combine(day, time()) + timedelta(minutes=minute)
    return max(local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))


def split_turns(messages: list[Message]) -> list[list[Message]]:
    return [list(turn) for _, turn in groupby(messages, key=lambda m: m.side)]


def split_sessions(voices: list[Message]) -> list[list[Message]]:
    sessions: list[list[Message]] = []
    for message in voices:
        if sessions and message.at - sessions[-1][-1].at < SESSION_GAP:
            sessions[-1].append(message)
        else:
            sessions.append([message])
    return sessions


def thread_turns(world: World, zone: ZoneInfo, settings: TransformSettings = TransformSettings()) -> list[Row]:  # noqa: B008
    rows: list[Row] = []
    schedules = list_schedules(settings.business_hours, zone.key)
    for chat, voices in chats_with_voices(world, zone):
        turns = split_turns(voices)
        numbers = {m.row["id"]: number for number, session in enumerate(split_sessions(voices), 1) for m in session}
        openings = {session[0].row["id"] for session in split_sessions(voices)}
        for number, (turn, answer) in enumerate(zip(turns, [*turns[1:], None], strict=False), 1):
            answered_at = answer[0].at if answer else None
            rows.append(
                {
                    "chat_id": chat["id"],
                    "turn_number": number,
                    "session_number": numbers[turn[0].row["id"]],
                    "starts_session": turn[0].row["id"] in openings,
                    "side": turn[0].side,
                    "from_handle": chat["from_handle"],
                    "is_group": chat["is_group"],
                    "channel": turn[0].row["channel"],
                    "began_at": turn[0].at,
                    "ended_at": turn[-1].at,
                    "day": turn[0].day,
                    "message_count": len(turn),
                    "answered_at": answered_at,
                    "reply_seconds": seconds(answered_at - turn[0].at) if answered_at else None,
                    "business_reply_seconds": business_seconds(schedules, chat, turn[0].at, answered_at),
                    "is_open": answered_at is None and chat["deleted_at"] is None,
                }
            )
    return rows


def thread_sessions(world: World, zone: ZoneInfo, settings: TransformSettings = TransformSettings()) -> list[Row]:  # noqa: B008
    rows: list[Row] = []
    schedules = list_schedules(settings.business_hours, zone.key)
    for chat, voices in chats_with_voices(world, zone):
        sessions = split_sessions(voices)
        for number, (session, later) in enumerate(zip(sessions, [*sessions[1:], None], strict=False), 1):
            sides = [turn[0].side for turn in split_turns(session)]
            response = next((m.at for m in session if m.side != session[0].side), None)
            rows.append(
                {
                    "chat_id": chat["id"],
                    "session_number": number,
                    "from_handle": chat["from_handle"],
                    "is_group": chat["is_group"],
                    "channel": session[0].row["channel"],
                    "started_at": session[0].at,
                    "ended_at": session[-1].at,
                    "day": session[0].day,
                    "duration_seconds": seconds(session[-1].at - session[0].at),
                    "initiator": session[0].side,
                    "ended_by": session[-1].side,
                    "messages_from_us": sum(m.outbound for m in session),
                    "messages_from_them": sum(m.inbound for m in session),
                    "our_turns": sides.count("us"),
                    "their_turns": sides.count("them"),
                    "is_one_touch": session[0].inbound and sides.count("us") == 1,
                    "first_response_at": response,
                    "first_response_seconds": seconds(response - session[0].at) if response else None,
                    "business_first_response_seconds": business_seconds(schedules, chat, session[0].at, response),
                    "reopened_at": later[0].at if later else None,
                    "reopened_by": later[0].side if later else None,
                    "reopened_after_seconds": seconds(later[0].at - session[-1].at) if later else None,
                }
            )
    return rows
