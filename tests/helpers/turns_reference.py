"""Compute the marts of turns in Python, as `marts_reference` does the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from zoneinfo import ZoneInfo

from helpers.message_reference import Message, Row, World, seconds, threads


def chats_with_voices(world: World, zone: ZoneInfo) -> Iterator[tuple[Row, list[Message]]]:
    """Yield each chat with the messages that speak for a side."""
    by_chat = threads(world, zone)
    for chat in world["chats"]:
        yield chat, [m for m in by_chat[chat["id"]] if m.side]


def thread_turns(world: World, zone: ZoneInfo) -> list[Row]:
    rows: list[Row] = []
    for chat, voices in chats_with_voices(world, zone):
        turns = [list(turn) for _, turn in groupby(voices, key=lambda m: m.side)]
        for number, (turn, answer) in enumerate(zip(turns, [*turns[1:], None], strict=False), 1):
            answered_at = answer[0].at if answer else None
            rows.append(
                {
                    "chat_id": chat["id"],
                    "turn_number": number,
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
                    "is_open": answered_at is None and chat["deleted_at"] is None,
                }
            )
    return rows
