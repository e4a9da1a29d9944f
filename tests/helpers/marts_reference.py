"""Compute the marts in Python, message by message, from the loaded rows.

Written from the descriptions of the columns, not from the SQL. A mart is a list of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from zoneinfo import ZoneInfo

from helpers.daily_reference import attachments_daily, backlog_daily, calendar, delivery_daily, reactions_daily
from helpers.message_reference import (
    Row,
    World,
)
from helpers.people_reference import contact, contact_monthly, contact_retention, group_membership
from helpers.thread_reference import (
    number_activity_daily,
    thread_activity,
    thread_activity_daily,
    thread_activity_hours,
    typing_daily,
)
from helpers.turns_reference import sla_daily, sla_events, thread_sessions, thread_turns
from msgbubbles_sync.settings import TransformSettings


def chat_title_history(world: World, _zone: ZoneInfo) -> list[Row]:
    rows: list[Row] = []
    before: Row = {"chat_id": None}
    for title_read in sorted(world["chat_titles"], key=lambda row: (row["chat_id"], row["_fetched_at"])):
        valid_from = min(title_read["updated_at"] or title_read["_fetched_at"], title_read["_fetched_at"])
        is_first = title_read["chat_id"] != before["chat_id"]
        if not is_first:
            valid_from = max(valid_from, before["_fetched_at"])
        if is_first or title_read["title"] != before["title"]:
            if not is_first:
                rows[-1] |= {"valid_to": valid_from, "is_current": False}
            rows.append(
                {
                    "chat_id": title_read["chat_id"],
                    "title": title_read["title"],
                    "valid_from": valid_from,
                    "valid_to": None,
                    "is_current": True,
                    "first_seen_at": title_read["_fetched_at"],
                }
            )
        before = title_read
    return rows


def _in_order(row: Row) -> Row:
    return dict(sorted(row.items()))


def differences(built: list[Row], expected: list[Row]) -> list[Row]:
    """Return the rows that only one side has, without the columns in which all of them agree."""
    have, want = ({tuple(row.items()) for row in map(_in_order, rows)} for rows in (built, expected))
    only = [dict(row) for row in have ^ want]
    same = {name for name in (only[0] if len(only) > 1 else ()) if all(r.get(name) == only[0][name] for r in only)}
    surplus = [{"rows": len(built), "expected": len(expected)}] if len(built) != len(expected) else []
    return surplus + [{name: row[name] for name in row if name not in same} for row in only]


# The tables of every job that the marts read, and those that a job loads only if it is configured to.
LOADED = (
    "chats", "messages", "numbers", "stream_coverage", "chat_titles", "webhook_events", "group_member_operations",
    "attachments", "contact_aliases", "sync_runs",
)  # fmt: skip
OPTIONAL: World = {"participant_lists": []}


def build_references(settings: TransformSettings) -> dict[str, Callable[[World, ZoneInfo], list[Row]]]:
    """Return the references of all marts, those that depend on settings with these."""
    return MARTS | {
        "thread_activity": partial(thread_activity, close_after_days=settings.close_after_days),
        "backlog_daily": partial(backlog_daily, close_after_days=settings.close_after_days),
        "contact": partial(contact, settings=settings),
        "thread_turns": partial(thread_turns, settings=settings),
        "thread_sessions": partial(thread_sessions, settings=settings),
        "sla_events": partial(sla_events, settings=settings),
        "sla_daily": partial(sla_daily, settings=settings),
    }


def check_marts(query: Callable[[str], list[Row]], names: Sequence[str] | None = None, **built_from: list[Row]) -> None:
    """Check that every mart, or each of these, has rows that equal the reference. `query` reads the warehouse.

    `built_from` are tables whose rows have changed since the marts were built.
    """
    world = {table: query(f"SELECT * FROM msgbubbles.{table}") for table in LOADED} | OPTIONAL | built_from
    for name in names or MARTS:
        built, reference = query(f"SELECT * FROM marts.{name}"), MARTS[name]
        assert built or name in ("sla_events", "sla_daily", "reactions_daily"), name  # they need targets, and events
        assert not (wrong := differences(built, reference(world, ZoneInfo("UTC")))), f"{name}: {wrong[:5]}"


MARTS: dict[str, Callable[[World, ZoneInfo], list[Row]]] = {
    mart.__name__: mart
    for mart in (
        thread_activity,
        thread_activity_daily,
        thread_activity_hours,
        number_activity_daily,
        group_membership,
        contact,
        contact_monthly,
        contact_retention,
        chat_title_history,
        typing_daily,
        thread_turns,
        thread_sessions,
        sla_events,
        sla_daily,
        calendar,
        backlog_daily,
        delivery_daily,
        reactions_daily,
        attachments_daily,
    )
}
