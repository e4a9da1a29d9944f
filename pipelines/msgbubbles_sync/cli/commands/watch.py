"""`chats.py watch`: runs of the job, one after another."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime

from msgbubbles.configuration import FILES
from msgbubbles.errors import ConfigurationError
from msgbubbles_sync import job
from msgbubbles_sync.cli.connection import connect
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.output import limit_waiting
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.cli.sync_report import print_incomplete
from msgbubbles_sync.context import Context, Limits
from msgbubbles_sync.lock import hold_lock, record_progress
from msgbubbles_sync.outcome import EXIT_STOPPED, explain_end
from msgbubbles_sync.report import RunReport
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.watch import Cycle, Watch
from msgbubbles_sync.webhooks.spool import spool_folder
from msgbubbles_sync.workspace import configuration_folder

from . import sync

# A signal ends the process at the latest after so long; a run may be killed at any time.
SECONDS_TO_STOP = 10.0
# An editor may be saving a changed configuration: it is used once it has not changed for so long, and read again for
# so long while it is invalid.
QUIET_SECONDS = 1.0
SECONDS_TO_SAVE = 5.0
# The parts of a configuration file about privacy: from each line that names it to the next section.
PRIVACY = re.compile(r"^[^#\n]*privacy.*?(?=^\s*\[|\Z)", re.I | re.M | re.S)
STILL_IN_USE = "the configuration has changed and is not valid: the one before stays in use. {error}"
NOT_LOADED = "the configuration has changed and is not valid, and may ask for more privacy: nothing is loaded. {error}"


class _Stop(threading.Event):
    """Ends the process if it has not stopped in time."""

    def set(self) -> None:
        if not self.is_set():
            timer = threading.Timer(SECONDS_TO_STOP, os._exit, [EXIT_STOPPED])
            timer.daemon = True
            timer.start()
        super().set()


def run(session: Session, every_seconds: float, health_address: tuple[str, int] | None) -> int:
    """Run the job until a signal arrives, which is a success. Starts itself again when the configuration changes."""
    limit_waiting()
    workspace, reporter = session.context.workspace, session.reporter
    stop, changes = _Stop(), Changes(workspace.account)
    observers: list[Callable[[Cycle], None]] = [lambda cycle: _print(cycle, reporter)]
    with ExitStack() as stack:
        stack.enter_context(hold_lock(workspace.folder, "watch"))
        stack.enter_context(stopped_by_signals(stop))
        if health_address is not None:
            from msgbubbles_sync.watch_health import Health, serve_health  # the extra `webhooks`

            health = Health(every_seconds, lambda: changes.error)
            observers.append(health.add)
            stack.enter_context(serve_health(health, health_address))
        reached = stack.enter_context(connect(session)).context

        def locked(run: Callable[[Context, Limits], RunReport]) -> RunReport:
            with hold_lock(workspace.folder):
                # Another command may have changed what a context has cached.
                context = replace(reached, failed_parts=changes.as_failed_parts(), opened=None)
                with context.destination.stay_open():
                    sync.prepare(replace(session, context=context))
                    return run(context, Limits(stop=stop))

        def on_error(message: str) -> None:
            reporter.fail(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {message}")

        def on_cycle(cycle: Cycle) -> bool:
            for observe in observers:
                observe(cycle)
            return not changes.are_ready(stop, on_error)

        Watch(
            spool_folder(workspace),
            every_seconds,
            stop,
            lambda: locked(job.run),
            lambda: locked(job.load_webhooks),
            lambda error: explain_end(error, session.context),
            on_cycle,
        ).run()
    if not stop.is_set():
        reporter.say("the configuration has changed; starting again")
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - as this process was started
    return 0


class Changes:
    """The changes of the configuration files since the watch has started. `error` is what is wrong with them."""

    def __init__(self, account: str | None = None) -> None:
        self._account = account
        self._marks, self._privacy, self.error = _read_marks(), _read_privacy(), ""

    def as_failed_parts(self) -> dict[str, str]:
        return {"configuration": self.error} if self.error else {}

    def are_ready(self, stop: threading.Event, on_error: Callable[[str], None]) -> bool:
        """Return whether to start again with a changed configuration, or to stop.

        While it is invalid, the one before stays in use. If it may be about privacy, waits instead, because rows must
        not be loaded under a policy that is no longer wanted.
        """
        if _read_marks() == self._marks:
            return False
        _wait_until_saved(stop, self._account)
        while not stop.is_set():
            error, is_private = _find_error(self._account), _read_privacy() != self._privacy
            self._marks = _read_marks()
            if not error:
                return True
            message = (NOT_LOADED if is_private else STILL_IN_USE).format(error=error)
            if message != self.error:
                on_error(message)
            self.error = message
            if not is_private:
                return False
            record_progress()
            stop.wait(QUIET_SECONDS)
        return True


def _wait_until_saved(stop: threading.Event, account: str | None = None) -> None:
    marks, deadline = None, time.monotonic() + SECONDS_TO_SAVE
    while marks != (marks := _read_marks()) or (time.monotonic() < deadline and _find_error(account)):
        if stop.wait(QUIET_SECONDS):
            return


def _find_error(account: str | None) -> str:
    try:
        load_settings(account)
    except ConfigurationError as error:
        return str(error)
    return ""


def _read_privacy() -> list[str]:
    """Return what the configuration files say about privacy, as text: they may be invalid."""
    texts = []
    for name in FILES:
        with suppress(OSError):  # an unreadable file differs from one with these settings
            texts += PRIVACY.findall((configuration_folder() / name).read_text(errors="replace"))
    return texts


def _read_marks() -> list[tuple[str, int, int]]:
    """Return what changes when one of the configuration files does."""
    marks = []
    for name in FILES:
        with suppress(FileNotFoundError):  # missing, or being replaced
            stat = (configuration_folder() / name).stat()
            marks.append((name, stat.st_mtime_ns, stat.st_ino))
    return marks


def _print(cycle: Cycle, reporter: Reporter) -> None:
    """Print a line for a cycle: as JSON its record, for people how it ended."""
    outcome, report = cycle.outcome, cycle.report
    if outcome is None:
        reporter.say("another job is active; trying again")
    elif reporter.as_json:
        if report is not None and (cycle.is_full or report.published):
            sys.stdout.write(json.dumps(report.record) + "\n")
    elif outcome.message:
        reporter.fail(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {outcome.message}")
    elif report is not None and report.published:
        rows = sum(changes.new + changes.changed for changes in report.run.changes.values())
        what = f"{rows:,} rows new or changed" if cycle.is_full else "events loaded"
        reporter.print_text({}, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {what}; published")
    if report is not None and cycle.is_full and not reporter.as_json:
        print_incomplete(reporter, report)
    sys.stdout.flush()
