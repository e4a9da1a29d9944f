"""`verify` pages on its own, and so finds rows that a sync left out."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from helpers.listing import Listing
from helpers.world import OURS, World, build_settings
from msgbubbles.errors import ApiError, PermanentError
from msgbubbles.models import Page
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.run import Run
from msgbubbles.tables import TABLES
from msgbubbles.times import BEGINNING_MS
from msgbubbles_sync.inspect.verify import MAX_PAGES_WITHOUT_PROGRESS, Verifier, VerifyResult, paginate
from msgbubbles_sync.sandbox import Knobs, NewMessage

MINUTE_US = 60_000_000
IN_2001 = "2001-01-01T00:00:00.000Z"


def compare(world: World) -> VerifyResult:
    """Compare the world's warehouse with its account."""
    with duckdb.connect() as database, world._client(Run()) as client:
        database.execute("SET TimeZone = 'UTC'; CREATE SCHEMA msgbubbles")
        for table in ("chats", "messages", "attachments"):
            empty = build_arrow_table(TABLES[table], ())
            rows = pa.Table.from_pylist(list(world.store.tables[table].values()), schema=empty.schema)
            database.register("rows", rows)
            database.execute(f"CREATE TABLE msgbubbles.{table} AS SELECT * FROM rows")
        states = world.store.states
        covered = {"chats": states["chats"]["covered"], "messages": states["messages"]["by_feed"]["covered"]}
        coverage = {stream: Coverage((lo, hi, at) for lo, hi, at in intervals) for stream, intervals in covered.items()}
        verifier = Verifier(client, database, coverage, build_settings(), lambda: None)
        verifier.full(feed=True)
        return verifier.result


@pytest.mark.parametrize("places", [[], [60], [99], [90, 97, 98, 99], [20, 130, 250]], ids=str)
def test_rows_left_out_by_a_sync_are_reported_missing(places: list[int]) -> None:
    shown: set[str] = set()

    def transform(kind: str, row: dict[str, Any]) -> dict[str, Any]:
        other = {"messages": "created_at", "chats": "last_message_at"}.get(kind)
        return row | {other: IN_2001} if other and row["id"] in shown else row

    with closing(World(Knobs(transform_row=transform), build_settings(), page_size=100)) as world:
        for number in range(300):
            at = world.at() - timedelta(hours=number + 1)
            chat_id = world.account.add_chat(OURS, "+14155550123", at)
            world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        messages = [row["id"] for row in world.account.all("SELECT id FROM messages ORDER BY created_us DESC")]
        chats = [row["id"] for row in world.account.all("SELECT id FROM chats ORDER BY last_us DESC")]
        shown |= {row_id for place in places for row_id in (messages[place], chats[place])}
        world.sync()
        world.sync()
        result = compare(world)
        assert result.differences == []
        assert result.compared["messages"] + result.compared["chats"] + result.newer == 600

        left_out = {messages[place] for place in (150, 298, *places)} | {chats[place] for place in (101, 299, *places)}
        for table in ("messages", "chats"):
            rows = world.store.tables[table]
            world.store.tables[table] = {key: row for key, row in rows.items() if key[0] not in left_out}
        differences = compare(world).differences
        assert {row.id for row in differences if row.kind == "missing"} == left_out
        assert len(differences) == len(left_out)


def test_row_from_the_future_is_compared() -> None:
    shown: set[str] = set()

    def transform(_kind: str, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"last_message_at": "2099-01-01T00:00:00.000Z"} if row.get("id") in shown else row

    with closing(World(Knobs(transform_row=transform), build_settings(), page_size=100)) as world:
        for number in range(20):
            at = world.at() - timedelta(hours=number + 1)
            chat_id = world.account.add_chat(OURS, "+14155550123", at)
            world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        shown.add(chat_id)
        world.sync()
        assert compare(world).is_equal
        del world.store.tables["chats"][chat_id,]
        assert [(row.id, row.kind) for row in compare(world).differences] == [(chat_id, "missing")]


def test_rows_that_only_an_event_shows_count_as_not_read() -> None:
    with closing(World(Knobs(), build_settings(), page_size=100)) as world:
        for number in range(20):
            at = world.at() - timedelta(hours=number + 1)
            chat_id = world.account.add_chat(OURS, "+14155550123", at)
            old = world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        world.sync()
        stored = world.store.tables["messages"]
        read = stored[old,]
        unread = read | {"from_event_at": world.at(), "text": "as an event showed it"}
        new = world.account.add_message(NewMessage(chat_id, "outbound", "hello", world.at(), "sent", sender=OURS))
        stored[new,] = unread | {"id": new, "created_at": world.at(), "cursor_at": world.at()}
        stored["made up",] = unread | {"id": "made up"}
        stored[old,] = unread
        chats = world.store.tables["chats"]
        (other,) = sorted(chats, key=lambda key: chats[key]["last_message_at"])[1]
        read_chat = chats[other,]
        chats[other,] = read_chat | {"from_event_at": world.at()}
        chats["made up",] = chats[other,] | {"id": "made up"}
        result = compare(world)
        assert [(row.id, row.kind) for row in result.differences] == [(other, "missing"), (old, "missing")]
        assert result.newer > 0

        stored[old,], chats[other,] = read, read_chat
        del stored["made up",], chats["made up",]
        world.sync()
        assert world.differences() == {}


def test_message_is_newer_than_the_last_run_if_the_date_header_lags() -> None:
    with closing(World(Knobs(), build_settings(), page_size=100)) as world:
        for number in range(20):
            at = world.at() - timedelta(hours=number + 1)
            chat_id = world.account.add_chat(OURS, "+14155550123", at)
            world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        world.sync()
        at = world.at() + timedelta(seconds=2.5)
        world.account.add_message(NewMessage(chat_id, "outbound", "hello again", at, "sent", sender=OURS))
        result = compare(world)
        assert result.differences == []
        assert result.newer > 0


def read(listing: Listing) -> set[str]:
    return {row.key for page in paginate(listing.fetch, BEGINNING_MS) for row in page.rows}


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5, 10, 11, 200])
def test_each_row_is_yielded_once_with_few_extra_requests(count: int, inclusive: bool) -> None:
    listing = Listing({f"{n:03}": 1_700_000_000_000_000 + n * MINUTE_US for n in range(count)}, 100, inclusive)
    keys = [row.key for page in paginate(listing.fetch, BEGINNING_MS) for row in page.rows]
    assert sorted(keys) == sorted(listing.rows)
    assert len(listing.asked) <= count // 97 + 3


def test_ties_and_null_times_do_not_end_paging_early() -> None:
    tied: dict[str, int | None] = {f"tie{n}": 1_700_000_000_000_000 for n in range(130)}
    older: dict[str, int | None] = {f"old{n}": 1_600_000_000_000_000 + n * MINUTE_US for n in range(130)}
    for inclusive in (True, False):
        assert older.keys() <= read(Listing(tied | older, 100, inclusive))
    nulls: dict[str, int | None] = {f"null{n}": None for n in range(30)}
    for first in (True, False):
        assert older.keys() <= read(Listing(nulls | older, 100, nulls_first=first, nulls_with_before=not first))


def test_endless_pages_are_refused() -> None:
    numbers = iter(range(10**6))

    def fetch_new_rows(_before: str | None) -> Page[Any]:
        return Listing({f"{next(numbers)}": 1_700_000_000_000_000 for _ in range(10)}, 10).fetch(None)

    with pytest.raises(PermanentError, match="none that is older"):
        assert len(list(paginate(fetch_new_rows, BEGINNING_MS))) <= MAX_PAGES_WITHOUT_PROGRESS + 2
    listing = Listing({f"{n:03}": 1_700_000_000_000_000 + n * MINUTE_US for n in range(300)}, 100)
    with pytest.raises(PermanentError, match="newer than the `before`"):
        list(paginate(lambda _before: Listing(listing.rows, 100).fetch(None), BEGINNING_MS))


@pytest.mark.parametrize("status", [401, 500])
def test_list_of_chats_that_fails_leaves_the_messages_to_compare(status: int) -> None:
    with closing(World(Knobs(), build_settings())) as world:
        for number in range(3):
            at = world.at() - timedelta(hours=number + 1)
            chat_id = world.account.add_chat(OURS, "+14155550123", at)
            world.account.add_message(NewMessage(chat_id, "outbound", "hello", at, "sent", sender=OURS))
        world.sync()
        world.sync()
        world.knobs.answer = lambda _method, path, _query: (status, {}, b"") if path == "/v1/chats" else None
        result = compare(world)
        assert [str(row) for row in result.differences] == ["chats (the list) unreadable"]
        assert result.compared["messages"] + result.newer == 3
        world.knobs.answer = lambda *_: (status, {}, b"")
        with pytest.raises(ApiError, match=str(status)):
            compare(world)
