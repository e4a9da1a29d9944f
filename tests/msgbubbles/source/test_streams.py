"""One stream over many runs: cut off anywhere, changed meanwhile, and complete in the end."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.listing import EPOCH, Listing
from helpers.sizes import pick_size
from helpers.world import InAnyOrder, build_settings
from msgbubbles.errors import Interrupted, PermanentError, RetryableError
from msgbubbles.models import Chat, Number, Page, RejectedRow
from msgbubbles.source.buffer import NewChat, RowBuffer
from msgbubbles.source.chats import ChatReader
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.intervals import INTERVAL_PAGES, PAGES_BEFORE_SPLIT
from msgbubbles.source.run import Run, StreamContext
from msgbubbles.source.state import ListState
from msgbubbles.source.streams import StreamReader, read_stream

pytestmark = pytest.mark.usefixtures("small_parts")
LOOKBACK_MS = 50


class CollectingBuffer(RowBuffer):
    """Collects rows without converting them to Arrow, and drops the same as a load."""

    def __init__(self) -> None:
        super().__init__(("chats",))
        self.rows: dict[str, datetime | None] = {}

    def add(self, page: Page[Any], skip: frozenset[str] = frozenset()) -> None:
        super().add(page, skip)
        for key, (row, _) in self._rows["chats"].items():
            self.rows[key] = row.cursor_at
        self._changes("chats").new += len(self._rows["chats"])
        self._rows["chats"].clear()

    def empty_tables(self) -> Any:
        return iter(())


def read_once(
    listing: Listing,
    warehouse: dict[str, datetime | None],
    state: dict[str, Any],
    run: Run,
    lookback_ms: int = LOOKBACK_MS,
    workers: int = 1,
) -> int:
    """Run one load, which stores rows and state together. Return how many rows are new."""
    buffer = CollectingBuffer()

    def read(state: ListState, context: StreamContext) -> Any:
        return StreamReader("chats", listing.fetch, state, context).read()

    run.keep_on_error = True
    run.settings = build_settings(lookback_ms, start_date="1970-01-01", parallel_requests=workers)
    run.traffic.latency_seconds = 60.0  # which calls for as many workers as allowed
    list(read_stream(read, None, buffer, state, run))  # type: ignore[arg-type]
    warehouse |= buffer.rows
    return buffer._changes("chats").new


@settings(max_examples=pick_size(150, nightly=1500))
@given(
    seed_number=st.integers(0, 10**6),
    inclusive=st.booleans(),
    unstable=st.booleans(),
    short=st.booleans(),
    workers=st.integers(1, 4),
    cuts=st.lists(st.sampled_from(["batch", "stop", "fault", "none"]), max_size=8),
)
def test_last_run_completes_whatever_was_cut_off(
    seed_number: int, inclusive: bool, unstable: bool, short: bool, workers: int, cuts: list[str]
) -> None:
    chance = random.Random(seed_number)
    clock = {"ms": (datetime.now(UTC) - EPOCH) // timedelta(milliseconds=1) - 10**6}
    hidden: list[tuple[int, str, int]] = []

    def live(listing: Listing) -> None:
        """Pass time: rows arrive, move to the top, or become visible late, within the lookback."""
        clock["ms"] += chance.randint(0, 30)
        now = clock["ms"] * 1000 + chance.randint(0, 999)
        if chance.random() < 0.3:
            listing.rows[f"new{chance.random()}"] = now
        if chance.random() < 0.3:
            listing.rows[chance.choice(sorted(listing.rows))] = now
        if chance.random() < 0.2:
            hidden.append((clock["ms"] + chance.randint(0, LOOKBACK_MS - 1), f"late{chance.random()}", now))
        for due, key, at in list(hidden):
            if due <= clock["ms"]:
                listing.rows[key] = at
                hidden.remove((due, key, at))

    rows: dict[str, int | None] = {f"row{n:03}": (clock["ms"] - chance.randint(0, 400)) * 1000 for n in range(60)}
    listing = Listing(rows, 20, inclusive, unstable, short_pages=short, seed=seed_number, after_request=live)
    warehouse: dict[str, datetime | None] = {}
    state: dict[str, Any] = {}
    for cut in cuts:
        run = Run(batch_pages=chance.randint(1, 5) if cut == "batch" else None)
        end = chance.randint(1, 6)

        def breaks(listing: Listing, cut: str = cut, last: int = len(listing.asked) + end) -> None:
            live(listing)
            if len(listing.asked) >= last and cut in ("stop", "fault"):
                raise Interrupted("stop") if cut == "stop" else RetryableError("down")

        listing.after_request = breaks
        run.in_flight = lambda: InAnyOrder(chance)
        read_once(listing, warehouse, state, run, workers=workers)
    while hidden:
        clock["ms"] += 1
        live(listing)
    listing.after_request = lambda _listing: None
    run = Run(in_flight=lambda: InAnyOrder(chance))
    read_once(listing, warehouse, state, run, workers=workers)
    assert run.error is None
    shown = {key: EPOCH + timedelta(milliseconds=(at or 0) // 1000) for key, at in listing.rows.items()}
    if not state.get("overflows"):
        assert warehouse == shown


def test_workers_share_an_interval_and_run_concurrently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgbubbles.source.intervals.INTERVAL_PAGES", 8)
    listing, warehouse, state = steady(2000), dict[str, datetime | None](), dict[str, Any]()
    asking = threading.Lock()
    others, most = set[int](), 0

    def slow(before: str | None) -> Page[Chat]:
        nonlocal most
        me = threading.get_ident()
        others.add(me)
        most = max(most, len(others))
        time.sleep(0.01)
        with asking:
            page = fetch(before)
        others.discard(me)
        return page

    fetch, listing.fetch = listing.fetch, slow  # type: ignore[method-assign]
    read_once(listing, warehouse, state, Run(), workers=4)
    assert most == 4
    assert len(warehouse) == 2000
    assert len(state["covered"]) == 1, "there is no gap between the parts"
    assert len(listing.asked) <= 2000 / 19 + 100 / 8 + 4, "a page more for each part"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "more"),
    [(30, 0), (60, 1), (800, 3), (8000, 0.02 * 8000 / 20)],
    ids=["tiny", "small", "middle", "large"],
)
def test_many_workers_cost_hardly_more_requests_than_one(
    monkeypatch: pytest.MonkeyPatch, rows: int, more: float
) -> None:
    monkeypatch.setattr("msgbubbles.source.intervals.INTERVAL_PAGES", INTERVAL_PAGES)
    monkeypatch.setattr("msgbubbles.source.intervals.PAGES_BEFORE_SPLIT", PAGES_BEFORE_SPLIT)
    asked = []
    for workers in (1, 8):
        listing, warehouse = steady(rows), dict[str, datetime | None]()
        read_once(listing, warehouse, {}, Run(in_flight=lambda: InAnyOrder(random.Random(1))), workers=workers)
        assert len(warehouse) == rows
        asked.append(len(listing.asked))
    assert asked[0] < asked[1] or rows < 8000, "they were many"
    assert asked[1] <= asked[0] + more


def test_batch_end_preserves_the_rows_of_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgbubbles.source.intervals.INTERVAL_PAGES", 4)

    def any_order() -> InAnyOrder:  # on a busy machine, threads may send one more request
        return InAnyOrder(random.Random(1))

    listing, warehouse, state = steady(2000), dict[str, datetime | None](), dict[str, Any]()
    read_once(listing, warehouse, state, Run(batch_pages=30, in_flight=any_order), workers=4)
    assert len(listing.asked) == 30
    assert len(state["covered"]) > 1, "the parts that were read"
    read_once(listing, warehouse, state, Run(in_flight=any_order), workers=4)
    assert len(warehouse) == 2000
    assert len(listing.asked) <= 100 + 2000 / 20 / 4 + 8


def test_interval_with_only_rows_without_a_time_ends() -> None:
    timed: dict[str, int | None] = {f"{n:04}": 1_700_000_000_000_000 + n * 1_000_000 for n in range(2000)}
    nulls: dict[str, int | None] = {f"null{n}": None for n in range(30)}
    listing = Listing(timed | nulls, limit=20, nulls_first=False, nulls_with_before=True)
    warehouse, state, run = dict[str, datetime | None](), dict[str, Any](), Run()
    read_once(listing, warehouse, state, run, workers=4)
    assert run.error is None
    assert warehouse.keys() >= timed.keys()
    assert [None, None] in state["overflows"], "more of them than a page shows"


def steady(count: int = 400) -> Listing:
    return Listing({f"{n:04}": 1_700_000_000_000_000 + n * 1_000_000 for n in range(count)}, limit=20)


def test_rows_read_before_a_cut_are_not_read_again() -> None:
    listing, warehouse, state = steady(), dict[str, Any](), dict[str, Any]()
    for _ in range(30):
        run = Run(batch_pages=5)
        read_once(listing, warehouse, state, run)
        if not run.is_unfinished:
            break
    assert len(warehouse) == 400
    assert len(listing.asked) <= 400 / 19 + 2 + 6, "the pages, and the newest page once a batch"


def test_run_without_changes_sends_one_request_and_loads_nothing() -> None:
    listing, warehouse, state = steady(), dict[str, Any](), dict[str, Any]()
    read_once(listing, warehouse, state, Run())
    listing.asked.clear()
    assert read_once(listing, warehouse, state, Run()) == 0
    assert listing.asked == [None]


def test_row_from_the_future_hides_no_later_row() -> None:
    listing, warehouse, state = steady(50), dict[str, Any](), dict[str, Any]()
    listing.rows["future"] = int(datetime(2099, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    read_once(listing, warehouse, state, Run())
    listing.rows["next"] = 1_700_000_100_000_000
    read_once(listing, warehouse, state, Run())
    assert warehouse.keys() == listing.rows.keys()


def test_row_that_becomes_visible_late_is_read() -> None:
    listing, warehouse, state = steady(), dict[str, Any](), dict[str, Any]()
    read_once(listing, warehouse, state, Run(), lookback_ms=100_000)
    listing.rows["late"] = listing.rows["0339"]
    read_once(listing, warehouse, state, Run(), lookback_ms=100_000)
    assert "late" in warehouse


def test_incremental_read_that_is_cut_off_leaves_the_lookback_uncovered() -> None:
    listing, warehouse, state = steady(), dict[str, Any](), dict[str, Any]()
    read_once(listing, warehouse, state, Run(), lookback_ms=100_000)
    listing.rows |= {f"{n:04}": 1_700_000_000_000_000 + n * 1_000_000 for n in range(400, 520)}
    listing.rows["late"] = listing.rows["0339"]
    read_once(listing, warehouse, state, Run(batch_pages=2), lookback_ms=100_000)
    assert "late" not in warehouse
    read_once(listing, warehouse, state, Run(), lookback_ms=100_000)
    assert warehouse.keys() == listing.rows.keys()


def test_smallest_batches_finish() -> None:
    listing, warehouse, state = steady(), dict[str, Any](), dict[str, Any]()
    for _ in range(40):
        run = Run(batch_pages=1)
        read_once(listing, warehouse, state, run)
        if not run.is_unfinished:
            break
    assert warehouse.keys() == listing.rows.keys()


def test_error_is_raised_without_keep_on_error() -> None:
    def fails(*_: Any) -> Any:
        raise PermanentError("no")
        yield

    with pytest.raises(PermanentError):
        list(read_stream(fails, None, RowBuffer(("chats",)), {"has_tables": True}, Run()))  # type: ignore[arg-type]


def test_rejected_row_on_two_pages_is_counted_once() -> None:
    listing = steady(50)
    fetch = listing.fetch
    bad = RejectedRow("chats", "no usable id", "{}", None)
    listing.fetch = lambda before: replace(fetch(before), rejected=[bad])  # type: ignore[method-assign]
    run = Run()
    read_once(listing, {}, {}, run)
    assert len(listing.asked) > 1
    assert run.get_progress("chats").rejected == 1


def test_rows_without_a_time_are_read() -> None:
    listing, warehouse, state = steady(50), dict[str, Any](), dict[str, Any]()
    listing.rows |= {"null": None}
    read_once(listing, warehouse, state, Run())
    assert warehouse["null"] is None
    assert isinstance(Chat(id="x").cursor_at, type(None))


def test_skipped_rows_stay_as_old_as_they_were() -> None:
    reader: Any = SimpleNamespace(coverage=Coverage())
    interval: Any = SimpleNamespace(before=[(0, 10, 5), (10, 20, 9)], has_skipped=True)
    StreamReader._cover(reader, 4, 30, 99, interval)
    assert reader.coverage.intervals == [(4, 10, 5), (10, 20, 9), (20, 30, 5)]


def test_row_that_was_fetched_last_is_loaded() -> None:
    buffer = RowBuffer(("numbers",))
    for minute, label in ((1, "first"), (3, "last"), (2, "in between")):
        buffer.put(Number("+14155550100", label=label), EPOCH + timedelta(minutes=minute))
    [(number, _)] = buffer._rows["numbers"].values()
    assert number.label == "last"


def test_messages_of_a_chat_that_was_hidden_are_read_again() -> None:
    reader: Any = SimpleNamespace(
        _known_to_ms=1000, run=SimpleNamespace(missing=None), state=SimpleNamespace(threads=[])
    )
    chats = {"hidden": (False, EPOCH), "new": (False, EPOCH + timedelta(seconds=1)), "back": (True, None)}
    ChatReader._note_threads(reader, [NewChat(key, *chat) for key, chat in chats.items()])
    assert reader.state.threads == ["hidden", "back"]
