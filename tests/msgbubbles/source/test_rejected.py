"""Rows that could not be read are read again, within limits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from helpers.world import OURS, World, build_settings
from msgbubbles.source import rejected
from msgbubbles.source.state import ListState, States
from msgbubbles_sync.sandbox import Knobs, NewMessage

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def world() -> Iterator[World]:
    """Create chats with messages of the last 200 days, which no rule refreshes."""
    world = World(Knobs(), build_settings(5_000))
    for number in range(20):
        at = world.at() - timedelta(days=10 * number + 1)
        chat_id = world.account.add_chat(OURS, f"+1415555{number:04}", at)
        world.account.add_messages(
            NewMessage(chat_id, "inbound", f"{number}.{one}", at + timedelta(seconds=one), "received")
            for one in range(3)
        )
    yield world
    world.close()


def garble(world: World, *texts: str, kind: str = "messages") -> None:
    world.knobs.transform_row = lambda of, row: "?" if of == kind and row.get("text") in texts else row


def stored_texts(world: World) -> set[str]:
    return {row["text"] for row in world.store.tables["messages"].values()}


@pytest.mark.parametrize("text", ["0.2", "7.1", "9.0", "19.0"])
def test_row_that_was_garbled_once_comes_with_the_next_run(world: World, text: str) -> None:
    garble(world, text)
    assert world.sync().get_progress("messages").rejected == 1
    assert text not in stored_texts(world)
    (garbled,) = world.store.tables["rejected_rows"].values()
    garble(world)
    before = world.requests
    run = world.sync()
    assert run.readable_again == {garbled["row_hash"]}
    assert not any(table["missing"] for table in world.differences().values())
    with_rejected = world.requests - before
    before = world.requests
    assert world.sync().readable_again == set()
    assert with_rejected - (world.requests - before) <= 3


def test_row_of_a_chat_that_was_garbled_once_comes_with_the_next_run(world: World) -> None:
    def refuse_feed(_method: str, path: str, query: Any) -> tuple[int, dict[str, str], bytes] | None:
        is_feed = path == "/v1/messages" and "conversation_id" not in query
        return (400, {}, b'{"error": {"code": "invalid_request"}}') if is_feed else None

    world.knobs.answer = refuse_feed
    texts = ("0.2", "9.0", "19.0")
    world.knobs.transform_row = lambda _kind, row: f"?{row['text']}" if row.get("text") in texts else row
    assert world.sync().get_progress("messages").rejected == 3
    hashes = {row["row_hash"] for row in world.store.tables["rejected_rows"].values()}
    assert world.sync().readable_again == set()
    garble(world)
    before = world.requests
    assert world.sync().readable_again == hashes
    assert {*texts} <= stored_texts(world)
    with_rejected = world.requests - before
    assert world.sync().readable_again == set()
    assert with_rejected - (world.requests - before - with_rejected) <= len(texts)


def test_row_that_stays_garbled_is_read_again_ever_less_often(world: World) -> None:
    garble(world, "7.1")
    world.sync()
    for _ in range(30):
        world.pass_time(3600 * 1000)
        run = world.sync()
        assert (run.get_progress("messages").rejected, run.readable_again) == (0, set())
    (entry,) = States.from_resources(world.store.states).messages.by_feed.rejected
    assert 5 < entry.tries < 15
    for _ in range(rejected.MAX_TRIES):
        world.pass_time(2 * DAY_MS)
        world.sync()
    garble(world)
    assert world.sync().readable_again == set(), "given up; verify --repair reads it"


def test_intervals_with_the_same_beginning_are_read_again_apart() -> None:
    intervals = rejected.RejectedIntervals(ListState())
    intervals.add(0, 10, ["a"], 0)
    intervals.add(0, 20, ["b"], 0)
    first, _ = intervals.list_due(0)
    assert intervals.finish(first, set(), 0) == {"a"}
    assert intervals.hashes == {"b"}
