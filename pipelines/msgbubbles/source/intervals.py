"""Queue the intervals of one list: each worker takes the next one, and a long one is split among idle workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic

from msgbubbles.models import R
from msgbubbles.times import to_epoch_ms

from .coverage import CoveredInterval, Task
from .paginate import PageResult, Paginator

# When a worker is idle, the longest interval is split: its own worker continues with about this many pages, or half of
# the rest. A split costs a request, because the last page of a part shows rows of the next: 1.6% of a long backfill.
INTERVAL_PAGES = 64
# Until then it is unknown how much time a page spans, and whether the list ends here.
PAGES_BEFORE_SPLIT = 2


@dataclass(eq=False)
class OpenInterval(Generic[R]):
    """An interval that is being read, newest first.

    Attributes:
        before: The coverage when the reading began.
        is_one_page: Whether the interval is over once any part of it was read.
        from_ms, to_ms: The part whose rows are loaded or about to be, first and last time.
        read_ms: When the reading began.
        read_from_ms: How far down it was read; pages are read before they are loaded.
        has_skipped: Whether rows were skipped because they have not changed.
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
    _pages_before_split: int = field(default_factory=lambda: PAGES_BEFORE_SPLIT)

    def __post_init__(self) -> None:
        self.to_ms = None if self.task.hi_ms is None else self.task.hi_ms - 1

    def advance(self, result: PageResult[R], read_from_ms: int | None) -> bool:
        """Record a page, and return whether it reaches further down."""
        self.read_ms = self.read_ms or to_epoch_ms(result.page.server_at)
        self.to_ms = result.newest_ms if self.to_ms is None else self.to_ms
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
        """Estimate how many pages are left; 0 if it is too early for a split."""
        hi_ms, edge_ms = self.task.hi_ms, self.paginator.edge_ms
        if hi_ms is None or edge_ms is None or self.pages < self._pages_before_split:
            return 0.0
        return (edge_ms - self.task.lo_ms) / max(hi_ms - edge_ms, 1) * self.pages

    def split(self, pages_left: float) -> Task:
        """Return the older part of the unread rest, for another worker."""
        lo_ms, edge_ms = self.task.lo_ms, self.paginator.edge_ms or 0
        self._pages_before_split = 2 * self.pages
        self.paginator.lo_ms = edge_ms - round((edge_ms - lo_ms) * min(0.5, INTERVAL_PAGES / pages_left))
        self.task = Task(self.task.kind, self.paginator.lo_ms, self.task.hi_ms)
        return Task(self.task.kind, lo_ms, self.paginator.lo_ms)


class IntervalQueue(Generic[R]):
    """The waiting intervals, and the open ones, of which there are at most `workers()`."""

    def __init__(self, tasks: Iterable[Task], workers: Callable[[], int]) -> None:
        self.waiting = deque(tasks)
        self.open: list[OpenInterval[R]] = []
        self._workers = workers

    def take(self) -> Task | None:
        """Return an interval for another worker; null if all are busy, or nothing is left."""
        if len(self.open) >= self._workers():
            return None
        if self.waiting:
            return self.waiting.popleft()
        estimates = [(interval.pages_left, interval) for interval in self.open if interval.task.kind == "backfill"]
        # A list may end long before the interval does, and each part below its end costs a request. So each interval
        # has to bring some pages before the next split.
        if not estimates or any(interval.pages < PAGES_BEFORE_SPLIT for _, interval in estimates):
            return None
        pages, longest = max(estimates, key=lambda pair: pair[0])
        return longest.split(pages) if pages > INTERVAL_PAGES / 2 else None
