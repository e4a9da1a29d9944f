"""Rows out of order, rows without a time, and ties: what a run loads, and what it reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from helpers.world import EPOCH, OURS, World
from msgbubbles.errors import PermanentError
from msgbubbles.settings import SourceSettings
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.paginate import Overflow
from msgbubbles.source.run import Run
from msgbubbles.times import BEGINNING_MS, HOUR_MS
from msgbubbles_sync.sandbox import Knobs, NewMessage

IN_2001 = "2001-01-01T00:00:00.000Z"


def build_world(knobs: Knobs, settings: SourceSettings | None = None) -> World:
    """Build an empty account with pages of 100 rows, like those of the API."""
    return World(knobs, settings or SourceSettings(requests_per_minute=0), page_size=100)


@pytest.fixture
def world() -> Iterator[World]:
    with closing(build_world(Knobs())) as world:
        yield world


def add_chats(world: World, count: int, *, apart: timedelta = timedelta(minutes=1), write: bool = True) -> list[str]:
    """Add chats at these intervals, the newest now; without messages, unless `write`."""
    ids = []
    for number in range(count):
        at = world.at() - apart * (count - number)
        ids.append(world.account.add_chat(OURS, "+14155550123", at, last_message_at=at))
        if write:
            world.account.add_message(NewMessage(ids[-1], "outbound", "hello", at, "sent", sender=OURS))
    return ids


def ids(world: World, table: str) -> set[str]:
    return {key[0] for key in world.store.tables[table]}


def standing(run: Run, stream: str) -> set[Overflow]:
    return run.streams[stream].standing


def showing(**times: dict[str, Any]) -> Knobs:
    """Make rows show other times than the API lists them by: `created_at` of messages, `last_message_at` of chats."""
    names = {"messages": "created_at", "chats": "last_message_at"}

    def transform(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        other = times.get(kind, {})
        return row | {names[kind]: other[row["id"]]} if row.get("id") in other else row

    return Knobs(transform_row=transform)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feed", "places"),
    [(True, [1]), (True, [60]), (True, [99]), (True, [97, 98, 99]), (True, [20, 130, 250]), (False, [60, 99, 199])],
    ids=str,
)
def test_row_dated_2001_hides_no_other_row(feed: bool, places: list[int]) -> None:
    messages: dict[str, Any] = {}
    chats: dict[str, Any] = {}
    knobs = showing(messages=messages, chats=chats)
    knobs.feed = feed
    with closing(build_world(knobs)) as world:
        all_chats = add_chats(world, 300)
        newest_first = [row["id"] for row in world.account.all("SELECT id FROM messages ORDER BY created_us DESC")]
        messages |= {newest_first[place]: IN_2001 for place in places}
        chats |= {all_chats[-1 - place]: IN_2001 for place in places}
        run = world.sync()
        assert ids(world, "messages") == set(newest_first)
        assert ids(world, "chats") == set(all_chats)
        assert not standing(run, "messages")
        assert not standing(run, "chats")
        for stream in ("messages", "chats"):
            progress = run.streams[stream]
            assert progress.order_contradictions
            assert progress.covered
            assert progress.covered.gaps(BEGINNING_MS) == []

        # Later rows are read, although the same rows mislead again.
        world.pass_time(HOUR_MS)
        new = add_chats(world, 150, apart=timedelta(seconds=1))
        for _ in range(2):
            world.pass_time(26 * HOUR_MS)
            world.sync()
        assert set(new) <= ids(world, "chats")
        assert len(ids(world, "messages")) == 450
        assert not any(row["deleted_at"] for row in world.store.tables["chats"].values())


def test_run_cut_off_below_an_outlier_covers_no_unread_interval() -> None:
    messages: dict[str, Any] = {}
    with closing(build_world(showing(messages=messages))) as world:
        add_chats(world, 600)
        newest_first = world.account.all("SELECT id, created_us FROM messages ORDER BY created_us DESC")
        messages |= {newest_first[place]["id"]: IN_2001 for place in (99, 198, 250, 297)}
        for requests in (2, 3, 2, 4, 1, 3):
            world.sync(Run(max_requests=requests), accept_failure=True)
            state = world.store.states.get("messages", {}).get("by_feed", {})
            read = Coverage((lo, hi, at) for lo, hi, at in state.get("covered", ()))
            for row in newest_first:
                at_ms = row["created_us"] // 1000
                if any(lo <= at_ms < hi for lo, hi, _ in read.intervals):
                    assert row["id"] in ids(world, "messages")
        world.sync()
        assert len(ids(world, "messages")) == 600


def test_rows_before_1970_are_read_and_covered(world: World) -> None:
    at = EPOCH - timedelta(days=165)
    for number in range(150):
        chat_id = world.account.add_chat(OURS, "+14155550123", at - timedelta(hours=number))
        world.account.add_message(NewMessage(chat_id, "outbound", "hello", at - timedelta(hours=number), "sent"))
    add_chats(world, 3)
    world.sync()
    assert len(ids(world, "chats")) == 153
    assert len(ids(world, "messages")) == 153
    complete_since = {row["complete_since"].year for row in world.store.tables["stream_coverage"].values()}
    assert complete_since == {1}


@pytest.mark.parametrize("nulls", ["first", "last"])
@pytest.mark.parametrize("with_before", [True, False])
def test_too_many_chats_without_a_time_are_reported(nulls: Any, with_before: bool) -> None:
    with closing(build_world(Knobs(nulls=nulls, nulls_with_before=with_before))) as world:
        add_chats(world, 60)
        for _ in range(190):
            world.account.add_chat(OURS, "+14155550123", world.at())
        run = world.sync(accept_failure=True)
        assert Overflow(None, None) in standing(run, "chats") or isinstance(run.error, PermanentError)


def tied(world: World, count: int, *, write: bool) -> None:
    """Add chats of one timestamp, a day ago, each with an older message, or without one."""
    at = world.at() - timedelta(days=1)
    for number in range(count):
        chat_id = world.account.add_chat(OURS, "+14155550123", at, last_message_at=at)
        if write:
            world.account.add_message(NewMessage(chat_id, "inbound", "hi", at - timedelta(seconds=number), "received"))


def test_tied_chats_without_messages_stay_reported(world: World) -> None:
    add_chats(world, 30)
    tied(world, 150, write=False)
    for _ in range(2):
        run = world.sync()
        assert len(ids(world, "chats")) == 130
        assert len(standing(run, "chats")) == 1
        assert not run.reconciled["tie overflows"]
        world.pass_time(HOUR_MS)


def test_tied_chats_that_all_have_messages_are_read_by_id(world: World) -> None:
    add_chats(world, 30)
    tied(world, 150, write=True)
    run = world.sync()
    run = world.sync()  # a chat without a message is unknown until the orphans are read
    assert len(ids(world, "chats")) == 180
    assert not standing(run, "chats")


def test_tied_messages_of_unknown_chats_stay_reported(world: World) -> None:
    """150 chats get a message at once: neither list shows all, and nothing names the chats in both gaps."""
    at = world.at() - timedelta(days=1)
    chats = [world.account.add_chat(OURS, "+14155550123", at, last_message_at=at) for _ in range(150)]
    world.account.add_messages([NewMessage(chat_id, "outbound", "hi", at, "sent", sender=OURS) for chat_id in chats])
    for _ in range(3):
        run = world.sync()
        is_whole = len(ids(world, "chats")) == len(ids(world, "messages")) == 150
        assert is_whole or (standing(run, "chats") and standing(run, "messages"))
        world.pass_time(HOUR_MS)


def test_stream_that_never_goes_down_fails_alone(world: World) -> None:
    add_chats(world, 150)
    asked = 0

    def transform(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        if kind != "messages":
            return row
        asked += 1  # endless new rows, each newer
        at = world.at() + timedelta(milliseconds=asked)
        return row | {"id": f"made-up-{asked}", "created_at": at.isoformat(), "sent_at": None, "updated_at": None}

    world.knobs.transform_row = transform
    run = world.sync(accept_failure=True)
    assert isinstance(run.error, PermanentError)
    assert len(ids(world, "chats")) == 150
    assert run.traffic.requests["GET /messages"] < 20
