"""Compute the marts of group members and contacts in Python, as `marts_reference` does the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from helpers.message_reference import Message, Row, World, chats_and_threads, percentile
from helpers.thread_reference import thread_activity
from helpers.turns_reference import thread_turns
from msgbubbles.handles import fold_handle
from msgbubbles_sync.settings import TransformSettings

WEIGHTS = ("operation", "participant_list", "own_number", "message")


def group_membership(world: World, zone: ZoneInfo) -> list[Row]:
    rows = []
    for chat, messages in chats_and_threads(world, zone):
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
    for chat, messages in chats_and_threads(world, zone):
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
