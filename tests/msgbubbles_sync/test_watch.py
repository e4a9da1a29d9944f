"""The schedule of `chats.py watch`, with jobs that cost nothing."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.context import build_context
from helpers.hooks import spool, typing
from msgbubbles.source.run import Run
from msgbubbles_sync import watch
from msgbubbles_sync.cli.commands import watch as watch_command
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import AnotherJobRunsError
from msgbubbles_sync.outcome import Outcome
from msgbubbles_sync.report import RunReport
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.watch import Budget, Cycle, Watch
from msgbubbles_sync.watch_health import Health, serve_health
from msgbubbles_sync.webhooks.spool import spool_folder
from msgbubbles_sync.workspace import Workspace


@dataclass
class Jobs:
    """What the cycles of a watch do: each full one the next of `ends`, and then the watch stops."""

    workspace: Workspace
    ends: list[int | Exception]
    cycles: list[Cycle] = field(default_factory=list)
    publish_seconds: float = 0.0

    def report(self, status: int) -> RunReport:
        seconds = {"publish": self.publish_seconds}
        return RunReport(build_context(self.workspace), Run(), outcome=Outcome(status), seconds=seconds)

    def run_job(self) -> RunReport:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return self.report(end)

    def load_events(self) -> RunReport:
        for path in spool_folder(self.workspace).glob("*.jsonl"):
            path.unlink()
        return self.report(0)

    def add(self, cycle: Cycle) -> bool:
        self.cycles.append(cycle)
        return bool(self.ends)

    def watch(self, every_seconds: float) -> Watch:
        return Watch(
            spool_folder(self.workspace), every_seconds, threading.Event(), self.run_job, self.load_events,
            lambda error: Outcome(2 if isinstance(error, UsageError) else 1, str(error)), self.add,
        )  # fmt: skip

    @property
    def gaps(self) -> list[float]:
        starts = [cycle.started_at for cycle in self.cycles]
        return [after - before for before, after in itertools.pairwise(starts)]


@pytest.fixture
def new_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Jobs]:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "DEBOUNCE_SECONDS", 0.02)
    monkeypatch.setattr(watch, "LOCKED_SECONDS", 0.3)
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    return lambda *ends: Jobs(workspace, list(ends))


def test_failures_double_the_interval_until_a_success(new_jobs: Callable[..., Jobs]) -> None:
    jobs = new_jobs(OSError("full"), 0, 1, OSError("gone"), 3, 0)
    jobs.watch(0.2).run()
    assert [cycle.outcome.exit_status for cycle in jobs.cycles if cycle.outcome] == [1, 0, 1, 1, 3, 0]
    assert [gap >= seconds for gap, seconds in zip(jobs.gaps, (0.4, 0.2, 0.4, 0.8, 0.2), strict=True)] == [True] * 5


def test_cycle_takes_a_quarter_of_a_core_until_the_next(
    new_jobs: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = new_jobs(0, 0)
    cost = iter((0.0, 0.2, 0.2, 0.4))
    monkeypatch.setattr(watch, "_read_cpu_seconds", lambda: next(cost))
    jobs.watch(0.01).run()
    assert 0.8 <= jobs.gaps[0] < 2


@pytest.mark.parametrize(("cost_seconds", "credit"), [(0.1, 0.0), (1.0, 0.0), (1.4, 10.0), (40.0, 10.0)])
def test_only_expensive_cycles_take_more_than_a_quarter_of_a_core_until_the_credit_is_used(
    cost_seconds: float, credit: float
) -> None:
    budget, at, taken = Budget(), 1e9, 0.0
    for _ in range(500):
        at = budget.charge(Cycle(False, at, cost_seconds=cost_seconds))
        taken += cost_seconds
        assert taken <= 0.25 * (at - 1e9) + credit + 1e-3


def test_expensive_cycle_after_a_rest_does_not_delay_the_next() -> None:
    budget = Budget()
    assert [budget.charge(Cycle(True, at, cost_seconds=9.0)) - at for at in (0.0, 3.0, 100.0)] == [4.0, 29.0, 4.0]
    assert budget.charge(Cycle(False, 103.0, cost_seconds=0.5)) == 105.0, "and cheap ones take what time brings"


def test_credit_is_limited_however_long_the_rest() -> None:
    budget = Budget()
    budget.charge(Cycle(True, 0.0, cost_seconds=1.0))
    assert budget.charge(Cycle(True, 1e6, cost_seconds=15.0)) == 1e6 + 20.0


def test_publishing_that_stalls_delays_the_next_cycle_by_five_minutes_at_most(new_jobs: Callable[..., Jobs]) -> None:
    jobs = new_jobs(0)
    jobs.publish_seconds = 1800.0
    jobs.watch(1).run()
    assert Budget(counted_at=jobs.cycles[0].started_at).charge(jobs.cycles[0]) <= jobs.cycles[0].started_at + 300


def test_clock_that_is_set_back_delays_no_cycle(new_jobs: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, now = new_jobs(0, 0, 0), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * len(jobs.cycles))
    watching = jobs.watch(0.1)
    limit = threading.Timer(20, watching.stop.set)
    limit.start()
    watching.run()
    limit.cancel()
    assert len(jobs.cycles) == 3


def test_what_a_cycle_leaves_is_freed_before_the_next(
    new_jobs: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, left, freed = new_jobs(0, 0), weakref.WeakSet[Any](), []
    report = jobs.report

    def report_and_leave(status: int) -> RunReport:
        freed.append(not left)
        event: Any = threading.Event()
        event.itself = event
        left.add(event)
        return report(status)

    monkeypatch.setattr(jobs, "report", report_and_leave)
    jobs.watch(0.01).run()
    assert freed == [True, True]


def test_another_job_is_waited_for(new_jobs: Callable[..., Jobs]) -> None:
    jobs = new_jobs(AnotherJobRunsError("busy"), 0)
    jobs.watch(3600).run()
    assert [cycle.outcome for cycle in jobs.cycles] == [None, Outcome(0)]
    assert jobs.gaps[0] >= 0.3


def test_first_cycle_that_cannot_start_ends_the_watch(new_jobs: Callable[..., Jobs]) -> None:
    with pytest.raises(UsageError, match="no key"):
        new_jobs(UsageError("no key")).watch(0.1).run()


def test_events_start_a_cycle_between_full_ones_but_not_after_a_failure(new_jobs: Callable[..., Jobs]) -> None:
    jobs = new_jobs(0, 1, 0, 0)
    spool(jobs.workspace, [typing(1)])
    jobs.watch(0.4).run()
    assert [cycle.is_full for cycle in jobs.cycles[:3]] == [True, False, True]
    spool(jobs.workspace, [typing(2)])
    jobs.cycles.clear()
    jobs.ends = [1, 1, 0]  # the API fails, and the job reaches its end
    jobs.watch(0.2).run()
    assert [cycle.is_full for cycle in jobs.cycles] == [True, False, True, True]
    assert jobs.gaps[2] >= 0.8, "events do not shorten the pause after a failure"
    jobs.cycles.clear()
    jobs.ends = [0, OSError("full disk"), 0]
    watching = jobs.watch(0.2)
    on_cycle = watching.on_cycle

    def spool_after_the_failure(cycle: Cycle) -> bool:
        if cycle.has_failed:
            spool(jobs.workspace, [typing(3)])
        return on_cycle(cycle)

    watching.on_cycle = spool_after_the_failure
    watching.run()
    assert [cycle.is_full for cycle in jobs.cycles] == [True, True, True]


def test_health_and_metrics_show_the_last_success(new_jobs: Callable[..., Jobs]) -> None:
    jobs = new_jobs()
    health = Health(every_seconds=1)
    with serve_health(health, ("127.0.0.1", 0)) as url:
        health.add(Cycle(True, time.monotonic() - 100_000, Outcome(0), jobs.report(0), 0.5))
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 503
        health.add(Cycle(True, time.monotonic(), Outcome(3), jobs.report(3), 0.5))
        health.add(Cycle(False, time.monotonic(), Outcome(1, "full disk"), None))
        assert httpx.get(f"{url}/health", trust_env=False).json()["healthy"] is True
        metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'msgbubbles_watch_cycles_total{kind="events",status="1"} 1.0' in metrics
    assert "process_resident_memory_bytes" in metrics
    with pytest.raises(UsageError, match="cannot be listened on"), serve_health(health, ("192.0.2.1", 0)):
        pass


@pytest.mark.parametrize("half", ["", "[sync", "[sync]\npublish_min"])
def test_configuration_that_is_being_saved_is_read_again(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    path = tmp_path / "dlt_config" / "config.toml"
    path.parent.mkdir()
    path.write_text(half)
    monkeypatch.setattr(watch_command, "QUIET_SECONDS", 0.3)
    saved = threading.Timer(0.5 if half else 0.1, path.write_text, ["[sync]\npublish_minutes = 30\n"])
    saved.start()
    watch_command._wait_until_saved(threading.Event())
    assert load_settings().sync.publish_minutes == 30
    path.write_text(half)
    monkeypatch.setattr(watch_command, "SECONDS_TO_SAVE", 0.0)
    watch_command._wait_until_saved(threading.Event())  # it is as somebody wants it, right or wrong


def test_invalid_configuration_stops_loading_only_if_it_is_about_privacy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    path = tmp_path / "dlt_config" / "config.toml"
    path.parent.mkdir()
    private = "[sources.msgbubbles.privacy]\ntext_days = 9\n\n[sync]\n"
    path.write_text(private)
    monkeypatch.setattr(watch_command, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(watch_command, "SECONDS_TO_SAVE", 0.0)
    changes, stop, errors = watch_command.Changes(), threading.Event(), list[str]()
    assert not changes.are_ready(stop, errors.append)
    for _ in range(2):
        path.write_text(f"{private}publish_minute = 30\n")
        assert not changes.are_ready(stop, errors.append)
    assert len(errors) == 1
    assert "Did you mean publish_minutes?" in errors[0]
    assert "the one before stays in use" in changes.as_failed_parts()["configuration"]

    def correct(message: str) -> None:
        errors.append(message)
        path.write_text(f"{private}publish_minutes = 30\n")

    path.write_text(private.replace("text_days = 9", 'text = "drap"'))
    assert changes.are_ready(stop, correct), "it waits until the file is valid"
    assert "nothing is loaded" in errors[1]
    stop.set()
    path.write_text("[sources.msgbubbles.privacy")
    assert changes.are_ready(stop, errors.append)
