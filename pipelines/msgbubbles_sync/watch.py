"""Run the job again and again: at an interval, and as soon as webhook events arrive."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .lock import AnotherJobRunsError, record_progress
from .outcome import EXIT_FAILED, EXIT_USAGE, Outcome
from .report import RunReport
from .webhooks.spool import has_finished_segment

POLL_SECONDS = 0.2
# Events that arrive together are loaded together.
DEBOUNCE_SECONDS = 0.1
# Of one core, and of one disk.
MAX_SHARE = 0.25
# The limit of the cost of publishing: a disk that stalls for minutes delays the next cycle by 5 minutes at most.
MAX_PUBLISH_SECONDS = 75.0
# The most that time without cycles saves up, in CPU seconds: the cost of a cycle that starts dbt (about 9), because
# the event after it should not wait for half a minute.
MAX_CREDIT_SECONDS = 10.0
# While there is credit, no cycle makes the next one wait longer. At this interval, cycles of up to a CPU second take a
# quarter of a core, and so leave the credit to expensive ones.
MAX_REST_SECONDS = 4.0
LOCKED_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 3600.0


@dataclass
class Cycle:
    """One cycle.

    Attributes:
        is_full: It ran the whole job, and not only loaded events.
        started_at: By the monotonic clock, because that of the machine may be set.
        outcome: How it ended; null if another job was active.
        report: Null if it ended before the job started.
        cost_seconds: Its CPU time, or the time to publish if that was longer, up to `MAX_PUBLISH_SECONDS`.
    """

    is_full: bool
    started_at: float
    outcome: Outcome | None = None
    report: RunReport | None = None
    cost_seconds: float = 0.0

    @property
    def has_failed(self) -> bool:
        return self.outcome is not None and self.outcome.exit_status in (EXIT_FAILED, EXIT_USAGE)


@dataclass
class Budget:
    """The CPU time that cycles may take: a quarter of one core, and what they have not taken before, within limits.

    Attributes:
        credit_seconds: What was left when the last cycle had been paid for. Negative if it has to be saved first.
        counted_at: When that cycle started.
    """

    credit_seconds: float = MAX_CREDIT_SECONDS
    counted_at: float = 0.0

    def charge(self, cycle: Cycle) -> float:
        """Charge the cost of a cycle, and return when the next one may start at the earliest."""
        saved = MAX_SHARE * max(cycle.started_at - self.counted_at, 0.0)
        self.credit_seconds = min(self.credit_seconds + saved, MAX_CREDIT_SECONDS) - cycle.cost_seconds
        self.counted_at = cycle.started_at
        rest = min(cycle.cost_seconds / MAX_SHARE, MAX_REST_SECONDS)
        return cycle.started_at + max(rest, -self.credit_seconds / MAX_SHARE)


@dataclass
class Watch:
    """The schedule of the cycles.

    A full cycle runs the job, every `every_seconds`; after n failures in a row, 2ⁿ times as much later. Between full
    cycles, a cycle for events only loads what the webhook receiver has stored, also while the API fails, but not if
    something else ended the last cycle.

    Attributes:
        run_job: Runs the job.
        load_events: Loads the events.
        explain: Explains an exception.
        on_cycle: Is called after each cycle, and returns whether to go on.
    """

    spool: Path
    every_seconds: float
    stop: threading.Event
    run_job: Callable[[], RunReport]
    load_events: Callable[[], RunReport]
    explain: Callable[[Exception], Outcome]
    on_cycle: Callable[[Cycle], bool]
    budget: Budget = field(default_factory=Budget)
    failures: int = 0
    loads_events: bool = True
    next_full_at: float = 0.0

    def run(self) -> None:
        """Run cycles until `stop` is set or `on_cycle` ends it.

        Raises what keeps the first job from starting, unless that may pass, as a full disk does.
        """
        is_first = True
        while not self.stop.is_set():
            cycle = self._run_cycle(is_first=is_first)
            if not self.on_cycle(cycle):
                return
            earliest = self._schedule(cycle)
            # The objects of a cycle refer to each other: left alone, those of some 80 cycles would stay in memory.
            del cycle
            gc.collect()
            if is_first:
                gc.freeze()  # what has been imported, which takes most of the time of a collection
            self._wait(earliest)
            is_first = False

    def _run_cycle(self, *, is_first: bool) -> Cycle:
        now = time.monotonic()
        cycle = Cycle(now >= self.next_full_at, now)
        before = _read_cpu_seconds()
        try:
            cycle.report = self.run_job() if cycle.is_full else self.load_events()
            cycle.outcome = cycle.report.outcome
        except AnotherJobRunsError:
            return cycle
        except Exception as error:
            cycle.outcome = self.explain(error)
            if is_first and cycle.outcome.exit_status != EXIT_FAILED:
                raise
        publish_seconds = cycle.report.seconds.get("publish", 0.0) if cycle.report else 0.0
        cycle.cost_seconds = max(_read_cpu_seconds() - before, min(publish_seconds, MAX_PUBLISH_SECONDS))
        return cycle

    def _schedule(self, cycle: Cycle) -> float:
        """Set when the next full cycle is due, and return when the next cycle may start at the earliest."""
        if cycle.outcome is None:
            self.next_full_at = max(self.next_full_at, time.monotonic() + LOCKED_SECONDS)
            return time.monotonic() + LOCKED_SECONDS
        self.loads_events = not cycle.has_failed or (cycle.report is not None and cycle.report.failure is None)
        if cycle.is_full or cycle.has_failed:
            self.failures = self.failures + 1 if cycle.has_failed else 0
            longest = max(MAX_BACKOFF_SECONDS, self.every_seconds)
            self.next_full_at = cycle.started_at + min(self.every_seconds * 2**self.failures, longest)
        return self.budget.charge(cycle)

    def _wait(self, earliest: float) -> None:
        """Wait until a cycle is due."""
        events_at = None
        while not self.stop.wait(POLL_SECONDS):
            record_progress()
            now = time.monotonic()
            if now < earliest:
                continue
            if now >= self.next_full_at:
                return
            if self.loads_events and has_finished_segment(self.spool):
                events_at = events_at or now
                if now >= events_at + DEBOUNCE_SECONDS:
                    return


def _read_cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
