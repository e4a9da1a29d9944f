"""Compute the marts in Python, message by message, from the loaded rows.

Written from the descriptions of the columns, not from the SQL. A mart is a list of rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from helpers.daily_reference import attachments_daily, backlog_daily, calendar, delivery_daily, reactions_daily
from helpers.message_reference import (
    EPOCH,
    LOOKBACK,
    Message,
    Row,
    World,
    as_of,
    coverage,
    is_closed,
    percentile,
    read_until,
    seconds,
    threads,
)
from helpers.turns_reference import sla_daily, sla_events, thread_sessions, thread_turns
from msgbubbles.handles import fold_handle
from msgbubbles_sync.settings import TransformSettings

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
        for chat, messages in _chats_and_threads(world, zone)
    ]


def _chats_and_threads(world: World, zone: ZoneInfo) -> list[tuple[Row, list[Message]]]:
    by_chat = threads(world, zone)
    return [(chat, by_chat[chat["id"]]) for chat in world["chats"]]


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
    for chat, messages in _chats_and_threads(world, zone):
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


WEIGHTS = ("operation", "participant_list", "own_number", "message")


def group_membership(world: World, zone: ZoneInfo) -> list[Row]:
    rows = []
    for chat, messages in _chats_and_threads(world, zone):
        if chat["is_group"]:
            rows += _members(chat, messages, world)
    return rows


def _members(chat: Row, messages: list[Message], world: World) -> list[Row]:
    """Go through the evidence of each handle in order of time, and track whether it is a member."""
    spellings: dict[str, set[str]] = defaultdict(set)

    def fold(handle: str | None) -> str | None:
        if handle is None:
            return None
        spellings[fold_handle(handle)].add(handle)
        return fold_handle(handle)

    chat = {**chat, "from_handle": fold(chat["from_handle"])}
    for message in messages:
        message.sender = fold(message.sender)
    own = chat["from_handle"]
    operations = [
        {**row, "handle": fold(row["handle"])}
        for row in world["group_member_operations"]
        if row["chat_id"] == chat["id"]
    ]
    lists: dict[datetime, set[str | None]] = defaultdict(set)
    for row in world["participant_lists"]:
        if row["chat_id"] == chat["id"]:
            lists[row["_fetched_at"]].add(fold(row["handle"]))
    seen: list[tuple[str, datetime, str]] = [
        (row["handle"], row["happened_at"], "operation") for row in operations if row["operation"] == "added"
    ]
    seen += [(handle, at, "participant_list") for at, members in lists.items() for handle in members if handle]
    seen += [(m.sender, m.at, "own_number" if m.outbound else "message") for m in messages if m.sender]
    if own:
        seen.append((own, chat["created_at"] or chat["_fetched_at"], "own_number"))
    removed = [(row["handle"], row["happened_at"]) for row in operations if row["operation"] == "removed"]

    rows = []
    for handle in sorted({handle for handle, *_ in seen} | {handle for handle, _ in removed}):
        # (time, whether it is a member, evidence); at equal times, absence sorts first.
        events = [(at, True, evidence) for who, at, evidence in seen if who == handle]
        removed_at = [at for who, at in removed if who == handle]
        if (
            removed_at
            and chat["created_at"]
            and chat["created_at"] < min(removed_at) <= min((at for at, *_ in events), default=min(removed_at))
        ):
            events.append((chat["created_at"], True, "removal"))
        events += [(at, False, "operation") for at in removed_at]
        events += [
            (at, False, "participant_list") for at, members in lists.items() if handle not in members and handle != own
        ]
        events.sort(key=lambda event: (event[0], event[1], event[2]))
        spells: list[dict[str, Any]] = []
        inside = False
        for at, is_member, evidence in events:
            if is_member and not inside:
                spells.append({"from": at, "to": None, "end": None, "events": []})
            if is_member:
                spells[-1]["events"].append((at, evidence))
            elif inside:
                spells[-1] |= {"to": at, "end": evidence}
            inside = is_member
        shown = max(spellings[handle])
        rows += [{**_member(chat, handle, spell, messages), "handle": shown} for spell in spells]
    return rows


def _member(chat: Row, handle: str, spell: dict[str, Any], messages: list[Message]) -> Row:
    kinds = {evidence for _, evidence in spell["events"]}
    real = [at for at, evidence in spell["events"] if evidence != "removal"]
    if "removal" in kinds:
        confidence = (
            "low" if not real else "high" if kinds & {"operation", "participant_list", "own_number"} else "medium"
        )
    else:
        confidence = "medium" if kinds == {"message"} else "high"
    evidence = [kind for kind in WEIGHTS if kind in kinds or (kind == "operation" and "removal" in kinds)]
    main = [kind for kind in evidence if kind in kinds] or evidence
    wrote = sum(
        m.sender == handle and m.at >= spell["from"] and (spell["to"] is None or m.at < spell["to"]) for m in messages
    )
    inbound = [m for m in messages if m.inbound]
    # If the API names the sender of no inbound message, silence proves nothing.
    counted = messages and (handle == chat["from_handle"] or not inbound or any(m.sender for m in inbound))
    return {
        "chat_id": chat["id"],
        "handle": handle,
        "valid_from": spell["from"],
        "valid_to": spell["to"],
        "is_current": spell["to"] is None,
        "evidence": main[0],
        "evidence_all": ",".join(evidence),
        "confidence": confidence,
        "end_evidence": spell["end"],
        "first_seen_at": min(real, default=None),
        "last_seen_at": max(real, default=None),
        "message_count": wrote if counted else None,
        "message_share": wrote / len(messages) if counted else None,
        "thread_messages_total": len(messages) or None,
    }


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
    for chat, messages in _chats_and_threads(world, zone):
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


def _own_handles(world: World) -> set[str]:
    return {fold_handle(row["handle"]) for row in world["numbers"]} | {
        fold_handle(chat["from_handle"]) for chat in world["chats"] if chat["from_handle"] is not None
    }


def _count_months(earlier: date, later: date) -> int:
    return 12 * (later.year - earlier.year) + later.month - earlier.month


def _find_contact(world: World, handle: str) -> tuple[str, str | None]:
    """Return what the rows of a handle are grouped by, and its contact in the list."""
    folded = fold_handle(handle)
    contact = {row["handle"]: row["contact"] for row in world.get("contact_aliases", ())}.get(folded)
    return (folded, None) if contact is None else (f"contact {contact}", contact)


def contact_monthly(world: World, zone: ZoneInfo) -> list[Row]:
    labels: dict[str, str | None] = {}
    spellings: dict[str, set[str]] = defaultdict(set)
    months: dict[str, dict[date, list[Message]]] = defaultdict(lambda: defaultdict(list))
    for chat, messages in _chats_and_threads(world, zone):
        if chat["remote_handle"] is None or chat["is_group"] is not False:
            continue
        handle, labels[handle] = _find_contact(world, chat["remote_handle"])
        spellings[handle].add(chat["remote_handle"])
        for message in messages:
            months[handle][message.day.replace(day=1)].append(message)
    return [
        {
            "handle": max(spellings[handle]),
            "contact": labels[handle],
            "month": month,
            "first_month": min(by_month),
            "months_since_first": _count_months(min(by_month), month),
            "active_days": len({m.day for m in messages}),
            "messages_inbound": sum(m.inbound for m in messages),
            "messages_outbound": sum(m.outbound for m in messages),
        }
        for handle, by_month in months.items()
        if handle not in _own_handles(world)
        for month, messages in by_month.items()
    ]


def contact_retention(world: World, zone: ZoneInfo) -> list[Row]:
    rows = contact_monthly(world, zone)
    cohorts: dict[date, set[str]] = defaultdict(set)
    for row in rows:
        cohorts[row["first_month"]].add(row["handle"])
    return [
        {
            "first_month": first,
            "month": month,
            "months_since_first": _count_months(first, month),
            "contacts": len(handles),
            "contacts_active": (
                active := sum(
                    row["month"] == month and row["handle"] in handles and row["messages_inbound"] > 0 for row in rows
                )
            ),
            "retention_rate": active / len(handles),
        }
        for first, handles in cohorts.items()
        for month in {row["month"] for row in rows}
        if month >= first
    ]


def _contact_replies(turns: list[Row]) -> Row:
    row: Row = {}
    for name, asking in (("our", "them"), ("their", "us")):
        asked = [turn for turn in turns if turn["side"] == asking]
        answered = [turn for turn in asked if turn["answered_at"] is not None]
        row |= {
            f"{name}_answer_rate": len(answered) / len(asked) if asked else None,
            f"{name}_median_reply_seconds": _median(answered, "reply_seconds"),
        }
        if name == "our":
            row["our_median_business_reply_seconds"] = _median(answered, "business_reply_seconds")
    return row


def _median(turns: list[Row], column: str) -> float | None:
    return percentile(Fraction(1, 2), [timedelta(seconds=turn[column]) for turn in turns])


def contact(world: World, zone: ZoneInfo, settings: TransformSettings = TransformSettings()) -> list[Row]:  # noqa: B008
    ours = _own_handles(world)
    direct: dict[str, list[Row]] = defaultdict(list)
    contact_by_chat: dict[str, str] = {}
    labels: dict[str, str | None] = {}
    for row in thread_activity(world, zone, settings.close_after_days):
        if row["remote_handle"] is not None and row["is_group"] is False:
            handle, labels[handle] = _find_contact(world, row["remote_handle"])
            contact_by_chat[row["chat_id"]] = handle
            direct[handle].append(row)
    turns: dict[str | None, list[Row]] = defaultdict(list)
    for turn in thread_turns(world, zone, settings):
        turns[contact_by_chat.get(turn["chat_id"])].append(turn)
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in group_membership(world, zone):
        handle, labels[handle] = _find_contact(world, row["handle"])
        grouped[handle].append(row)

    def total(rows: list[Row], column: str) -> int | None:
        known = [row[column] for row in rows if row[column] is not None]
        return sum(known) if known else None

    def known(*values: Any) -> list[Any]:
        return [value for value in values if value is not None]

    def extreme(pick: Callable[..., Any], rows: list[Row], column: str) -> Any:
        return pick(known(*(row[column] for row in rows)), default=None)

    rows = []
    for handle in {*direct, *grouped} - ours:
        chats, groups = direct[handle], grouped[handle]
        rows.append(
            {
                "handle": max((row["remote_handle"] for row in chats), default=None)
                or max(row["handle"] for row in groups),
                "contact": labels[handle],
                "threads": len(chats),
                "threads_waiting_on_us": sum(row["waiting_on"] == "us" for row in chats),
                "threads_waiting_on_them": sum(row["waiting_on"] == "them" for row in chats),
                "unanswered_since": extreme(min, chats, "unanswered_since"),
                "last_inbound_at": extreme(max, chats, "last_inbound_at"),
                "last_outbound_at": extreme(max, chats, "last_outbound_at"),
                "our_replies": total(chats, "our_replies"),
                "their_replies": total(chats, "their_replies"),
                **_contact_replies(turns[handle]),
                "groups_ever": len({row["chat_id"] for row in groups}),
                "groups_current": len({row["chat_id"] for row in groups if row["is_current"]}),
                "first_contact_at": min(
                    known(*(r["first_message_at"] for r in chats), *(r["first_seen_at"] for r in groups)), default=None
                ),
                "last_contact_at": max(
                    known(*(r["latest_message_at"] for r in chats), *(r["last_seen_at"] for r in groups)), default=None
                ),
                "messages_inbound": total(chats, "messages_inbound"),
                "messages_outbound": total(chats, "messages_outbound"),
                "messages_in_groups": total(groups, "message_count"),
                "channels": ",".join(
                    name for name in ("imessage", "sms", "whatsapp") if (total(chats, f"messages_{name}") or 0) > 0
                )
                or None,
            }
        )
    return rows


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


def check_marts(query: Callable[[str], list[Row]], **built_from: list[Row]) -> None:
    """Check that every mart has rows and that they equal the reference. `query` reads the warehouse.

    `built_from` are tables whose rows have changed since the marts were built.
    """
    world = {table: query(f"SELECT * FROM msgbubbles.{table}") for table in LOADED} | OPTIONAL | built_from
    for name, reference in MARTS.items():
        built = query(f"SELECT * FROM marts.{name}")
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
