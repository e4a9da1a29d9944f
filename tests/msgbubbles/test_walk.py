from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listing import Listing
from msgbubbles.errors import PermanentError
from msgbubbles.models import Chat, Page
from msgbubbles.walk import DAY_MS, Overflow, Step, iso, walk


def read(listing: Listing, lo_ms: int = 0, before_ms: int | None = None) -> list[Step[Chat]]:
    return list(walk(listing.fetch, lo_ms=lo_ms, before_ms=before_ms, stream="chats"))


def keys(steps: list[Step[Chat]]) -> set[str]:
    return {row.key for step in steps for row in step.page.rows}


# Few instants and many rows, so that ties over the edge of a page are the rule.
instants = st.integers(0, 12).map(lambda n: n * 500 + 1_000_000)
listings = st.builds(
    Listing,
    rows=st.dictionaries(st.uuids().map(str), instants, max_size=60),
    limit=st.integers(2, 8),
    inclusive=st.booleans(),
    unstable_ties=st.booleans(),
    shuffled_pages=st.booleans(),
    short_pages=st.booleans(),
    seed=st.integers(0, 1000),
)


def crowded(listing: Listing) -> set[int]:
    """Milliseconds with as many rows as a page holds, those of the next one included: `before` may include it."""
    count = Counter(at // 1000 for at in listing.rows.values() if at is not None)
    return {ms for ms, rows in count.items() if rows + count[ms + 1] >= listing.limit or listing.short_pages}


@settings(max_examples=400, deadline=None)
@given(listings)
def test_every_row_is_read_or_its_instant_is_reported(listing: Listing) -> None:
    steps = read(listing)
    reported = [step.overflow for step in steps if step.overflow]
    missing = set(listing.rows) - keys(steps)
    for key in missing:
        at_ms = (listing.rows[key] or 0) // 1000
        assert any((o.from_ms or 0) <= at_ms <= (o.to_ms or 0) for o in reported)
    for overflow in reported:
        assert overflow.to_ms in crowded(listing)
    assert len(steps) < 15 * len(listing.rows) + 15


@settings(max_examples=200, deadline=None)
@given(listings)
def test_nothing_is_missing_where_a_page_holds_more_than_an_instant(listing: Listing) -> None:
    listing = replace(listing, limit=61, short_pages=False)
    steps = read(listing)
    assert keys(steps) == set(listing.rows)
    assert not any(step.overflow for step in steps)


@settings(max_examples=200, deadline=None)
@given(listings, st.integers(0, 400))
def test_coverage_never_claims_a_row_that_was_not_read(listing: Listing, pages: int) -> None:
    covered_from_ms = None
    seen: set[str] = set()
    reported: list[Overflow] = []
    for step, _ in zip(walk(listing.fetch, lo_ms=0, before_ms=None, stream="chats"), range(pages + 1), strict=False):
        seen |= keys([step])
        covered_from_ms = step.covered_from_ms
        reported += [step.overflow] if step.overflow else []
    for key, at in listing.rows.items():
        at_ms = (at or 0) // 1000
        if covered_from_ms is not None and at_ms >= covered_from_ms and key not in seen:
            assert any((o.from_ms or 0) <= at_ms <= (o.to_ms or 0) for o in reported)


def test_a_walk_stops_at_its_lower_end_and_reads_no_page_more() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(100)}, limit=10)
    steps = read(listing, lo_ms=1085)
    assert {f"{n:03}" for n in range(85, 100)} <= keys(steps)
    assert len(steps) == 2
    assert steps[-1].covered_from_ms == 1082, "the last page is used to its end"


def test_a_walk_begins_where_it_is_told() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(100)}, limit=10)
    assert keys(read(listing, lo_ms=1000, before_ms=1050)) == {f"{n:03}" for n in range(50)}


@pytest.mark.parametrize("inclusive", [False, True])
def test_more_rows_in_an_instant_than_a_page_holds_are_reported_and_stepped_over(inclusive: bool) -> None:
    older = {f"old{n}": 900_000 + n * 1000 for n in range(7)}
    tied = {f"tie{n:02}": 1_000_000 for n in range(13)}
    newer = {f"new{n}": 1_100_000 + n * 1000 for n in range(6)}
    listing = Listing({**older, **tied, **newer}, limit=10, inclusive=inclusive)
    steps = read(listing)
    assert keys(steps) == set(older) | set(newer) | {f"tie{n:02}" for n in range(10)}
    assert {step.overflow for step in steps if step.overflow} == (
        {Overflow(1000, 1000), Overflow(999, 1000)} if inclusive else {Overflow(1000, 1000)}
    )


def test_ties_whose_order_changes_are_all_reached_by_asking_again() -> None:
    listing = Listing({f"tie{n:02}": 1_000_000 for n in range(13)}, limit=10, unstable_ties=True)
    assert keys(read(listing)) == set(listing.rows)


@pytest.mark.parametrize("nulls_first", [False, True])
@pytest.mark.parametrize("nulls_with_before", [False, True])
@pytest.mark.parametrize("nulls", [1, 4, 5, 9])
def test_rows_without_an_instant_hide_no_others(nulls: int, nulls_first: bool, nulls_with_before: bool) -> None:
    timed = {f"{n:03}": 1_000_000 + n * 1000 for n in range(20)}
    listing = Listing(
        {**timed, **{f"null{n}": None for n in range(nulls)}},
        nulls_first=nulls_first,
        nulls_with_before=nulls_with_before,
    )
    if nulls_first and nulls_with_before and nulls >= listing.limit:
        with pytest.raises(PermanentError, match="without an instant"):
            read(listing)
        return
    steps = read(listing)
    assert set(timed) <= keys(steps)
    reachable = nulls if nulls_with_before or nulls_first else 0
    if nulls <= listing.limit:
        assert len(keys(steps) - set(timed)) == reachable
    elif reachable:
        assert Overflow(None, None) in {step.overflow for step in steps}


def test_the_newest_instant_is_not_taken_from_the_future() -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    listing = Listing({"now": now_ms * 1000, "later": (now_ms + DAY_MS) * 1000})
    (step,) = read(listing)
    assert step.newest_ms == now_ms


def test_an_empty_page_that_promises_more_is_asked_for_once_more() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(20)})
    calls = 0

    def fetch(before: str | None) -> Page[Chat]:
        nonlocal calls
        calls += 1
        page = listing.fetch(before)
        return replace(page, rows=[], has_more=True, full=False) if calls == 3 else page

    seen = {row.key for step in walk(fetch, lo_ms=0, before_ms=None, stream="chats") for row in step.page.rows}
    assert seen == set(listing.rows)


def test_an_api_that_ignores_before_is_not_paged_for_ever() -> None:
    listing = Listing({f"{n:03}": 1_000_000 + n * 1000 for n in range(20)})
    with pytest.raises(PermanentError, match="newer than the `before`"):
        list(walk(lambda _before: listing.fetch(None), lo_ms=0, before_ms=None, stream="chats"))


def test_an_instant_is_written_as_the_api_writes_it() -> None:
    assert iso(1_764_000_000_007) == "2025-11-24T16:00:00.007Z"
