"""What a mart holds after increments is what a full rebuild would hold."""

from __future__ import annotations

import random
from typing import Any

import pytest

MARTS = ("thread_activity", "group_membership", "chat_title_history")


def held(warehouse: Any) -> dict[str, Any]:
    return {mart: warehouse.mart(mart) for mart in MARTS}


def assert_as_rebuilt(warehouse: Any) -> dict[str, Any]:
    before = held(warehouse)
    warehouse.transform("--full-refresh")
    assert before == held(warehouse)
    return before


class Account:
    """What the API would say, and loads of what changed in it since the last."""

    def __init__(self, seed: int, at: Any) -> None:
        self.random = random.Random(seed)
        self.at = at
        self.chats: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self.load_ids = [f"{1_790_000_000 + n}.{n}" for n in range(100)]
        self.random.shuffle(self.load_ids)

    def next_load(self) -> dict[str, Any]:
        pick = self.random.choice
        changed = [self.write_chat(pick([None, *self.chats])) for _ in range(pick([0, 1, 4]))]
        written = [self.write_message(pick([None, None, *self.messages])) for _ in range(pick([0, 1, 8, 30]))]
        # A chat may come with a later load than its messages, or never.
        return {
            "chats": [chat for chat in changed if pick([True, True, False])],
            "chat_titles": [self.see_title(chat) for chat in self.chats if pick([True, False, False])],
            "messages": written,
        }

    def write_chat(self, key: str | None) -> Any:
        pick = self.random.choice
        chat = self.chats.setdefault(key or f"c{len(self.chats)}", {})
        chat["id"] = key or f"c{len(self.chats) - 1}"
        chat["title"] = pick([None, "old", "new"])
        chat["is_group"] = pick([True, True, False, None])
        chat["from_handle"] = pick(["+1", "+1", "+2", None])
        chat["created_at"] = self.at(pick(range(50)))
        chat["last_message_at"] = pick([None, self.at(9)])
        chat["deleted_at"] = pick([None, None, self.at(99)])
        return dict(chat)

    def see_title(self, chat: str) -> Any:
        pick = self.random.choice
        return {
            "chat_id": chat,
            "title": pick([None, "old", "new"]),
            "updated_at": pick([None, *(self.at(n) for n in range(20))]),
            "_read_at": self.at(pick(range(20))),  # it may land after later ones, or replace one
        }

    def write_message(self, key: str | None) -> Any:
        pick = self.random.choice
        row = {
            "id": key or f"m{len(self.messages)}",
            "conversation_id": pick([None, "never read", *self.chats]),
            "cursor_at": pick([None, *(self.at(n) for n in range(8))]),
            "direction": pick(["inbound", "outbound", "inbound", "outbound", None]),
            "status": pick(["sent", "failed", None]),
            "sender_handle": pick(["+1", "+7", "+8", None]),
            "attachment_count": pick([None, 0, 2]),
        }
        if key and pick([True, False]):
            row = self.messages[key] | {"status": row["status"]}
        self.messages[row["id"]] = row
        return row


def expected_threads(chats: dict[str, Any], messages: dict[str, Any]) -> dict[str, Any]:
    """The mart's main columns, written a second time, in another language."""
    threads = {}
    for chat in chats.values():
        counted = sorted(
            (m for m in messages.values() if m["conversation_id"] == chat["id"] and m["cursor_at"]),
            key=lambda m: (m["cursor_at"], m["direction"] == "inbound"),
        )
        answers = [
            m["direction"]
            for m in counted
            if m["direction"] == "inbound" or (m["direction"] == "outbound" and m["status"] != "failed")
        ]
        waiting_on = {"inbound": "us", "outbound": "them"}[answers[-1]] if answers else "nobody"
        threads[chat["id"]] = (
            chat["title"],
            len(counted),
            sum(m["attachment_count"] or 0 for m in counted),
            counted[0]["cursor_at"] if counted else None,
            counted[-1]["cursor_at"] if counted else None,
            "nobody" if chat["deleted_at"] else None if not counted and chat["last_message_at"] else waiting_on,
            chat["deleted_at"],
        )
    return threads


def expected_members(chats: dict[str, Any], messages: dict[str, Any]) -> dict[str, Any]:
    members: dict[str, list[Any]] = {}
    for chat in chats.values():
        if not chat["is_group"]:
            continue
        seen = [(chat["from_handle"], chat["created_at"], 0)]
        for m in messages.values():
            if m["conversation_id"] == chat["id"] and m["cursor_at"] and m["direction"]:
                handle = m["sender_handle"] if m["direction"] == "inbound" else chat["from_handle"]
                seen.append((handle, m["cursor_at"], 1))
        for handle in {handle for handle, _, _ in seen if handle}:
            own = [(when, count) for who, when, count in seen if who == handle]
            key = f"{chat['id']} {handle}"
            members[key] = [min(own)[0], max(own)[0], sum(count for _, count in own)]
    return members


def expected_titles(readings: dict[Any, Any]) -> list[Any]:
    rows: list[list[Any]] = []
    before: dict[str, Any] = {"chat_id": None}
    for seen in sorted(readings.values(), key=lambda row: (row["chat_id"], row["_read_at"])):
        valid_from = min(seen["updated_at"] or seen["_read_at"], seen["_read_at"])
        is_first = seen["chat_id"] != before["chat_id"]
        if not is_first:
            valid_from = max(valid_from, before["_read_at"])
        if is_first or seen["title"] != before["title"]:
            if not is_first:
                rows[-1][3:5] = valid_from, False
            rows.append([seen["chat_id"], seen["title"], valid_from, None, True, seen["_read_at"]])
        before = seen
    return rows


@pytest.mark.parametrize("seed", [1, 2])
def test_increments_equal_the_account_and_a_full_rebuild(warehouse: Any, at: Any, seed: int) -> None:
    account = Account(seed, at)
    landed: dict[str, dict[Any, Any]] = {"chats": {}, "messages": {}}
    readings: dict[Any, Any] = {}
    for _ in range(4):
        for load_id in [account.load_ids.pop() for _ in range(account.random.choice([1, 1, 3]))]:
            load = account.next_load()
            warehouse.load(load_id, **load)
            readings.update({(row["chat_id"], row["_read_at"]): row for row in load.pop("chat_titles")})
            for table, rows in load.items():
                landed[table].update({row["id"]: row for row in rows})
        warehouse.transform()

        assert {
            row["chat_id"]: (
                *(row["title"], row["messages_total"], row["attachments_total"]),
                *(row["first_message_at"], row["latest_message_at"], row["waiting_on"]),
                row["deleted_at"],
            )
            for row in warehouse.mart("thread_activity")
        } == expected_threads(**landed)
        assert {
            f"{row['chat_id']} {row['handle']}": [row["first_seen_at"], row["last_seen_at"], row["message_count"]]
            for row in warehouse.mart("group_membership")
        } == expected_members(**landed)
        history = warehouse.rows("from marts.chat_title_history order by chat_id, first_seen_at")
        assert [list(row.values()) for row in history] == expected_titles(readings)
    assert_as_rebuilt(warehouse)


def test_only_chats_with_something_new_are_written(warehouse: Any, at: Any) -> None:
    groups = [{"id": key, "is_group": True, "from_handle": "+1"} for key in ("quiet", "busy")]
    titles = [{"chat_id": group["id"], "title": "landed"} for group in groups]
    warehouse.load("1", chats=groups, chat_titles=titles)
    warehouse.transform()
    warehouse.execute(
        "update marts.chat_title_history set title = 'as it was'",
        "update marts.thread_activity set title = 'as it was'",
        "update marts.group_membership set evidence_all = 'same'",
    )
    message = {"id": "m", "conversation_id": "busy", "cursor_at": at(1), "direction": "outbound"}
    warehouse.load("2", messages=[message])
    assert warehouse.rows("select mart, chat_id from staging.chats_to_build order by all") == []  # loads: of last run
    warehouse.transform()
    warehouse.transform()
    assert [row["title"] for row in warehouse.mart("thread_activity")] == [None, "as it was"]
    assert [row["evidence_all"] for row in warehouse.mart("group_membership")] == ["own_number", "same"]
    assert [row["title"] for row in warehouse.mart("chat_title_history")] == ["as it was", "as it was"]

    warehouse.load("3", chat_titles=[{"chat_id": "quiet", "title": "landed", "_read_at": at(0)}])
    warehouse.transform()
    assert [row["title"] for row in warehouse.mart("chat_title_history")] == ["as it was", "landed"]
    assert [row["title"] for row in warehouse.mart("thread_activity")] == [None, "as it was"]


def test_what_is_gone_from_a_chat_goes_from_its_marts(warehouse: Any, at: Any) -> None:
    chats = [{"id": key, "is_group": True, "from_handle": None} for key in ("from", "to", "no group soon")]
    wrote = {"cursor_at": at(1), "direction": "inbound", "sender_handle": "+7"}
    warehouse.load(
        "1",
        chats=chats,
        messages=[
            wrote | {"id": "moves", "conversation_id": "from"},
            wrote | {"id": "stays", "conversation_id": "no group soon"},
        ],
    )
    warehouse.transform()
    assert [row["chat_id"] for row in warehouse.mart("group_membership")] == ["from", "no group soon"]

    warehouse.load(
        "2",
        chats=[{"id": "no group soon", "is_group": False}],
        messages=[wrote | {"id": "moves", "conversation_id": "to"}],
    )
    warehouse.transform()
    assert [row["chat_id"] for row in warehouse.mart("group_membership")] == ["to"]
    assert {row["chat_id"]: row["messages_total"] for row in warehouse.mart("thread_activity")} == {
        "from": 0,
        "to": 1,
        "no group soon": 1,
    }
    assert_as_rebuilt(warehouse)


def test_loads_that_come_out_of_order_or_in_parts_are_not_missed(warehouse: Any) -> None:
    def titles() -> list[str]:
        warehouse.transform()
        return [row["title"] for row in warehouse.mart("thread_activity")]

    warehouse.load("5", chats=[{"id": "a"}, {"id": "b"}, {"id": "c"}])
    assert titles() == [None, None, None]
    warehouse.load("3", chats=[{"id": "a", "title": "lower id"}])
    warehouse.load("6", finished=False, chats=[{"id": "b", "title": "first part"}])
    assert titles()[0] == "lower id"
    warehouse.load("6", chats=[{"id": "c", "title": "second part"}])
    assert titles() == ["lower id", "first part", "second part"]


def test_a_mart_of_which_nothing_is_noted_is_built_again(warehouse: Any) -> None:
    group = {"id": "g", "is_group": True, "from_handle": "+1"}
    title = {"chat_id": "g", "title": "+1"}
    warehouse.load("1", chats=[group], chat_titles=[title])
    warehouse.transform()
    warehouse.load("2", chats=[group | {"from_handle": "+2"}], chat_titles=[title | {"title": "+2"}])
    warehouse.execute("drop schema staging cascade")
    warehouse.transform()
    assert {
        row[column]
        for mart, column in zip(MARTS, ("from_handle", "handle", "title"), strict=True)
        for row in warehouse.mart(mart)
    } == {"+2"}


def test_a_mart_that_missed_a_run_catches_up(warehouse: Any) -> None:
    group = {"id": "g", "is_group": True, "from_handle": "+1"}
    warehouse.load("1", chats=[group])
    warehouse.transform()
    warehouse.load("2", chats=[group | {"from_handle": "+2"}])
    warehouse.transform("--exclude", "group_membership")
    warehouse.load("3", chats=[group | {"id": "h"}])
    warehouse.transform()
    assert [row["handle"] for row in warehouse.mart("group_membership")] == ["+2", "+1"]


def test_a_mart_that_fails_keeps_its_rows_and_catches_up(warehouse: Any) -> None:
    warehouse.load("1", chats=[{"id": "a", "title": "before"}])
    warehouse.transform()
    warehouse.load("2", chats=[{"id": "a", "title": "after"}])
    warehouse.execute("alter table staging.built_loads rename column load_id to renamed")  # the mart's last hook fails
    warehouse.execute(
        "create or replace view staging.chats_to_build as select 'thread_activity' as mart, 'a' as chat_id"
    )
    answer = warehouse.dbt("run", "--select", "loads", "thread_activity")
    assert not answer.success
    assert [row["title"] for row in warehouse.mart("thread_activity")] == ["before"]

    warehouse.execute("alter table staging.built_loads rename column renamed to load_id")
    warehouse.transform()
    assert [row["title"] for row in warehouse.mart("thread_activity")] == ["after"]
