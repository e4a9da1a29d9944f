"""Compute the marts of turns in Python, as `marts_reference` does the others."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from helpers.message_reference import Message, Row, World, as_of, is_closed, seconds, threads
from msgbubbles.handles import fold_handle
from msgbubbles_sync.dbt.project import build_variables
from msgbubbles_sync.service_levels import BusinessHours, NumberHours, Schedule, ServiceLevels, Target, list_schedules
from msgbubbles_sync.settings import Settings, TransformSettings

SESSION_GAP = timedelta(hours=24)
# Days without hours, a holiday, hours over midnight and over the nights in which clocks change, and a number in another
# time zone.
BUSINESS = TransformSettings(
    close_after_days=14,
    business_hours=BusinessHours(
        hours=("mon-thu 09:00-12:30", "mon-thu 13:15-17:00", "fri-sat 22:00-04:00", "sun 23:30-24:00"),
        holidays=tuple(date(2026, *day) for day in ((1, 1), (1, 6), (3, 6), (3, 28), (4, 6), (4, 28), (10, 30))),
        numbers=(NumberHours("+2", ("mon-sun 08:00-20:00",), time_zone="Asia/Kolkata"),),
    ),
    sla=ServiceLevels(
        targets=(
            Target(metric="first_response", minutes=0.5, clock="wall", numbers=("+2",), channels=("sms", "imessage")),
            Target(metric="first_response", minutes=210),
            Target(metric="next_response", minutes=24 * 60, clock="wall", channels=("sms",)),
            Target(metric="next_response", minutes=600),
        )
    ),
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
    total = timedelta()
    for begin, end in openings_from(schedules, chat, earlier):
        if begin > later:
            return seconds(total)
        total += max(min(end, later) - max(begin, earlier), timedelta())
    raise AssertionError


def find_deadline(schedules: list[Schedule], chat: Row, asked: datetime, target: timedelta) -> datetime:
    """Return when more than this time has passed within business hours."""
    for begin, end in openings_from(schedules, chat, asked):
        begin = max(begin, asked)
        if target < end - begin:
            return begin + target
        target -= max(end - begin, timedelta())
    raise AssertionError


def openings_from(schedules: list[Schedule], chat: Row, at: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield when business hours begin and end, from the day before a time on."""
    own = fold_handle(chat["from_handle"] or "")
    schedule = next((schedule for schedule in schedules if schedule.handle == own), schedules[0])
    zone = ZoneInfo(schedule.time_zone)
    day = at.astimezone(zone).date() - timedelta(days=1)
    while True:
        for weekday, opens, closes in schedule.openings:
            if weekday == day.isoweekday() and day not in schedule.holidays:
                yield at_minute(day, opens, zone), at_minute(day, closes, zone)
        day += timedelta(days=1)


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
            starts_session = turn[0].row["id"] in openings
            rows.append(
                {
                    "chat_id": chat["id"],
                    "turn_number": number,
                    "session_number": numbers[turn[0].row["id"]],
                    "starts_session": starts_session,
                    "side": turn[0].side,
                    "from_handle": chat["from_handle"],
                    "is_group": chat["is_group"],
                    "channel": turn[0].row["channel"],
                    "began_at": turn[0].at,
                    "ended_at": turn[-1].at,
                    "day": turn[0].day,
                    "message_count": len(turn),
                    "answered_at": answered_at,
                    "answered_day": answer[0].day if answer else None,
                    "reply_seconds": seconds(answered_at - turn[0].at) if answered_at else None,
                    "business_reply_seconds": business_seconds(schedules, chat, turn[0].at, answered_at),
                    "is_open": answered_at is None
                    and chat["deleted_at"] is None
                    and not is_closed(world, turn[-1].at, settings.close_after_days),
                    "sla_target": (target := find_target(settings, chat, turn, starts_session=starts_session)),
                    "due_at": target and find_due(settings.sla.targets[target - 1], schedules, chat, turn[0].at),
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


def find_target(settings: TransformSettings, chat: Row, turn: list[Message], *, starts_session: bool) -> int | None:
    if turn[0].side == "us" or chat["is_group"] is not False:
        return None
    metric = "first_response" if starts_session else "next_response"
    for number, target in enumerate(settings.sla.targets, 1):
        if (
            target.metric == metric
            and (not target.numbers or chat["from_handle"] in target.numbers)
            and (not target.channels or turn[0].row["channel"] in target.channels)
        ):
            return number
    return None


def find_due(target: Target, schedules: list[Schedule], chat: Row, asked: datetime) -> datetime:
    span = timedelta(minutes=target.minutes)
    return asked + span if target.clock == "wall" else find_deadline(schedules, chat, asked, span)


def sla_events(world: World, zone: ZoneInfo, settings: TransformSettings = TransformSettings()) -> list[Row]:  # noqa: B008
    rows: list[Row] = []
    schedules = list_schedules(settings.business_hours, zone.key)
    chats = {chat["id"]: chat for chat in world["chats"]}
    now = as_of(world)
    for turn in thread_turns(world, zone, settings):
        if turn["sla_target"] is None:
            continue
        target, chat = settings.sla.targets[turn["sla_target"] - 1], chats[turn["chat_id"]]
        asked, answered = turn["began_at"], turn["answered_at"]
        until = answered or max(asked, chat["deleted_at"] or now or asked)
        if target.clock == "business":
            elapsed = business_seconds(schedules, chat, asked, until)
        else:
            elapsed = seconds(until - asked)
        assert elapsed is not None
        is_breached = elapsed > target.minutes * 60
        assert answered is None or is_breached == (answered > turn["due_at"])
        state = "met" if answered else "dropped" if chat["deleted_at"] else "running"
        rows.append(
            {name: turn[name] for name in ("chat_id", "turn_number", "from_handle", "channel", "day", "answered_at")}
            | {
                "metric": target.metric,
                "clock": target.clock,
                "target_seconds": target.minutes * 60,
                "asked_at": asked,
                "due_at": turn["due_at"],
                "elapsed_seconds": elapsed,
                "breached_at": turn["due_at"] if is_breached else None,
                "state": "breached" if is_breached else state,
            }
        )
    return rows


def sla_daily(world: World, zone: ZoneInfo, settings: TransformSettings = TransformSettings()) -> list[Row]:  # noqa: B008
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    names = ("from_handle", "day", "channel", "metric", "clock", "target_seconds")
    for event in sla_events(world, zone, settings):
        groups[tuple(event[name] for name in names)].append(event["state"])
    return [
        dict(zip(names, key, strict=True))
        | {"targets_total": len(states)}
        | {f"targets_{state}": states.count(state) for state in ("met", "breached", "running", "dropped")}
        | {"met_rate": sum(state == "met" for state in decided) / len(decided) if decided else None}
        for key, states in groups.items()
        for decided in [[state for state in states if state in ("met", "breached")]]
    ]
