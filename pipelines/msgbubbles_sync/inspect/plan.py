"""Predict what the next run would read and how many requests that takes, from what is stored, without a request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgbubbles.client import MAX_PAGE_SIZE, Client
from msgbubbles.models import fingerprint
from msgbubbles.source.coverage import Coverage, plan_incremental, plan_refresh
from msgbubbles.source.reconcile import SWEEPS_MISSED
from msgbubbles.times import BEGINNING_MS

from .local_state import LocalState

# The last row of a page is repeated on the next one.
ROWS_PER_PAGE = MAX_PAGE_SIZE - 1


@dataclass(frozen=True)
class Step:
    """One step of the next run.

    The interval is in milliseconds since 1970, and null on the side where it has no bound. `requests` is an estimate,
    null where there is no basis for one.
    """

    stream: str
    kind: str
    from_ms: int | None
    to_ms: int | None
    requests: int | None


def plan_steps(local: LocalState, now_ms: int) -> list[Step]:
    """Return the steps of the next run, in order."""
    steps = [Step("numbers", "list", None, None, 1)]
    states = local.states
    for stream in ("messages", "chats"):
        steps += _plan_stream(local, stream, now_ms)
    missing = sum(times >= SWEEPS_MISSED for times in states.chats.missed.values())
    if missing:
        steps.append(Step("chats", "by id", None, None, missing))
    if states.chats.threads:
        steps.append(Step("messages", "threads again", None, None, len(states.chats.threads)))
    return steps


def count_changed_chats(local: LocalState, client: Client) -> int:
    """Count which of the newest 100 chats have changed since the last run. Makes one request."""
    seen = set(local.states.chats.seen)
    return sum(fingerprint(chat) not in seen for chat in client.list_chats().rows)


def _plan_stream(local: LocalState, stream: str, now_ms: int) -> list[Step]:
    coverage, settings = local.load_coverage(stream), local.settings.source
    newest = plan_incremental(coverage, settings.start_ms, settings.lookback_ms)
    if not coverage.intervals:
        return [Step(stream, "everything", _bound(settings.start_ms), None, None)]
    # Assume as many rows as in the same time before.
    passed_ms = max(now_ms - newest.lo_ms, 0)
    expected = local.count_rows(stream, newest.lo_ms - passed_ms, newest.lo_ms)
    steps = [Step(stream, "incremental", newest.lo_ms, None, _count_pages(expected))]
    steps += _plan_refresh(local, stream, now_ms)
    for lo_ms, hi_ms in coverage.gaps(settings.start_ms):
        requests = _estimate_backfill(local, stream, coverage, lo_ms, hi_ms)
        steps.append(Step(stream, "backfill", _bound(lo_ms), hi_ms, requests))
    return steps


def _plan_refresh(local: LocalState, stream: str, now_ms: int) -> list[Step]:
    settings, state = local.settings.source, local.states.get_list(stream)
    allowed = settings.limit_refresh(state.seen_ms, now_ms)
    read = local.load_coverage(stream)
    steps: list[Step] = []
    while allowed > 0 and (task := plan_refresh(read, settings.refresh_rules[stream], settings.start_ms, now_ms)):
        hi_ms = task.hi_ms or now_ms
        pages = _count_pages(local.count_rows(stream, task.lo_ms, hi_ms))
        steps.append(Step(stream, "refresh", _bound(task.lo_ms), hi_ms, math.ceil(min(pages, allowed))))
        allowed -= pages
        read.add(task.lo_ms, hi_ms, now_ms)
    return steps


def _estimate_backfill(local: LocalState, stream: str, coverage: Coverage, lo_ms: int, hi_ms: int) -> int | None:
    """Assume the density of the intervals that were read; null for a gap without a lower bound."""
    if _bound(lo_ms) is None:
        return None
    covered_ms = sum(hi - max(lo, lo_ms) for lo, hi, _ in coverage.intervals if hi > lo_ms)
    rows = local.count_rows(stream, lo_ms, coverage.intervals[-1][1])
    return _count_pages(round(rows * (hi_ms - lo_ms) / covered_ms)) if covered_ms else None


def _bound(lo_ms: int) -> int | None:
    return None if lo_ms == BEGINNING_MS else lo_ms


def _count_pages(rows: int) -> int:
    return max(math.ceil(rows / ROWS_PER_PAGE), 1)
