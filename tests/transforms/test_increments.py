"""Tests that increments build the same rows as a full rebuild, and as the reference."""

from __future__ import annotations

import random
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from helpers.marts_account import Account
from helpers.marts_reference import MARTS, differences
from helpers.sizes import pick_size

from .conftest import Replica, Statements

UTC = ZoneInfo("UTC")
# What `remove_built_loads` compares with, and much lower numbers.
REMOVES = (("> 2000", "> 4"), ("limit 1000", "limit 2"))
LOADS = pick_size(12, nightly=24)
NEVER = (("> 2000", "> 2000000"),)
BY_LOAD = ("int_thread_messages", "group_membership", "chat_title_history", "int_typing_spells", "int_contact_replies")


def read_marts(warehouse: Any) -> dict[str, Any]:
    marts: dict[str, Any] = warehouse.marts(MARTS)
    return marts


def assert_equal_to_rebuild(warehouse: Any) -> dict[str, Any]:
    before = read_marts(warehouse)
    warehouse.rebuild()
    assert before == read_marts(warehouse)
    return before


def test_increments_equal_reference_and_rebuild_in_any_order(replica: Any, at: Any) -> None:
    account = Account(3, at)
    for size in (6, 1, 2):
        for load_id in [account.load_ids.pop() for _ in range(account.random.choice([1, 1, 3]))]:
            replica.load(load_id, **account.next_load(size=size))
        replica.transform()
        for name, reference in MARTS.items():
            wrong = differences(replica.mart(name), reference(account.world, UTC))
            assert not wrong, f"{name}: {wrong}"
    assert replica.rows("from staging.days_to_build") == []
    before = assert_equal_to_rebuild(replica)
    assert [mart for mart, rows in before.items() if not rows] == ["sla_events", "sla_daily"]  # without targets

    replica.execute(*(f"truncate msgbubbles.{table}" for table in (*account.world, "_dlt_loads")))
    shuffled = account.world
    for rows in shuffled.values():
        account.random.shuffle(rows)
    replica.load("all at once", **shuffled)
    replica.rebuild()
    assert read_marts(replica) == before


def test_only_chats_with_changes_are_rebuilt(replica: Any, at: Any) -> None:
    groups = [{"id": key, "is_group": True, "from_handle": "+1"} for key in ("quiet", "busy")]
    titles = [{"chat_id": group["id"], "title": "loaded"} for group in groups]
    replica.load("1", chats=groups, chat_titles=titles)
    replica.transform()
    replica.execute(
        "update marts.chat_title_history set title = 'as it was'",
        "update staging.int_thread_measures set main_channel = 'as it was'",
        "update marts.group_membership set evidence_all = 'same'",
    )
    message = {"id": "m", "conversation_id": "busy", "cursor_at": at(1), "direction": "outbound"}
    replica.load("2", messages=[message])
    replica.transform()
    replica.transform()
    assert [row["main_channel"] for row in replica.mart("thread_activity")] == [None, "as it was"]
    assert [row["evidence_all"] for row in replica.mart("group_membership")] == ["own_number", "same"]
    assert [row["title"] for row in replica.mart("chat_title_history")] == ["as it was", "as it was"]

    replica.load("3", chat_titles=[{"chat_id": "quiet", "title": "loaded", "_fetched_at": at(0)}])
    replica.transform()
    assert [row["title"] for row in replica.mart("chat_title_history")] == ["as it was", "loaded"]
    assert [row["main_channel"] for row in replica.mart("thread_activity")] == [None, "as it was"]


def test_only_days_with_changed_messages_are_rebuilt(replica: Any, at: Any) -> None:
    """Rebuild such days of a busy chat too, and the day that a message has left, but no other chats of that day."""

    def message(key: str, chat: str, day: int, minute: int = 0) -> dict[str, Any]:
        return {"id": key, "conversation_id": chat, "cursor_at": at(day * 1440 + minute), "direction": "inbound"}

    replica.load(
        "1",
        chats=[{"id": chat, "from_handle": "+1"} for chat in ("busy", "quiet")],
        messages=[message(f"{chat} {day}", chat, day) for chat in ("busy", "quiet") for day in range(5)],
    )
    replica.transform()
    untouched = -1
    replica.execute(
        f"update marts.thread_activity_daily set messages_total = {untouched}",
        f"update marts.number_activity_daily set messages_total = {untouched}",
    )
    replica.load(
        "2", messages=[message("busy 1", "busy", 3, 1), message("busy 4", "busy", 4)]
    )  # the second is unchanged
    replica.transform()

    def written(mart: str, key: str) -> list[tuple[Any, int, int]]:
        rows = replica.rows(f"from marts.{mart} where messages_total <> {untouched} order by day")
        return [(row[key], row["day"].day - 1, row["messages_total"]) for row in rows]

    assert written("thread_activity_daily", "chat_id") == [("busy", 3, 2)]
    assert written("number_activity_daily", "from_handle") == [("+1", 1, 1), ("+1", 3, 3)]
    assert [row["day"].day - 1 for row in replica.mart("thread_activity_daily")].count(1) == 1  # busy left day 1


def test_status_of_a_message_is_that_of_its_latest_load(replica: Any, at: Any) -> None:
    """Neither whether it is delivered nor when it was read from the API changes, as with some webhook events."""
    message = {"id": "m", "conversation_id": "a", "cursor_at": at(1), "direction": "outbound", "channel": "sms"}
    replica.load("1", chats=[{"id": "a", "from_handle": "+1"}], messages=[message | {"status": "queued"}])
    replica.transform()
    replica.load("2", messages=[message | {"status": "sent"}])
    replica.transform()
    assert [day["status"] for day in replica.mart("delivery_daily")] == ["sent"]


def test_removed_messages_and_members_leave_the_marts(replica: Any, at: Any) -> None:
    groups = ("from", "to", "group no more", "list no more")
    chats = [{"id": key, "is_group": True, "from_handle": None} for key in groups]
    wrote = {"cursor_at": at(1), "direction": "inbound", "sender_handle": "+7"}
    replica.load(
        "1",
        chats=chats,
        messages=[
            wrote | {"id": "moves", "conversation_id": "from"},
            wrote | {"id": "stays", "conversation_id": "group no more"},
        ],
        participant_lists=[{"id": "l", "chat_id": "list no more", "handle": "+7"}],
    )
    replica.transform()
    assert [row["chat_id"] for row in replica.mart("group_membership")] == ["from", "group no more", "list no more"]

    replica.load(
        "2",
        chats=[{"id": key, "is_group": False} for key in ("group no more", "list no more")],
        messages=[wrote | {"id": "moves", "conversation_id": "to"}],
    )
    replica.transform()
    assert [row["chat_id"] for row in replica.mart("group_membership")] == ["to"]
    assert {row["chat_id"]: row["messages_total"] for row in replica.mart("thread_activity")} == {
        "from": None,  # how many messages it has is unknown
        "to": 1,
        "group no more": 1,
        "list no more": None,
    }
    assert_equal_to_rebuild(replica)


def test_loads_out_of_order_or_in_parts_are_not_missed(replica: Any) -> None:
    def titles() -> list[str]:
        replica.transform()
        return [row["title"] for row in replica.mart("thread_activity")]

    replica.load("5", chats=[{"id": "a"}, {"id": "b"}, {"id": "c"}])
    assert titles() == [None, None, None]
    replica.load("3", chats=[{"id": "a", "title": "lower id"}])
    replica.load("6", finished=False, chats=[{"id": "b", "title": "first part"}])
    assert titles()[0] == "lower id"
    replica.load("6", chats=[{"id": "c", "title": "second part"}])
    assert titles() == ["lower id", "first part", "second part"]


def test_mart_without_bookkeeping_is_rebuilt(warehouse: Any, at: Any) -> None:
    group = {"id": "g", "is_group": True, "from_handle": "+1"}
    title = {"chat_id": "g", "title": "+1"}
    message = {"id": "m", "conversation_id": "g", "cursor_at": at(1), "direction": "outbound"}
    warehouse.load("1", chats=[group], chat_titles=[title], messages=[message])
    warehouse.rebuild()
    warehouse.load("2", chats=[group | {"from_handle": "+2"}], chat_titles=[title | {"title": "+2"}])
    warehouse.execute("drop schema staging cascade")
    warehouse.transform()
    assert {
        row[column]
        for mart, column in {
            "thread_activity": "from_handle",
            "group_membership": "handle",
            "chat_title_history": "title",
            "number_activity_daily": "from_handle",
        }.items()
        for row in warehouse.mart(mart)
    } == {"+2"}


def test_mart_that_missed_a_run_catches_up(replica: Any, at: Any) -> None:
    group = {"id": "g", "is_group": True, "from_handle": "+1"}
    replica.load("1", chats=[group])
    replica.transform()
    replica.load("2", chats=[group | {"from_handle": "+2"}])
    run_without(replica, "group_membership")
    replica.load("3", chats=[group | {"id": "h"}])
    replica.transform()
    assert [row["handle"] for row in replica.mart("group_membership")] == ["+2", "+1"]

    message = {"id": "m", "conversation_id": "g", "cursor_at": at(1), "direction": "inbound"}
    replica.load("4", messages=[message])
    replica.transform()
    replica.load("5", messages=[message | {"conversation_id": "h"}])
    run_without(replica, "thread_activity_daily")
    assert [row["chat_id"] for row in replica.mart("thread_activity_daily")] == ["g"]
    replica.transform()
    assert [row["chat_id"] for row in assert_equal_to_rebuild(replica)["thread_activity_daily"]] == ["h"]


def test_failed_models_keep_their_rows_and_catch_up(warehouse: Any, at: Any) -> None:
    """Copying, deleting, recording and writing rows is one transaction."""
    chat = {"id": "a", "from_handle": "+1", "created_at": at(0)}
    message = {"id": "m", "conversation_id": "a", "cursor_at": at(1), "direction": "inbound"}
    warehouse.load("1", chats=[chat | {"is_group": True}, {"id": "b"}], messages=[message])
    warehouse.rebuild()
    before = read_marts(warehouse)
    warehouse.load("2", messages=[message | {"conversation_id": "b"}])
    warehouse.execute("alter table staging.built_loads rename column load_id to renamed")  # the last hook fails
    expected = {"int_thread_messages": "error", "thread_activity_daily": "skipped"}
    result = warehouse.dbt("run", "--select", *expected).result
    assert {node.node.name: node.status for node in result}.items() >= expected.items()
    assert read_marts(warehouse) == before
    warehouse.execute(
        "alter table staging.built_loads rename column renamed to load_id", *warehouse.statements.increment
    )
    after = assert_equal_to_rebuild(warehouse)
    assert [row["chat_id"] for row in after["thread_activity_daily"]] == ["b"]


def test_list_of_contacts_changes_the_contacts_it_names(replica: Any, at: Any) -> None:
    chats = [
        {"id": handle, "is_group": False, "from_handle": "+1", "remote_handle": handle, "created_at": at(0)}
        for handle in ("+9", "Ann@B.de", "+10")
    ]
    messages = [
        {"id": f"{chat['id']} {minute}", "conversation_id": chat["id"], "cursor_at": at(minute), "direction": direction}
        for chat, answered in zip(chats, (1, 60, 5), strict=True)
        for minute, direction in ((0, "inbound"), (answered, "outbound"))
    ]
    replica.load("1", chats=chats, messages=messages)
    replica.transform()
    alone = {("+9", None): 60, ("Ann@B.de", None): 3600, ("+10", None): 300}
    for load_id, contacts, medians in (
        ("2", {"+9": "ann", "ann@b.de": "ann"}, {("Ann@B.de", "ann"): 1830, ("+10", None): 300}),
        ("3", {"+9": None, "+10": "ann"}, {("+9", None): 60, ("Ann@B.de", "ann"): 1950}),
        ("4", {"ann@b.de": None, "+10": None}, alone),
    ):
        rows = [{"handle": handle, "contact": contact} for handle, contact in contacts.items()]
        replica.load(load_id, contact_aliases=rows)
        replica.transform()
        found = {(row["handle"], row["contact"]): row["our_median_reply_seconds"] for row in replica.mart("contact")}
        assert found == medians
        assert {(row["handle"], row["contact"]) for row in replica.mart("contact_monthly")} == {*medians}
        assert_equal_to_rebuild(replica)


def test_chat_that_moves_to_another_contact_changes_both(replica: Any, at: Any) -> None:
    def chat(key: str, contact: str) -> dict[str, Any]:
        return {"id": key, "is_group": False, "from_handle": "+1", "remote_handle": contact}

    messages = [
        {"id": f"{key} {minute}", "conversation_id": key, "cursor_at": at(minute), "direction": direction}
        for key, answered in (("quick", 1), ("slow", 60))
        for minute, direction in ((0, "inbound"), (answered, "outbound"))
    ]
    for load_id, contact, medians in (("1", "+9", {"+9": 1830}), ("2", "+10", {"+9": 60, "+10": 3600})):
        moved = [chat("slow", contact)] + ([chat("quick", "+9")] if messages else [])
        replica.load(load_id, chats=moved, messages=messages)
        messages = []
        replica.transform()
        assert {row["handle"]: row["our_median_reply_seconds"] for row in replica.mart("contact")} == medians


def replace_limits(statements: Statements, limits: tuple[tuple[str, str], ...]) -> Statements:
    text = msgspec.json.encode(statements).decode()
    for old, new in limits:
        assert text.count(old) == 2, "in the full build, and in the increment"
        text = text.replace(old, new)
    return msgspec.json.decode(text, type=Statements)


def run_without(replica: Replica, missed: str | None) -> None:
    """Run an increment in which a model fails: its transaction is rolled back, and what reads it is skipped."""
    skipped = {f"model.msgbubbles.{missed}"}
    for step in replica.statements.steps:
        if step.id in skipped or (step.is_queued and skipped & {*step.inputs}):
            skipped.add(step.id)
        else:
            replica.execute(*step.statements)


@pytest.mark.parametrize("seed", range(pick_size(1, nightly=50)))
def test_removed_loads_change_no_decision_over_random_histories(seed: int, statements: Statements, at: Any) -> None:
    """Loads finish in any order, late or never, and models miss runs. One of the replicas remembers all loads."""
    chance, account = random.Random(seed), Account(seed, at)
    replicas = [Replica(replace_limits(statements, limits)) for limits in (REMOVES, NEVER)]
    unfinished: list[str] = []
    for number in range(LOADS):
        load, load_id = dict(account.next_load(messages=chance.choice([0, 1, 4]))), account.load_ids.pop()
        is_finished, finishes_late = chance.random() < 0.8, bool(unfinished) and chance.random() < 0.3
        is_rebuilt, missed = number == 0 or chance.random() < 0.05, chance.choice([None, None, *BY_LOAD])
        late = [unfinished.pop(0)] if finishes_late else []
        unfinished += [] if is_finished else [load_id]
        for replica in replicas:
            replica.load(load_id, finished=is_finished, **load)
            for old_id in late:
                replica.load(old_id)
            if is_rebuilt:
                replica.rebuild()
            else:
                run_without(replica, missed)
        unbuilt = [] if is_rebuilt else [read_unbuilt(replica) for replica in replicas]
        assert unbuilt[:1] == unbuilt[1:]
        if number % 4 == 3:
            pruned, whole = (replica.contents() for replica in replicas)
            assert pruned == whole
    counts = []
    for replica in replicas:
        replica.transform()
        replica.transform()
        counts.append(replica.rows("select count(*) as loads from msgbubbles._dlt_loads")[0]["loads"])
        assert replica.rows("select distinct load_id from staging.built_loads except from staging.loads") == []
    assert counts[0] <= 4
    assert counts[1] > LOADS / 2


def read_unbuilt(replica: Replica) -> list[tuple[str, str]]:
    return [(row["mart"], row["load_id"]) for row in replica.rows("from staging.unbuilt_loads order by all")]


def test_tail_begins_where_its_days_missed_a_run(replica: Any, at: Any) -> None:
    """What the days before a tail pass on must not lack a message that was loaded in a run that failed."""

    def message(key: str, day: int, direction: str) -> dict[str, Any]:
        return {"id": key, "conversation_id": "a", "cursor_at": at(day * 1440), "direction": direction}

    replica.load(
        "1", chats=[{"id": "a", "from_handle": "+1"}], messages=[message(f"{n}", n, "inbound") for n in (1, 3)]
    )
    replica.transform()
    replica.load("2", messages=[message("late", 2, "outbound")])
    run_without(replica, "int_thread_days")
    replica.load("3", messages=[message("4", 4, "outbound")])
    replica.transform()
    assert [row["turn_number"] for row in assert_equal_to_rebuild(replica)["thread_turns"]] == [1, 2, 3, 4]


def test_turns_and_sessions_go_on_in_a_tail_whoever_spoke_first_and_last(replica: Any, at: Any) -> None:
    def message(chat: str, day: float, direction: str) -> dict[str, Any]:
        minutes = 720 + round(day * 1440)
        return {"id": f"{chat} {day}", "conversation_id": chat, "cursor_at": at(minutes), "direction": direction}

    sides = ["inbound", "outbound"]
    chats = [(f"{order[0]} {turns}", order[:turns]) for order in (sides, sides[::-1]) for turns in (1, 2)]
    replica.load(
        "1",
        chats=[{"id": chat, "from_handle": "+1"} for chat, _ in chats],
        messages=[message(chat, day, side) for chat, spoke in chats for day, side in enumerate([*spoke, spoke[-1]])],
    )
    replica.transform()
    # On the next day, within the 24 hours after which a session ends, and after the longest gap.
    for load, days in (("2", 0.75), ("3", 9)):
        replica.load(load, messages=[message(chat, len(spoke) + days, spoke[-1]) for chat, spoke in chats])
        replica.transform()
    marts = assert_equal_to_rebuild(replica)
    assert [row["message_count"] for row in marts["thread_turns"]] == [4, 1, 4, 4, 1, 4]
    sizes = [row["messages_from_us"] + row["messages_from_them"] for row in marts["thread_sessions"]]
    assert sizes == [1, 2, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 2, 1]


def test_member_is_seen_until_the_last_message_and_leaves_within_a_day(replica: Any, at: Any) -> None:
    chats = [{"id": chat, "is_group": True, "from_handle": None} for chat in ("listed", "stays")]
    messages = [
        {"id": f"{chat} {hour}", "conversation_id": chat, "cursor_at": at(hour * 60), "direction": "inbound"}
        | {"sender_handle": "+7"}
        for chat in ("listed", "stays")
        for hour in (1, 2, 3)
    ]
    left = {"id": "l", "chat_id": "listed", "handle": None, "_fetched_at": at(150)}
    replica.load("1", chats=chats, messages=messages, participant_lists=[left])
    replica.transform()
    assert [
        (row["chat_id"], row["last_seen_at"], row["message_count"]) for row in replica.mart("group_membership")
    ] == [
        ("listed", at(120), 2),
        ("listed", at(180), 1),
        ("stays", at(180), 3),
    ]
