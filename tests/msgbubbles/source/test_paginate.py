from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.listing import EPOCH, Listing
from helpers.sizes import pick_size
from msgbubbles.errors import PermanentError
from msgbubbles.models import Chat, Message, Page
from msgbubbles.source.paginate import MAX_PAGES_AT_ONE_TIMESTAMP, Overflow, PageResult, paginate_interval
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms


def read(listing: Listing, lo_ms: int = 0, before_ms: int | None = None) -> list[PageResult[Chat]]:
    return list(paginate_interval(listing.fetch, lo_ms=lo_ms, before_ms=before_ms))


def keys(results: list[PageResult[Chat]]) -> set[str]:
    return {row.key for result in results for row in result.page.rows}


# Few timestamps and many rows, so that most ties straddle two pages.
timestamps = st.integers(0, 12).map(lambda n: n * 500 + 1_000_000)
listings = st.builds(
    Listing,
    rows=st.dictionaries(st.uuids().map(str), timestamps, max_size=60),
    limit=st.integers(2, 8),
    inclusive=st.booleans(),
    unstable_ties=st.booleans(),
    shuffled_pages=st.booleans(),
    short_pages=st.booleans(),
    seed=st.integers(0, 1000),
)


def crowded(listing: Listing) -> set[int]:
    """Return milliseconds with a page of rows, including those of the next one, because `before` may include it."""
    count = Counter(at // 1000 for at in listing.rows.values() if at is not None)
    return {ms for ms, rows in count.items() if rows + count[ms + 1] >= listing.limit or listing.short_pages}


@settings(max_examples=pick_size(400, nightly=4000))
@given(listings)
def test_every_row_is_read_or_its_timestamp_is_reported(listing: Listing) -> None:
    results = read(listing)
    reported = [result.overflow for result in results if result.overflow]
    missing = set(listing.rows) - keys(results)
    for key in missing:
        at_ms = (listing.rows[key] or 0) // 1000
        assert any((o.from_ms or 0) <= at_ms <= (o.to_ms or 0) for o in reported)
    for overflow in reported:
        assert overflow.to_ms in crowded(listing)
    assert len(results) < 15 * len(listing.rows) + 15


@settings(max_examples=pick_size(200, nightly=2000))
@given(listings)
def test_nothing_is_missing_if_pages_hold_more_than_a_timestamp(listing: Listing) -> None:
    listing = replace(listing, limit=61, short_pages=False)
    results = read(listing)
    assert keys(results) == set(listing.rows)
    assert not any(result.overflow for result in results)


@settings(max_examples=pick_size(200, nightly=2000))
@given(listings, st.integers(0, 400))
def test_coverage_never_includes_an_unread_row(listing: Listing, pages: int) -> None:
    covered_from_ms = None
    seen: set[str] = set()
    reported: list[Overflow] = []
    for result, _ in zip(paginate_interval(listing.fetch, lo_ms=0, before_ms=None), range(pages + 1), strict=False):
        seen |= keys([result])
        covered_from_ms = result.covered_from_ms
        reported += [result.overflow] if result.overflow else []
    for key, at in listing.rows.items():
        at_ms = (at or 0) // 1000
        if covered_from_ms is not None and at_ms >= covered_from_ms and key not in seen:
            assert any((o.from_ms or 0) <= at_ms <= (o.to_ms or 0) for o in reported)


def test_paginator_stops_at_its_lower_end() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(100)}, limit=10)
    results = read(listing, lo_ms=1085)
    assert {f"{n:03}" for n in range(85, 100)} <= keys(results)
    assert len(results) == 2
    assert results[-1].covered_from_ms == 1082, "the last page is used to its end"


def test_paginator_begins_at_the_given_time() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(100)}, limit=10)
    assert keys(read(listing, lo_ms=1000, before_ms=1050)) == {f"{n:03}" for n in range(50)}


@pytest.mark.parametrize("inclusive", [False, True])
def test_more_ties_than_a_page_holds_are_reported_and_skipped(inclusive: bool) -> None:
    older = {f"old{n}": 900_000 + n * 1000 for n in range(7)}
    tied = {f"tie{n:02}": 1_000_000 for n in range(13)}
    newer = {f"new{n}": 1_100_000 + n * 1000 for n in range(6)}
    listing = Listing({**older, **tied, **newer}, limit=10, inclusive=inclusive)
    results = read(listing)
    assert keys(results) == set(older) | set(newer) | {f"tie{n:02}" for n in range(10)}
    assert {result.overflow for result in results if result.overflow} == (
        {Overflow(1000, 1000), Overflow(999, 1000)} if inclusive else {Overflow(1000, 1000)}
    )


def test_ties_in_unstable_order_are_all_reached() -> None:
    listing = Listing({f"tie{n:02}": 1_000_000 for n in range(13)}, limit=10, unstable_ties=True)
    assert keys(read(listing)) == set(listing.rows)


@pytest.mark.parametrize("nulls_first", [False, True])
@pytest.mark.parametrize("nulls_with_before", [False, True])
@pytest.mark.parametrize("nulls", [1, 4, 5, 9])
def test_rows_without_a_time_hide_no_others(nulls: int, nulls_first: bool, nulls_with_before: bool) -> None:
    timed = {f"{n:03}": 1_000_000 + n * 1000 for n in range(20)}
    listing = Listing(
        {**timed, **{f"null{n}": None for n in range(nulls)}},
        nulls_first=nulls_first,
        nulls_with_before=nulls_with_before,
    )
    if nulls_first and nulls_with_before and nulls >= listing.limit:
        with pytest.raises(PermanentError, match="without a timestamp"):
            read(listing)
        return
    results = read(listing)
    assert set(timed) <= keys(results)
    reachable = nulls if nulls_with_before or nulls_first else 0
    if nulls <= listing.limit:
        assert len(keys(results) - set(timed)) == reachable
    elif reachable:
        assert Overflow(None, None) in {result.overflow for result in results}


def test_newest_time_is_not_taken_from_the_future() -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    listing = Listing({"now": now_ms * 1000, "later": (now_ms + DAY_MS) * 1000})
    (result,) = read(listing)
    assert result.newest_ms == now_ms


def test_empty_page_with_has_more_is_requested_again() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(20)})
    calls = 0

    def fetch(before: str | None) -> Page[Chat]:
        nonlocal calls
        calls += 1
        page = listing.fetch(before)
        return replace(page, rows=[], has_more=True, full=False) if calls == 3 else page

    seen = {row.key for result in paginate_interval(fetch, lo_ms=0, before_ms=None) for row in result.page.rows}
    assert seen == set(listing.rows)


def test_api_that_ignores_before_is_refused() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(20)})
    with pytest.raises(PermanentError, match="newer than the `before`"):
        list(paginate_interval(lambda _before: listing.fetch(None), lo_ms=0, before_ms=None))


def test_timestamp_is_formatted_like_the_api_does() -> None:
    assert format_ms(1_764_000_000_007) == "2025-11-24T16:00:00.007Z"
    assert format_ms(-1) == "1969-12-31T23:59:59.999Z"
    assert format_ms(BEGINNING_MS) == "0001-01-02T00:00:00.000Z"


# -- rows that show another time than the API lists them by

BASE_MS, MINUTE_MS = 1_700_000_000_000, 60_000
IN_2001_MS = 978_307_200_000


def chats_every_minute(count: int, outliers: dict[int, int], limit: int = 100, **options: bool) -> Listing:
    """Build chats listed a minute apart, newest first; `outliers` are times that some show instead, by index."""
    rows: dict[str, int | None] = {f"{n:04}": (BASE_MS - n * MINUTE_MS) * 1000 for n in range(count)}
    shown_as: dict[str, int | None] = {f"{n:04}": at_ms * 1000 for n, at_ms in outliers.items()}
    return Listing(rows, limit, shown_as=shown_as, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shown_ms", [IN_2001_MS, BASE_MS - 2000 * MINUTE_MS, BASE_MS - 30, BASE_MS + 9 * DAY_MS * 365])
@pytest.mark.parametrize("places", [[0], [50], [99], [150], [198], [299], [97, 98, 99], [3, 40, 99, 120]], ids=str)
def test_outliers_are_loaded_and_move_no_boundary(places: list[int], shown_ms: int) -> None:
    listing = chats_every_minute(300, dict.fromkeys(places, shown_ms))
    results = read(listing, lo_ms=BEGINNING_MS)
    assert keys(results) == set(listing.rows)
    assert not any(result.overflow for result in results)
    assert len(results) <= 4 + 2 * len(places) + 2


def test_wrong_times_at_the_end_of_a_list_are_no_tie_overflow() -> None:
    listing = chats_every_minute(59, {0: IN_2001_MS, 57: IN_2001_MS, 58: BASE_MS + 400 * DAY_MS}, limit=10)
    results = read(listing, lo_ms=BEGINNING_MS)
    assert keys(results) == set(listing.rows)
    assert not any(result.overflow for result in results)


def test_page_out_of_order_is_reported() -> None:
    assert not any(result.is_in_order for result in read(chats_every_minute(90, {40: IN_2001_MS}))[:1])
    assert all(result.is_in_order for result in read(chats_every_minute(300, {})))
    (in_2001,) = read(chats_every_minute(90, {40: IN_2001_MS}), lo_ms=BASE_MS - 30 * MINUTE_MS)
    assert in_2001.outliers == {"0040"}


@pytest.mark.parametrize("place", [5, 40, 98, 99])
def test_outlier_below_the_lower_end_does_not_end_paging(place: int) -> None:
    listing = chats_every_minute(300, {place: IN_2001_MS, place + 1: IN_2001_MS})
    results = read(listing, lo_ms=BASE_MS - 250 * MINUTE_MS)
    assert {key for key in listing.rows if key <= "0250"} <= keys(results)
    assert len(results) <= 5


@pytest.mark.parametrize("outliers", [1, 2, 3, 4, 5])
def test_outliers_that_end_a_short_page_claim_no_coverage(outliers: int) -> None:
    """They are in order, and their common timestamp is as far from the others for all of them."""
    listing = chats_every_minute(40, dict.fromkeys(range(19 - outliers, 19), IN_2001_MS), limit=10)
    covered_from_ms = [result.covered_from_ms for result in read(listing, lo_ms=BEGINNING_MS)]
    assert covered_from_ms[1] is not None
    assert covered_from_ms[1] > BASE_MS - 19 * MINUTE_MS
    assert covered_from_ms[-1] == BEGINNING_MS


@settings(max_examples=pick_size(150, nightly=1500))
@given(st.data())
def test_outliers_hide_no_row_and_cover_no_interval(data: st.DataObject) -> None:
    count, limit = data.draw(st.integers(1, 90)), data.draw(st.sampled_from([10, 20, 50]))
    times_ms = st.sampled_from([IN_2001_MS, BASE_MS + 400 * DAY_MS, BASE_MS + 40 * MINUTE_MS, BASE_MS - 500 * DAY_MS])
    outliers = data.draw(st.dictionaries(st.integers(0, count - 1), times_ms, max_size=count // 20 + 1))
    listing = chats_every_minute(
        count, outliers, limit, inclusive=data.draw(st.booleans()), shuffled_pages=data.draw(st.booleans())
    )
    seen: set[str] = set()
    for result in paginate_interval(listing.fetch, lo_ms=BEGINNING_MS, before_ms=None):
        seen |= keys([result])
        assert result.overflow is None
        if result.covered_from_ms is not None:
            assert {key for key, at in listing.rows.items() if (at or 0) // 1000 >= result.covered_from_ms} <= seen
        assert len(listing.asked) < 100
    assert seen == set(listing.rows)


def by_sent_at(rows: list[Message], limit: int = 100) -> Callable[[str | None], Page[Message]]:
    """Build an API that orders and pages messages by `sent_at`, whatever else they show."""

    def fetch(before: str | None) -> Page[Message]:
        at = None if before is None else datetime.fromisoformat(before)
        found = sorted(
            (row for row in rows if row.sent_at and (at is None or row.sent_at < at)),
            key=lambda row: row.sent_at or EPOCH,
            reverse=True,
        )
        now = datetime.now(UTC)
        return Page(found[:limit], [], len(found) > limit, len(found) >= limit, now, now)

    return fetch


@pytest.mark.parametrize(
    "created",
    [
        lambda _sent: EPOCH + timedelta(days=20_000),  # the day of an import
        lambda sent: sent - timedelta(hours=5),  # a local time
        lambda sent: EPOCH + timedelta(milliseconds=hash(sent) % BASE_MS),
    ],
    ids=["constant", "shifted", "random"],
)
def test_another_field_is_used_if_created_at_misleads(
    created: Callable[[datetime], datetime],
) -> None:
    sent = [EPOCH + timedelta(milliseconds=BASE_MS - n * MINUTE_MS) for n in range(300)]
    rows = [Message(id=f"{n:03}", sent_at=at, created_at=created(at)) for n, at in enumerate(sent)]
    results = list(paginate_interval(by_sent_at(rows), lo_ms=BEGINNING_MS, before_ms=None))
    assert {row.key for result in results for row in result.page.rows} == {row.id for row in rows}
    assert not any(result.overflow for result in results)
    assert len(results) <= 7


def test_times_that_order_no_page_are_refused_after_some_pages() -> None:
    now = datetime.now(UTC)
    asked = 0

    def fetch(_before: str | None) -> Page[Chat]:
        nonlocal asked
        asked += 1
        rows = [Chat(id=f"{asked}-{n}", last_message_at=now - timedelta(days=(n * 37 + asked) % 100)) for n in range(9)]
        return Page(rows, [], True, True, now, now)

    with pytest.raises(PermanentError):
        list(paginate_interval(fetch, lo_ms=BEGINNING_MS, before_ms=None))
    assert asked < 500


def test_ids_that_change_with_each_request_do_not_end_paging() -> None:
    listing = chats_every_minute(300, {})
    results: list[PageResult[Chat]] = []

    def fetch(before: str | None) -> Page[Chat]:
        page = listing.fetch(before)
        return replace(
            page, rows=[Chat(id=f"{len(results)}-{row.id}", last_message_at=row.cursor_at) for row in page.rows]
        )

    for result in paginate_interval(fetch, lo_ms=BEGINNING_MS, before_ms=None):
        results.append(result)
        assert len(results) < 40
    assert {key.partition("-")[2] for key in keys(results)} == set(listing.rows)


# -- an API that invents rows


def ever_new(
    at: Callable[[int, datetime | None], datetime | None],
) -> tuple[Callable[[str | None], Page[Chat]], list[str]]:
    """Build an API that answers ten new rows each time, at `at(page number, before)`. Return also its requests."""
    asked: list[str] = []

    def fetch(before: str | None) -> Page[Chat]:
        asked.append(before or "")
        now = datetime.now(UTC)
        shown = at(len(asked), None if before is None else datetime.fromisoformat(before))
        rows = [] if shown is None else [Chat(id=f"{len(asked)}-{n}", last_message_at=shown) for n in range(10)]
        return Page(rows, [], bool(rows), bool(rows), now, now)

    return fetch, asked


def test_endless_new_rows_at_one_timestamp_are_bounded_and_reported() -> None:
    tied, older = EPOCH + timedelta(milliseconds=BASE_MS), EPOCH + timedelta(milliseconds=BASE_MS - DAY_MS)

    def at(_number: int, before: datetime | None) -> datetime | None:
        return tied if before is None or before > tied else older if before > older else None

    fetch, asked = ever_new(at)
    results = list(paginate_interval(fetch, lo_ms=BEGINNING_MS, before_ms=None))
    reported = {result.overflow for result in results if result.overflow}
    assert reported == {Overflow(BASE_MS, BASE_MS), Overflow(BASE_MS - DAY_MS, BASE_MS - DAY_MS)}
    assert len(asked) <= 2 * MAX_PAGES_AT_ONE_TIMESTAMP + 5
    assert results[-1].covered_from_ms == BEGINNING_MS


def test_pages_that_never_go_down_are_refused() -> None:
    fetch, asked = ever_new(lambda number, _before: EPOCH + timedelta(milliseconds=BASE_MS + number * 1000))
    with pytest.raises(PermanentError, match="newer than the `before`"):
        list(paginate_interval(fetch, lo_ms=BEGINNING_MS, before_ms=None))
    assert len(asked) < 10


# -- rows before 1970, and rows without a time


def test_rows_before_1970_are_read() -> None:
    moon_landing = datetime(1969, 7, 20, 20, 17, tzinfo=UTC)
    at_us = (moon_landing - EPOCH) // timedelta(microseconds=1)
    listing = Listing({f"{n:03}": at_us - n * 3_600_000_000 for n in range(250)}, limit=100)
    results = read(listing, lo_ms=BEGINNING_MS)
    assert keys(results) == set(listing.rows)
    assert results[-1].covered_from_ms == BEGINNING_MS


@pytest.mark.parametrize("with_before", [True, False])
@pytest.mark.parametrize(("timed", "untimed"), [(100, 150), (50, 60), (30, 150), (130, 90)])
def test_more_rows_without_a_time_than_a_page_shows_are_reported(timed: int, untimed: int, with_before: bool) -> None:
    listing = chats_every_minute(timed, {}, nulls_first=False, nulls_with_before=with_before)
    listing.rows |= {f"null{n:03}": None for n in range(untimed)}
    results = read(listing, lo_ms=BEGINNING_MS)
    assert {key for key in listing.rows if not key.startswith("null")} <= keys(results)
    overflows = {result.overflow for result in results if result.overflow}
    missing = set(listing.rows) - keys(results)
    if any(key.startswith("null") for key in keys(results)):
        assert overflows == ({Overflow(None, None)} if missing else set())
