"""The queue of intervals of one list: each worker takes the next one, and leaves a long rest of it to the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic

from msgbubbles.models import R
from msgbubbles.times import to_epoch_ms

from .coverage import CoveredInterval, Task
from .paginate import PageResult, Paginator

# When a worker is idle, the longest interval is cut: its own worker keeps about so many pages, or half of what is left.
# Each cut costs a request, because the last page of a part shows rows of the next one: 1.6% of a long backfill.
INTERVAL_PAGES = 64
# How much time a page takes up is not known before. A list may also end there: then the cut was in vain.
PAGES_BEFORE_CUT = 2


@dataclass(eq=False)
class OpenInterval(Generic[R]):
    """An interval that is being read, newest first. `before` is the coverage when it began.

    Pages are read ahead of being loaded: `read_from_ms` is how far down it was read, and everything in
    [`from_ms`, `to_ms`] is with the rows that are to be loaded; it was read from `read_ms` on. With `is_one_page` it is
    over when anything of it was read. `has_skipped`: some of it was not read, because it has not changed.
    """

    task: Task
    paginator: Paginator[R]
    before: tuple[CoveredInterval, ...]
    is_one_page: bool
    from_ms: int | None = None
    to_ms: int | None = field(init=False)
    read_ms: int | None = None
    read_from_ms: int | None = None
    has_skipped: bool = False
    pages: int = 0
    _pages_before_cut: int = field(init=False)

    def __post_init__(self) -> None:
        self.to_ms = None if self.task.hi_ms is None else self.task.hi_ms - 1
        self._pages_before_cut = PAGES_BEFORE_CUT

    def advance(self, step: PageResult[R], read_from_ms: int | None) -> bool:
        """Take note of a page. Return whether it has brought the reading further down."""
        self.read_ms = self.read_ms or to_epoch_ms(step.page.server_at)
        self.to_ms = step.newest_ms if self.to_ms is None else self.to_ms
        self.pages += 1
        is_further = read_from_ms != self.read_from_ms
        self.read_from_ms = read_from_ms
        return is_further

    @property
    def is_over(self) -> bool:
        from_ms, to_ms = self.read_from_ms, self.to_ms
        return self.paginator.is_over or (
            self.is_one_page and from_ms is not None and to_ms is not None and from_ms <= to_ms
        )

    @property
    def pages_left(self) -> float:
        """Return about how many pages are still to be read; 0 where it is too early for a cut."""
        hi_ms, edge_ms = self.task.hi_ms, self.paginator.edge_ms
        if hi_ms is None or edge_ms is None or self.pages < self._pages_before_cut:
            return 0.0
        return (edge_ms - self.task.lo_ms) / max(hi_ms - edge_ms, 1) * self.pages

    def cut(self, pages_left: float) -> Task:
        """Leave the older part of what is still to be read to another worker."""
        lo_ms, edge_ms = self.task.lo_ms, self.paginator.edge_ms or 0
        self._pages_before_cut = 2 * self.pages
        self.paginator.lo_ms = edge_ms - round((edge_ms - lo_ms) * min(0.5, INTERVAL_PAGES / pages_left))
        self.task = Task(self.task.kind, self.paginator.lo_ms, self.task.hi_ms)
        return Task(self.task.kind, lo_ms, self.paginator.lo_ms)


class IntervalQueue(Generic[R]):
    """Intervals that wait, and those that are being read by so many workers at once."""

    def __init__(self, tasks: Iterable[Task], workers: Callable[[], int]) -> None:
        self.waiting = deque(tasks)
        self.open: list[OpenInterval[R]] = []
        self._workers = workers

    def take(self) -> Task | None:
        """Return what another worker is to read; null where all are busy, or nothing is left."""
        if len(self.open) >= self._workers():
            return None
        if self.waiting:
            return self.waiting.popleft()
        left = [(interval.pages_left, interval) for interval in self.open if interval.task.kind == "backfill"]
        # A list may end long before the interval does, and each part below its end costs a request. So an interval has
        # to show how much there is of it before the next is cut.
        if not left or any(interval.pages < PAGES_BEFORE_CUT for _, interval in left):
            return None
        pages, longest = max(left, key=lambda pair: pair[0])
        return longest.cut(pages) if pages > INTERVAL_PAGES / 2 else None
