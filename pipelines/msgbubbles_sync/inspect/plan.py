"""What the next run would read, and what that costs: from what is known here, without a request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgbubbles.client import MAX_PAGE_SIZE, Client
from msgbubbles.models import fingerprint
from msgbubbles.source import coverage as plan
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.reconcile import SWEEPS_MISSED
from msgbubbles.source.streams import MAX_MINUTES_BETWEEN_RUNS
from msgbubbles.times import BEGINNING_MS

from .local_state import Known

if TYPE_CHECKING:
    from msgbubbles.source.config import Settings
    from msgbubbles.source.state import ListState

# The row at the edge of a page is on the next one again.
ROWS_A_PAGE = MAX_PAGE_SIZE - 1


@dataclass(frozen=True)
class Step:
    """Something that the next run does. `requests` is an estimate, null where nothing is known; the stretch is in
    milliseconds since 1970, null where it has no such end.
    """

    stream: str
    kind: str
    from_ms: int | None
    to_ms: int | None
    requests: int | None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stream", "kind", "from_ms", "to_ms", "requests")}


def steps(known: Known, settings: Settings, now_ms: int) -> list[Step]:
    """The steps of the next run, in the order in which it makes them."""
    found = [Step("numbers", "list", None, None, 1)]
    states = known.states()
    for stream in ("messages", "chats"):
        found += _of_stream(known, stream, states.of_list(stream), settings, now_ms)
    asked = sum(times >= SWEEPS_MISSED for times in states.chats.missed.values())
    if asked:
        found.append(Step("chats", "by id", None, None, asked))
    if states.chats.threads:
        found.append(Step("messages", "threads again", None, None, len(states.chats.threads)))
    return found


def probe(known: Known, client: Client) -> int:
    """Return how many of the newest 100 chats have changed since the last run; makes one request."""
    seen = set(known.states().chats.seen)
    return sum(fingerprint(chat) not in seen for chat in client.list_chats().rows)


def _of_stream(known: Known, stream: str, state: ListState, settings: Settings, now_ms: int) -> list[Step]:
    coverage = Coverage(state.covered)
    head = plan.incremental(coverage, settings.start_ms, settings.lookback_ms)
    if not coverage.intervals:
        return [Step(stream, "everything", _since(settings.start_ms), None, None)]
    # As busy as it was before.
    passed_ms = max(now_ms - head.lo_ms, 0)
    expected = known.rows_between(stream, head.lo_ms - passed_ms, head.lo_ms)
    found = [Step(stream, "head", head.lo_ms, None, _pages(expected))]
    found += _refresh(known, stream, state, settings, coverage, now_ms)
    for gap in plan.backfill(coverage, settings.start_ms):
        found.append(Step(stream, "gap", _since(gap.lo_ms), gap.hi_ms, _gap_pages(known, stream, coverage, gap)))
    return found


def _refresh(
    known: Known, stream: str, state: ListState, settings: Settings, coverage: Coverage, now_ms: int
) -> list[Step]:
    minutes = min(max((now_ms - state.seen_ms) / 60_000, 0.0), MAX_MINUTES_BETWEEN_RUNS)
    left = math.inf if settings.refresh_per_minute is None else max(settings.refresh_per_minute * minutes, 1)
    read = Coverage(coverage.intervals)
    found: list[Step] = []
    while left > 0 and (task := plan.refresh(read, settings.tiers.get(stream, ()), settings.start_ms, now_ms)):
        hi_ms = task.hi_ms or now_ms
        pages = _pages(known.rows_between(stream, task.lo_ms, hi_ms))
        found.append(Step(stream, "refresh", _since(task.lo_ms), hi_ms, math.ceil(min(pages, left))))
        left -= pages
        read.add(task.lo_ms, hi_ms, now_ms)
    return found


def _gap_pages(known: Known, stream: str, coverage: Coverage, gap: plan.Task) -> int | None:
    """As dense as what has been read; unknown where a gap goes back to the beginning of everything."""
    if _since(gap.lo_ms) is None or gap.hi_ms is None:
        return None
    covered_ms = sum(hi - max(lo, gap.lo_ms) for lo, hi, _ in coverage.intervals if hi > gap.lo_ms)
    rows = known.rows_between(stream, gap.lo_ms, coverage.intervals[-1][1])
    return _pages(round(rows * (gap.hi_ms - gap.lo_ms) / covered_ms)) if covered_ms else None


def _since(lo_ms: int) -> int | None:
    return None if lo_ms == BEGINNING_MS else lo_ms


def _pages(rows: int) -> int:
    return max(math.ceil(rows / ROWS_A_PAGE), 1)
