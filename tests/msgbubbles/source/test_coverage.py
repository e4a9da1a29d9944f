from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgbubbles.settings import RefreshRule
from msgbubbles.source.coverage import Coverage, Task, plan_incremental, plan_refresh
from msgbubbles.times import DAY_MS, HOUR_MS

LINE = range(30)
intervals = st.tuples(st.integers(0, 29), st.integers(0, 29), st.integers(1, 99)).map(
    lambda s: (min(s[0], s[1]), max(s[0], s[1]), s[2])
)
changes = st.lists(st.one_of(intervals, st.integers(0, 29)), max_size=12)


def build(steps: list[tuple[int, int, int] | int]) -> tuple[Coverage, dict[int, int]]:
    """Build a coverage, and its model: when each millisecond of a short interval was read."""
    coverage, model = Coverage(), dict[int, int]()
    for step in steps:
        if isinstance(step, int):
            coverage.forget_from(step)
            model = {at: read for at, read in model.items() if at < step}
        else:
            lo, hi, read = step
            coverage.add(lo, hi, read)
            model |= dict.fromkeys(range(lo, hi), read)
    return coverage, model


@given(changes)
def test_coverage_records_what_was_read_and_when(steps: list[tuple[int, int, int] | int]) -> None:
    coverage, model = build(steps)
    assert {at: read for lo, hi, read in coverage.intervals for at in range(lo, hi)} == model
    assert coverage.newest_ms == max(model, default=None)
    assert Coverage(coverage.intervals).intervals == coverage.intervals


@given(changes)
def test_newest_interval_has_no_gap_and_begins_after_one(steps: list[tuple[int, int, int] | int]) -> None:
    coverage, model = build(steps)
    if not model:
        assert coverage.newest_interval is None
        return
    lo, hi = coverage.newest_interval or (0, 0)
    assert hi == max(model) + 1
    assert all(at in model for at in range(lo, hi))
    assert lo - 1 not in model


@given(changes, st.integers(0, 29))
def test_gaps_are_the_unread_intervals_newest_first(steps: list[tuple[int, int, int] | int], start: int) -> None:
    coverage, model = build(steps)
    found = [at for lo_ms, hi_ms in coverage.gaps(start) for at in range(lo_ms, hi_ms)]
    assert set(found) == {at for at in range(start, max(model, default=-1)) if at not in model}
    assert coverage.gaps(start) == sorted(coverage.gaps(start), reverse=True)


@given(changes, st.integers(0, 29))
def test_complete_to_is_the_end_of_the_first_interval(steps: list[tuple[int, int, int] | int], start: int) -> None:
    coverage, model = build(steps)
    end = start
    while end in model:
        end += 1
    assert coverage.complete_to(start) == (end if end > start else None)


def test_gap_of_a_millisecond_is_a_gap() -> None:
    covered = Coverage([(0, 10, 1), (11, 20, 1)])
    assert covered.intervals == [(0, 10, 1), (11, 20, 1)]
    assert covered.complete_to(0) == 10
    assert covered.newest_interval == (11, 20)
    assert covered.gaps(0) == [(10, 11)]
    covered.add(10, 11, 1)
    assert covered.intervals == [(0, 20, 1)]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 10**11)), max_size=10))
def test_compacting_preserves_coverage_and_makes_nothing_look_fresher(pieces: list[tuple[int, int, int]]) -> None:
    coverage = Coverage((lo, lo + length, read) for lo, length, read in pieces)
    compacted = coverage.compact(10**11)
    assert compacted.gaps(0) == coverage.gaps(0)
    assert compacted.newest_ms == coverage.newest_ms
    for lo, hi, read in coverage.intervals:
        inside = [piece for piece in compacted.intervals if piece[0] < hi and piece[1] > lo]
        assert all(r <= read for _, _, r in inside)
        assert all(read - r < 7 * DAY_MS for _, _, r in inside)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("age_ms", "grain_ms"),
    [(6 * HOUR_MS, 600_000), (7 * DAY_MS, HOUR_MS), (31 * DAY_MS, DAY_MS), (400 * DAY_MS, 7 * DAY_MS)],
)
def test_time_of_reading_is_rounded_by_its_age(age_ms: int, grain_ms: int) -> None:
    rounded_ms = 2900 * 7 * DAY_MS  # a multiple of all grains
    read_ms = rounded_ms + grain_ms - 1
    assert Coverage([(0, 9, read_ms)]).compact(read_ms + age_ms).intervals == [(0, 9, rounded_ms)]


@pytest.mark.slow
def test_coverage_stays_small_after_a_year_of_runs() -> None:
    coverage = Coverage()
    now = 1_800_000_000_000
    # All runs of a year would take minutes. Fewer leave the same intervals if there is one in each grain of the stored
    # times: weeks, days after a month, hours after a week.
    steps = [(6 * 60, 4 * 334), (60, 24 * 23), (5, 12 * 24 * 8)]
    for step in (minutes * 60_000 for minutes, runs in steps for _ in range(runs)):
        now += step
        task = plan_incremental(coverage, 0, 300_000)
        coverage.forget_from(task.lo_ms)
        coverage.add(task.lo_ms, now, now)
        coverage = coverage.compact(now)
    assert coverage.gaps(0) == []
    assert len(json.dumps(coverage.intervals)) < 64 * 1024
    assert len({read for _, _, read in coverage.intervals}) > 50, "when it was read is still known"


def test_incremental_begins_a_lookback_before_the_newest_time() -> None:
    assert plan_incremental(Coverage(), 1000, 300).lo_ms == 1000
    assert plan_incremental(Coverage([(0, 5001, 1)]), 1000, 300).lo_ms == 4700
    assert plan_incremental(Coverage([(0, 1101, 1)]), 1000, 300).lo_ms == 1000


NOW = 100 * DAY_MS


def read_hours_ago(*pieces: tuple[float, float, float]) -> Coverage:
    """Build a coverage of (from, to, read), in hours before now."""
    return Coverage(
        (NOW - round(lo * HOUR_MS), NOW - round(hi * HOUR_MS), NOW - round(read * HOUR_MS)) for lo, hi, read in pieces
    )


def to_refresh(coverage: Coverage, *rules: RefreshRule, start_ms: int = 0) -> tuple[float, float] | None:
    task = plan_refresh(coverage, rules, start_ms, NOW)
    if task is None or task.hi_ms is None:
        return None
    assert task.kind == "refresh"
    return (NOW - task.lo_ms) / HOUR_MS, (NOW - task.hi_ms) / HOUR_MS


DAILY = RefreshRule(24)
HOURLY = RefreshRule(1, within_hours=72)


@pytest.mark.parametrize(
    ("pieces", "rule", "expected"),
    [
        pytest.param([(900, 0, 23.9)], DAILY, None, id="not yet"),
        pytest.param([(900, 0, 24)], DAILY, (900, 0), id="when its time has come"),
        pytest.param([], DAILY, None, id="what was never read is a gap"),
        pytest.param([(900, 0, 1)], HOURLY, (72, 0), id="no older than the rule goes"),
        pytest.param([(900, 80, 50), (80, 0, 0.5)], HOURLY, None, id="what is older than the rule is left"),
        pytest.param([(900, 500, 30), (500, 0, 25)], DAILY, (900, 0), id="neighbors are read together"),
        pytest.param([(900, 500, 25), (500, 100, 13), (100, 0, 2)], DAILY, (900, 100), id="those half due too"),
        pytest.param([(900, 500, 25), (400, 0, 25)], DAILY, (400, 0), id="the newer of two with a gap between"),
        pytest.param([(900, 500, 70), (500, 0, 30)], DAILY, (900, 500), id="late, it goes on where it stopped"),
    ],
)
def test_refresh_plans_the_overdue_interval(
    pieces: list[tuple[float, float, float]], rule: RefreshRule, expected: tuple[float, float] | None
) -> None:
    assert to_refresh(read_hours_ago(*pieces), rule) == expected


def test_most_overdue_rule_comes_first() -> None:
    coverage = read_hours_ago((900, 72, 30), (72, 0, 3))
    assert to_refresh(coverage, DAILY, HOURLY) == (72, 0)
    assert to_refresh(coverage, HOURLY, DAILY) == (72, 0)
    assert to_refresh(read_hours_ago((900, 72, 50), (72, 0, 1)), DAILY, HOURLY) == (900, 72)


def test_nothing_before_the_start_is_refreshed() -> None:
    assert plan_refresh(Coverage([(0, NOW, 1)]), [DAILY], NOW - 5, NOW) == Task("refresh", NOW - 5, NOW)


@given(
    pieces=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(0, 90)), max_size=8),
    share=st.integers(1, 400),
)
def test_refresh_that_is_always_cut_off_finishes(pieces: list[tuple[int, int, int]], share: int) -> None:
    """Each refresh reads only its share. The overdue rest shrinks with each, and is never exceeded."""
    coverage = read_hours_ago(*((max(lo, hi), min(lo, hi), read) for lo, hi, read in pieces))
    before = list(coverage.intervals)
    for _ in range(2000):
        task = plan_refresh(coverage, [DAILY], 0, NOW)
        if task is None:
            break
        assert task.hi_ms is not None
        coverage.add(max(task.lo_ms, task.hi_ms - share * HOUR_MS), task.hi_ms, NOW)
    assert all(NOW - read < DAY_MS for _, _, read in coverage.intervals)
    assert Coverage(before).gaps(0) == coverage.gaps(0), "only what was read is read again"
