"""What is read again, how much of it by one run, and what a missing chat means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from helpers.world import OURS, SINCE_1970, World, build_settings
from msgbubbles.models import Chat, Page
from msgbubbles.source import reconcile
from msgbubbles.source.run import Run
from msgbubbles.source.state import TRIES_WITHOUT_WAIT
from msgbubbles.times import HOUR_MS
from msgbubbles_sync.sandbox import Knobs, NewMessage

MINUTE_MS = 60_000


@pytest.fixture
def world() -> Iterator[World]:
    """Build sixty chats with a message each, a minute apart, and read them. Pages have five rows."""
    with closing(World(Knobs(), SINCE_1970)) as world:
        for _ in range(60):
            chat_id = world.account.add_chat(OURS, "+14155550123", world.at())
            write(world, chat_id)
            world.pass_time(MINUTE_MS)
        world.sync()
        yield world


def write(world: World, chat_id: str) -> None:
    world.account.add_message(NewMessage(chat_id, "outbound", "hello", world.at(), "sent", sender=OURS))


def ids(world: World) -> list[str]:
    """Return the ids of the chats, oldest first."""
    rows = world.store.tables["chats"].values()
    return [row["id"] for row in sorted(rows, key=lambda row: row["last_message_at"])]


def test_refresh_keeps_to_its_share_and_resumes_where_it_stopped(
    world: World,
) -> None:
    world.settings = replace(SINCE_1970, requests_per_minute=1, refresh_share=1 / 30)
    oldest = ids(world)[0]
    world.pass_time(25 * HOUR_MS)
    world.account.rename(oldest, "Another name", world.at())
    world.sync()  # after a pause of a day, a run catches up on an hour at most
    world.settings = replace(SINCE_1970, requests_per_minute=2, refresh_share=1.0)
    runs = 0
    while world.differences():
        world.pass_time(2 * MINUTE_MS)
        write(world, ids(world)[-1])
        run = world.sync()
        assert run.streams["chats"].refresh_pages <= 2
        assert run.streams["messages"].refresh_pages <= 2
        assert "messages" not in world.differences(), "the newest is there at once"
        runs += 1
        assert runs < 40
    assert runs >= 5, "it took several runs"


def test_threads_of_one_minute_are_refreshed_over_several_batches() -> None:
    with closing(World(Knobs(feed=False), SINCE_1970)) as world:
        for number in range(12):
            world.pass_time(HOUR_MS if number < 8 else 0)
            chat_id = world.account.add_chat(OURS, "+14155550123", world.at())
            for _ in range(6):
                write(world, chat_id)
                world.pass_time(500)
        world.sync()
        world.pass_time(10 * MINUTE_MS)
        world.sync()
        world.pass_time(2 * HOUR_MS)
        messages = world.sync(Run(batch_pages=8)).streams["messages"]
        assert messages.refresh_pages > 8
        assert messages.pages < 60, "none of them again and again"


def test_after_a_pause_a_run_catches_up_on_an_hour_at_most(world: World) -> None:
    world.settings = replace(SINCE_1970, requests_per_minute=1, refresh_share=0.2)
    world.pass_time(30 * HOUR_MS)
    assert world.sync().streams["chats"].refresh_pages == 6


def test_chat_missing_from_two_sweeps_is_asked_for_before_it_is_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = ids(world)[10]
    connect = world._client

    def without_it(run: Run) -> Any:
        client = connect(run)
        listed = client.list_chats

        def list_chats(before: str | None = None) -> Page[Chat]:
            page = listed(before=before)
            page.rows[:] = [row for row in page.rows if row.id != hidden]
            return page

        client.list_chats = list_chats  # type: ignore[method-assign, assignment]
        return client

    monkeypatch.setattr(world, "_client", without_it)
    asked = []
    for _ in range(6):
        world.pass_time(25 * HOUR_MS)
        asked.append(world.sync().traffic.requests["GET /chats/:id"])
        assert world.store.tables["chats"][hidden,]["deleted_at"] is None
    assert asked == [0, 1, 0, 1, 0, 1]


def test_deleting_all_chats_at_once_is_noticed(world: World) -> None:
    for chat_id in ids(world):
        world.account.delete_chat(chat_id)
    for _ in range(3):
        world.pass_time(25 * HOUR_MS)
        world.sync()
    assert all(row["deleted_at"] is not None for row in world.store.tables["chats"].values())


def test_deleting_the_only_chats_is_noticed_by_incremental_reads() -> None:
    with closing(World(Knobs(), build_settings(start_date="1970-01-01"))) as world:
        for _ in range(2):
            write(world, world.account.add_chat(OURS, "+14155550123", world.at()))
        world.sync()
        for chat_id in ids(world):
            world.account.delete_chat(chat_id)
        for _ in range(3):
            world.pass_time(2 * HOUR_MS)
            world.sync()
        assert all(row["deleted_at"] is not None for row in world.store.tables["chats"].values())


def test_deleting_the_only_chat_after_its_messages_were_read_is_noticed() -> None:
    with closing(World(Knobs(), SINCE_1970)) as world:
        chat_id = world.account.add_chat(OURS, "+14155550123", world.at())
        write(world, chat_id)
        world.sync(Run(max_requests=2))  # the numbers and the messages
        assert len(world.store.tables["messages"]) == 1
        assert not world.store.tables["chats"]
        world.account.delete_chat(chat_id)
        world.sync()
        assert world.store.tables["chats"][chat_id,]["deleted_at"]


def test_message_visible_after_its_refresh_is_found_by_its_chat(world: World) -> None:
    chat_id = ids(world)[-1]
    world.pass_time(MINUTE_MS)
    late = NewMessage(chat_id, "inbound", "hello", world.at(), "received", sender="+14155550123")
    for _ in range(6):
        world.pass_time(25 * HOUR_MS)
        write(world, ids(world)[3])
        world.sync()
    world.account.add_message(late)
    world.pass_time(25 * HOUR_MS)
    world.sync()
    assert world.differences() == {}


def test_chat_that_comes_back_brings_its_messages(world: World) -> None:
    chat_id = ids(world)[10]
    world.account.delete_chat(chat_id)
    for _ in range(3):
        world.pass_time(25 * HOUR_MS)
        world.sync()
    assert world.store.tables["chats"][chat_id,]["deleted_at"] is not None
    write(world, chat_id)
    world.pass_time(30 * MINUTE_MS)
    write(world, ids(world)[-1])
    world.sync()
    world.account.restore_chat(chat_id)
    world.pass_time(26 * HOUR_MS)
    world.sync()
    world.sync()
    assert world.differences() == {}


@pytest.mark.slow
def test_threads_without_a_message_at_their_time_are_read_ever_less(world: World) -> None:
    """If `last_message_at` is not the time of a message, the requests would never end."""
    at = world.at() - timedelta(hours=2)
    for _ in range(200):
        chat_id = world.account.add_chat(OURS, "+14155550123", at, last_message_at=at + timedelta(milliseconds=1))
        at -= timedelta(minutes=1)
        world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        world.account.run("UPDATE chats SET last_us = last_us + 60000000 WHERE id = ?", (chat_id,))
    requests = []
    for _ in range(4):
        world.pass_time(26 * HOUR_MS)
        requests.append(world.sync().traffic.requests["GET /messages"])
    assert world.differences() == {}
    assert requests[0] >= reconcile.LAGGING_IN_VAIN
    assert requests[-1] <= 3, "and after that one is read at a time"
    late = NewMessage(ids(world)[-1], "inbound", "hello", world.at(), "received", sender="+14155550124")
    for _ in range(3):
        world.pass_time(10 * MINUTE_MS)
        requests.append(world.sync().traffic.requests["GET /messages"])
    assert requests[-1] <= 3, "after a pause"
    for _ in range(6):
        world.pass_time(26 * HOUR_MS)
        write(world, ids(world)[3])
        world.sync()
    world.account.add_message(late)
    for _ in range(3):
        world.pass_time(26 * HOUR_MS)
        requests.append(world.sync().traffic.requests["GET /messages"])
    assert world.differences() == {}, "a message that is missing is found nevertheless"
    assert max(requests[-3:]) <= reconcile.LAGGING_IN_VAIN + 20


def test_chat_whose_list_is_empty_is_read_again_with_growing_pauses(world: World) -> None:
    chat_id = world.account.add_chat(OURS, "+14155550124", world.at())
    write(world, chat_id)
    world.pass_time(96 * HOUR_MS)  # it is too old to be refreshed
    requests = 0

    def answer(_method: str, _path: str, query: Mapping[str, str]) -> tuple[int, dict[str, str], bytes] | None:
        nonlocal requests
        if query.get("conversation_id") != chat_id:
            return None
        requests += 1
        return 200, {}, b'{"data": []}'

    world.knobs.feed, world.knobs.answer = False, answer
    for _ in range(12):
        write(world, world.account.add_chat(OURS, "+14155550125", world.at()))
        world.pass_time(MINUTE_MS)
        world.sync()
    assert world.differences() != {}
    assert requests == 1 + TRIES_WITHOUT_WAIT + 1
    world.knobs.answer = None
    world.pass_time(10 * MINUTE_MS)
    world.sync()
    assert world.differences() == {}


def test_ids_named_only_by_events_are_asked_for_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = [f"00000000-0000-4000-8000-{number:012}" for number in range(300)]
    real = world.account.add_chat(OURS, "+14155550199", world.at())
    quiet, at_ms = ids(world)[0], world.now_ms - HOUR_MS

    def missing_from_events(_since_ms: int, limit: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
        named = [*made_up, real]
        messages = dict.fromkeys([*made_up, quiet][:limit], (at_ms, at_ms))
        return [one for one in named if (one,) not in world.store.tables["chats"]][:limit], messages

    monkeypatch.setattr(world.store, "missing_from_events", missing_from_events)
    before = set(world.store.tables["chats"])
    spent, read = [], 0
    for _ in range(10):
        world.pass_time(MINUTE_MS)
        asked = world.requests
        run = world.sync()
        spent.append(world.requests - asked)
        assert run.reconciled["deleted chats"] == 0
        read += run.reconciled["intervals from events"]
    assert set(world.store.tables["chats"]) == before | {(real,)}
    assert max(spent) < reconcile.REQUESTS_A_RUN + 20
    assert read == 301, "those that are asked for first do not hide the last"
    assert max(spent[8:]) < 20, "nothing is asked for again"


def test_chat_named_by_messages_and_not_found_is_deleted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "00000000-0000-4000-8000-000000000000"
    monkeypatch.setattr(world.store, "missing_from_events", lambda _since_ms, _limit: ([gone], {}))
    world.sync()
    assert (gone,) not in world.store.tables["chats"]
    row = next(iter(world.store.tables["messages"].values()))
    world.store.tables["messages"][("late",)] = row | {"id": "late", "conversation_id": gone}
    world.sync()
    assert world.store.tables["chats"][gone,]["deleted_at"] is not None
