"""Open intervals: when they are over, and when one is split for another worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from msgbubbles.source.coverage import Task
from msgbubbles.source.intervals import INTERVAL_PAGES, PAGES_BEFORE_SPLIT, IntervalQueue, OpenInterval


def open_interval(*, lo_ms: int = 0, hi_ms: int = 10_000, edge_ms: int = 9_000, pages: int = 0) -> OpenInterval[Any]:
    """Build a backfill interval of which everything down to `edge_ms` was read in `pages`."""
    paginator: Any = SimpleNamespace(is_over=False, edge_ms=edge_ms, lo_ms=lo_ms)
    interval = OpenInterval[Any](Task("backfill", lo_ms, hi_ms), paginator, (), is_one_page=False)
    interval.pages = pages
    return interval


@pytest.mark.parametrize(("read_from_ms", "is_over"), [(9_999, True), (10_000, False), (None, False)])
def test_one_page_interval_is_over_once_its_last_millisecond_is_read(read_from_ms: int | None, is_over: bool) -> None:
    interval = open_interval()
    interval.is_one_page, interval.read_from_ms = True, read_from_ms
    assert interval.is_over is is_over


def test_rest_is_estimated_from_the_second_page_on() -> None:
    assert open_interval(pages=PAGES_BEFORE_SPLIT - 1).pages_left == 0
    assert open_interval(pages=PAGES_BEFORE_SPLIT).pages_left == 9 * PAGES_BEFORE_SPLIT


def test_split_leaves_a_millisecond_to_one_part_only() -> None:
    interval = open_interval(edge_ms=8_000, pages=INTERVAL_PAGES)
    assert interval.split(interval.pages_left) == Task("backfill", 0, 6_000)
    assert (interval.task, interval.paginator.lo_ms) == (Task("backfill", 6_000, 10_000), 6_000)


@pytest.mark.parametrize(("pages", "is_split"), [(PAGES_BEFORE_SPLIT, True), (PAGES_BEFORE_SPLIT - 1, False)])
def test_no_interval_is_split_before_each_has_brought_its_pages(pages: int, is_split: bool) -> None:
    queue = IntervalQueue[Any]([], workers=lambda: 3)
    queue.open = [open_interval(hi_ms=1_000_000, edge_ms=999_000, pages=PAGES_BEFORE_SPLIT), open_interval(pages=pages)]
    assert (queue.take() is not None) is is_split


@pytest.mark.parametrize(("left", "is_split"), [(INTERVAL_PAGES // 2, False), (INTERVAL_PAGES // 2 + 1, True)])
def test_short_rest_is_not_split(left: int, is_split: bool) -> None:
    queue = IntervalQueue[Any]([], workers=lambda: 2)
    queue.open = [open_interval(hi_ms=left * 1_000 + 2_000, edge_ms=left * 1_000, pages=PAGES_BEFORE_SPLIT)]
    assert queue.open[0].pages_left == left
    assert (queue.take() is not None) is is_split


def test_waiting_interval_is_taken_only_by_an_idle_worker() -> None:
    task = Task("backfill", 0, 10)
    queue = IntervalQueue[Any]([task], workers=lambda: 1)
    queue.open = [open_interval()]
    assert queue.take() is None
    queue.open.clear()
    assert queue.take() == task
