"""The API's clock when its answers contradict each other."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from helpers.world import OURS, SINCE_1970, World
from msgbubbles.api_time import MORE_ANSWERS, ApiTime, Clock
from msgbubbles.client import Client
from msgbubbles.policy import Policy
from msgbubbles.redact import Redactor
from msgbubbles.times import EPOCH, HOUR_MS
from msgbubbles.transport import Transport
from msgbubbles_sync.sandbox import Knobs, NewMessage

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
SECOND, HOUR, YEAR = timedelta(seconds=1), timedelta(hours=1), timedelta(days=365)


@pytest.mark.parametrize("ahead", [YEAR, -YEAR, HOUR, timedelta(days=3650 * 2), NOW - datetime.min.replace(tzinfo=UTC)])
def test_single_answer_with_another_date_is_ignored(ahead: timedelta) -> None:
    for good_before in (0, 1, 20):
        clock = ApiTime()
        for number in range(good_before):
            assert clock.at(NOW + number * SECOND, NOW + number * SECOND) == NOW + number * SECOND
        assert clock.at(NOW - ahead, NOW) == NOW
        assert clock.at(NOW + 2 * SECOND, NOW + SECOND) == NOW + 2 * SECOND
        assert clock.at(None, NOW + SECOND) == NOW + 2 * SECOND, "without a date it is reckoned from the last"


@pytest.mark.parametrize("ahead", [YEAR, -3 * HOUR])
def test_wrong_local_clock_does_no_harm(ahead: timedelta) -> None:
    clock = ApiTime()
    clock.at(NOW + ahead, NOW)
    assert clock.at(NOW + ahead + SECOND, NOW + SECOND) == NOW + ahead + SECOND
    assert clock.at(NOW, NOW) == NOW + ahead, "now this is the unexpected one"
    # Corrected while a job runs.
    answers = [clock.at(NOW + ahead, NOW + ahead) for _ in range(MORE_ANSWERS)]
    assert answers[-1] == NOW + ahead


def test_contradicting_dates_are_ignored() -> None:
    clock = ApiTime()
    assert [clock.at(NOW + hours * HOUR, NOW) for hours in (5, 9, 5, 9, 2, -5)] == [NOW] * 6


@pytest.mark.parametrize("date", [None, "", "soon", "Mon, 99 Foo 2026 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_answer_without_a_readable_date_counts_as_now(date: str | None) -> None:
    transport = Transport("http://127.0.0.1/v1", "sk_1", None)
    headers = {} if date is None else {"Date": date}
    transport._http._transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, json={"data": []}))
    with Client(transport) as client:
        assert abs(client.list_numbers().server_at - datetime.now(UTC)) < 5 * SECOND


def renamed(world: World) -> str:
    """Rename the oldest chat, and return its id."""
    rows = sorted(world.store.tables["chats"].values(), key=lambda row: row["last_message_at"])
    world.account.rename(rows[0]["id"], "Another name", world.at())
    return str(rows[0]["id"])


def world_with_chats(*, feed: bool) -> World:
    world = World(Knobs(feed=feed), SINCE_1970)
    for _ in range(12):
        chat_id = world.account.add_chat(OURS, "+14155550123", world.at())
        world.account.add_message(NewMessage(chat_id, "outbound", "hello", world.at(), "sent", sender=OURS))
        world.pass_time(60_000)
    return world


def sync_with_dates(world: World, date: Any) -> None:
    """Sync while `date` returns the API's date for its time and the number of the request."""
    right, begun = world._http._date, world.requests
    world._http._date = lambda: date(right(), world.requests - begun)
    world.sync()
    world._http._date = right


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [YEAR, 6 * HOUR, -YEAR])
def test_rename_is_seen_within_a_day_of_a_wrong_date(ahead: timedelta) -> None:
    for wrong in range(1, 13):
        with closing(world_with_chats(feed=True)) as world:
            world.sync()
            world.pass_time(25 * HOUR_MS)
            sync_with_dates(world, lambda at, number, wrong=wrong: at + ahead if number == wrong else at)
            renamed(world)
            world.pass_time(25 * HOUR_MS)
            world.sync()
            assert world.differences() == {}


@pytest.mark.parametrize(
    ("ours_ahead", "api_ahead", "are_old"),
    [(YEAR, 0 * YEAR, False), (-YEAR, 0 * YEAR, False), (0 * YEAR, YEAR, False), (YEAR, YEAR, True)],
)
def test_rows_are_old_only_by_both_clocks(ours_ahead: timedelta, api_ahead: timedelta, are_old: bool) -> None:
    with closing(world_with_chats(feed=True)) as world:
        world.redactor = Redactor(Policy(text_days=30, thread_days=300))
        world.client_ahead_ms = ours_ahead // timedelta(milliseconds=1)
        sync_with_dates(world, lambda at, _number: at + api_ahead)
        left = 0 if are_old else 12
        assert len(world.store.tables["chats"]) == left
        assert sum(row["text"] is not None for row in world.store.tables["messages"].values()) == left


def test_answers_without_a_date_confirm_this_clock_only_if_none_has_one() -> None:
    clock = Clock(lambda: NOW)
    clock.note_date(None, NOW, is_success=False)
    assert clock.ages_from() == EPOCH, "the error of a proxy"
    clock.note_date(None, NOW, is_success=True)
    assert clock.ages_from() == NOW
    clock.note_date(NOW - YEAR, NOW, is_success=False)
    clock.note_date(None, NOW, is_success=True)
    assert clock.ages_from() == NOW - YEAR


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_ages_count_for_a_day_after_an_answer(ahead: timedelta) -> None:
    wall = NOW
    clock = Clock(lambda: wall)
    clock.note_date(NOW + ahead, NOW, is_success=True)
    confirmed_at = NOW + min(ahead, 0 * HOUR)
    wall = NOW + 5 * HOUR
    assert clock.ages_from() == confirmed_at + 5 * HOUR
    wall = NOW + YEAR  # this clock was set, or the API has not answered since
    assert clock.ages_from() == confirmed_at + 24 * HOUR


@pytest.mark.parametrize("feed", [True, False])
def test_rename_is_seen_after_a_run_in_another_year(feed: bool) -> None:
    with closing(world_with_chats(feed=feed)) as world:
        sync_with_dates(world, lambda at, _number: at + YEAR)
        renamed(world)
        world.pass_time(HOUR_MS)
        world.sync()
        assert world.differences() == {}
        marks = [world.store.states["chats"]["seen_ms"], world.store.states["chats"]["head_swept_ms"]]
        assert max(marks) <= world.now_ms


def test_api_with_unreadable_dates_is_synced_completely() -> None:
    with closing(world_with_chats(feed=True)) as world:
        respond = world._http.handle_request

        def without_date(request: httpx.Request) -> httpx.Response:
            response = respond(request)
            del response.headers["date"]
            return response

        world._http.handle_request = without_date  # type: ignore[method-assign]
        world.sync()
        renamed(world)
        world.pass_time(25 * HOUR_MS)
        world.sync()
        assert world.differences() == {}
