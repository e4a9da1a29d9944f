"""One id on two rows, and attachments that come and go: no row is lost silently."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from helpers.world import OURS, World, build_settings
from msgbubbles_sync.sandbox import Knobs, NewMessage

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS
TWIN, FILE = "same-message", "same-file"
# Every run two hours later reads everything again.
SETTINGS = build_settings(start_date="1970-01-01")


@pytest.fixture(params=[True, False], ids=["feed", "threads"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(Knobs(feed=request.param), SETTINGS, page_size=10)
    yield made
    made.close()


def a_chat_with(world: World, *texts: str, files: int = 0) -> str:
    chat_id = world.account.add_chat(OURS, f"+1415555{len(world.account.all('SELECT 1 FROM chats')):04}", world.at())
    for text in texts:
        write(world, chat_id, text, files)
    return chat_id


def write(world: World, chat_id: str, text: str, files: int = 0) -> str:
    world.pass_time(1000)
    attachments = [(f"{number}.jpg", "image/jpeg", number) for number in range(files)]
    return world.account.add_message(
        NewMessage(chat_id, "inbound", text, world.at(), "received", attachments=attachments)
    )


def rename_ids(world: World, texts: dict[str, str]) -> None:
    """Show messages with these texts under other ids."""

    def shown(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"id": texts[row["text"]]} if kind == "messages" and row["text"] in texts else row

    world.knobs.transform_row = shown


def stored(world: World, table: str) -> dict[str, dict[str, Any]]:
    return {key[0]: row for key, row in world.store.tables[table].items()}


def rejected(world: World) -> list[tuple[str, str]]:
    return [(row["stream"], row["reason"]) for row in world.store.tables["rejected_rows"].values()]


OF_ANOTHER_CHAT = ("messages", "the id is also that of one of another chat")
OF_ANOTHER_MESSAGE = ("attachments", "the id is also that of one of another message")


def test_message_id_in_two_chats_keeps_both_rows_in_one_run(world: World) -> None:
    first, second = a_chat_with(world, "one", "other"), a_chat_with(world, "two", "more")
    rename_ids(world, {"one": TWIN, "two": TWIN})
    world.pass_time(10 * MINUTE_MS)
    run = world.sync()
    assert run.get_progress("messages").rejected == 1
    assert rejected(world) == [OF_ANOTHER_CHAT]
    (twin,) = world.store.tables["rejected_rows"].values()
    row = stored(world, "messages")[TWIN]
    assert {row["conversation_id"]} | {chat for chat in (first, second) if chat in twin["row"]} == {first, second}
    assert len(world.store.tables["messages"]) == 3
    # One of the two stays, and the other is reported, however often they are read.
    for _ in range(2):
        write(world, first, "new"), write(world, second, "new")
        world.pass_time(2 * DAY_MS)
        world.sync()
        assert stored(world, "messages")[TWIN] == row | {"_fetched_at": stored(world, "messages")[TWIN]["_fetched_at"]}


def test_message_id_stored_for_another_chat_stays_there(world: World) -> None:
    first = a_chat_with(world, "one")
    rename_ids(world, {"one": TWIN, "two": TWIN})
    world.pass_time(DAY_MS)
    assert world.sync().get_progress("messages").rejected == 0
    a_chat_with(world, "two")
    world.pass_time(DAY_MS)
    assert world.sync().get_progress("messages").rejected == 1
    assert stored(world, "messages")[TWIN]["conversation_id"] == first
    assert stored(world, "messages")[TWIN]["text"] == "one"
    assert rejected(world) == [OF_ANOTHER_CHAT]


def test_message_that_moves_to_another_chat_is_not_rejected() -> None:
    world = World(Knobs(), SETTINGS, page_size=10)
    first = a_chat_with(world, "one")
    second = a_chat_with(world, "two")
    world.sync()
    world.account.run("UPDATE messages SET chat_id = ? WHERE chat_id = ?", (second, first))
    run = world.sync()
    assert {row["conversation_id"] for row in stored(world, "messages").values()} == {second}
    assert (rejected(world), run.changes["messages"].changed) == ([], 1)
    world.close()


def test_attachment_id_on_two_messages_keeps_both_rows(world: World) -> None:
    a_chat_with(world, "one", "two", files=1)

    def shown(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if kind == "messages":
            row["attachments"] = [one | {"id": FILE} for one in row["attachments"]]
        return row

    world.knobs.transform_row = shown
    world.pass_time(10 * MINUTE_MS)
    run = world.sync()
    assert run.get_progress("attachments").rejected == 1
    assert rejected(world) == [OF_ANOTHER_MESSAGE]
    (twin,) = world.store.tables["rejected_rows"].values()
    assert "signature=" not in twin["row"]
    assert len(world.store.tables["messages"]) == 2
    parent = stored(world, "attachments")[FILE]["message_id"]
    assert parent not in twin["row"]


def test_attachment_removed_by_an_edit_is_marked_until_it_returns(world: World) -> None:
    chat_id = a_chat_with(world, "with files", "without")
    message_id = write(world, chat_id, "three", files=3)
    gone: set[str] = set()
    spelling: dict[str, Any] = {}

    def shown(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if kind == "messages":
            row["attachments"] = [one for one in row["attachments"] if one["id"] not in gone]
            row |= spelling
        return row

    world.knobs.transform_row = shown
    world.sync()
    ids = sorted(stored(world, "attachments"))

    def removed_after_an_edit() -> set[str]:
        world.pass_time(MINUTE_MS)
        world.account.edit_text(message_id, f"edited {world.now_ms}", world.at())
        write(world, chat_id, f"new {world.now_ms}")
        world.sync()
        assert stored(world, "messages")[message_id]["attachment_count"] == (0 if spelling else 3 - len(gone))
        return {key for key, row in stored(world, "attachments").items() if row["removed_at"] is not None}

    gone = {ids[0]}
    assert removed_after_an_edit() == {ids[0]}
    first_seen = stored(world, "attachments")[ids[0]]["removed_at"]
    assert first_seen <= world.at()
    gone = {ids[0], ids[1]}
    assert removed_after_an_edit() == {ids[0], ids[1]}
    assert stored(world, "attachments")[ids[0]]["removed_at"] == first_seen
    gone = {ids[1]}
    assert removed_after_an_edit() == {ids[1]}
    spelling = {"attachments": None}
    assert removed_after_an_edit() == set(ids)
    spelling, gone = {"attachments": {"count": 3}}, set()
    assert removed_after_an_edit() == set(ids), "what is no list says nothing of what is gone"
    spelling = {}
    assert removed_after_an_edit() == set()


def test_attachment_that_moves_to_another_message_is_changed() -> None:
    world = World(Knobs(), SETTINGS, page_size=10)
    chat_id = a_chat_with(world, "none")
    first, second = write(world, chat_id, "one", files=1), write(world, chat_id, "two")
    world.sync()
    world.account.run("UPDATE attachments SET message_id = ?", (second,))
    world.account.run("UPDATE messages SET has_attachments = (id = ?)", (second,))
    for message_id in (first, second):
        world.account.edit_text(message_id, "edited", world.at())
    world.pass_time(1000)
    assert world.sync().get_progress("attachments").rejected == 0
    (row,) = world.store.tables["attachments"].values()
    assert (row["message_id"], row["removed_at"]) == (second, None)
    world.close()


def test_zero_and_impossible_times_affect_no_other_row(world: World) -> None:
    chats = [a_chat_with(world, f"text {number}") for number in range(6)]
    odd = {"text 1": {"created_at": "0001-01-01T00:00:00+14:00"}, "text 2": {"delivered_at": "0001-01-01T00:00:00Z"},
           "text 3": {"read_at": "9999-12-31T23:59:59-14:00"}, "text 4": {"updated_at": ""},
           "text 5": {"created_at": "0001-01-01T00:00:00Z", "sent_at": ""}}  # fmt: skip

    def shown(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if kind == "chats" and row["id"] == chats[0]:
            return row | {"created_at": "0001-01-01T00:00:00+14:00", "updated_at": "1970-01-01T00:00:00Z"}
        return row | odd.get(row.get("text") or "", {})

    world.knobs.transform_row = shown
    world.pass_time(10 * MINUTE_MS)
    run = world.sync()
    rows = {row["text"]: row for row in world.store.tables["messages"].values()}
    assert sorted(rows) == ["text 0", "text 2", "text 3", "text 4", "text 5"]
    assert [rows["text 2"]["delivered_at"], rows["text 3"]["read_at"], rows["text 4"]["updated_at"]] == [None] * 3
    assert (rows["text 2"]["extra"], rows["text 5"]["cursor_at"]) == (None, None)
    assert rows["text 3"]["extra"] == '{"read_at":"9999-12-31T23:59:59-14:00"}'
    assert {reason for _, reason in rejected(world)} == {"created_at is not a timestamp"}
    assert run.get_progress("messages").rejected == 1
    chat = stored(world, "chats")[chats[0]]
    assert (len(stored(world, "chats")), chat["created_at"], chat["updated_at"]) == (6, None, None)


def test_half_unreadable_page_costs_only_its_bad_rows(world: World) -> None:
    chat_id = a_chat_with(world, *(f"text {number}" for number in range(25)))
    bodies = {b"text 3": b"line\none", b"text 7": b'5" tall', b"text 12": b"\\ud83d", b"text 20": b"nul \0"}

    def damaged(_path: str, body: bytes) -> bytes:
        for text, other in bodies.items():
            body = body.replace(b'"%s"' % text, b'"%s"' % other)
        return b"\xef\xbb\xbf" + body.replace(b'"metadata":null', b'"metadata":{"score":NaN}')

    world.knobs.transform_body = damaged
    world.pass_time(10 * MINUTE_MS)
    run = world.sync()
    assert len(world.store.tables["messages"]) == 24
    assert rejected(world) == [("messages", "not JSON")]
    assert run.get_progress("messages").odd >= 24
    assert {row["metadata"] for row in world.store.tables["messages"].values()} == {'{"score":null}'}
    assert stored(world, "chats").keys() == {chat_id}
    assert timedelta(0) <= world.at() - max(row["cursor_at"] for row in world.store.tables["messages"].values())


def test_chat_of_a_message_in_an_event_never_rejects_the_read_message(world: World) -> None:
    chat_id, other = a_chat_with(world, "one"), a_chat_with(world, "two")
    world.sync()
    row = next(iter(stored(world, "messages").values())) | {"from_event_at": world.at(), "conversation_id": other}
    for before in (timedelta(0), timedelta(days=1)):
        new = write(world, chat_id, "three")
        world.store.tables["messages"][new,] = row | {"id": new, "cursor_at": world.at() - before}
        world.sync()
        assert (rejected(world), world.differences()) == ([], {})
