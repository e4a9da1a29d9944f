"""Report the progress, results and errors of a command. Never prints a handle, a text or a key."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from msgbubbles.times import from_epoch_ms
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.extras import IS_CHECKOUT
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.text import format_count

if TYPE_CHECKING:
    from msgbubbles.source.run import Run

# A script of this project, as messages and help texts name it.
SCRIPT_NAME = re.compile(r"(?:python pipelines/)?\b(chats|groups|webhooks)\.py\b")
SECONDS_BETWEEN_LINES = 15.0
# How long a stream is read before its speed is known well enough for an estimate.
SECONDS_BEFORE_ESTIMATE = 5.0
# Output that is piped or stored is not wrapped.
PIPED_WIDTH = 1000


def name_as_called(text: str) -> str:
    """Name commands as this process was called: as scripts, or as `msgbubbles chats` and so on."""
    is_script = IS_CHECKOUT and Path(sys.argv[0]).name != "msgbubbles"
    return text if is_script else SCRIPT_NAME.sub(r"msgbubbles \1", text)


class Reporter:
    """Progress and errors go to stderr, results to stdout."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._progress = Console(stderr=True, quiet=quiet, highlight=False, emoji=False, width=_get_width(sys.stderr))
        self._output = Console(quiet=quiet, highlight=False, emoji=False, width=_get_width(sys.stdout))
        self._status: Status | None = None
        self._reported_at = time.monotonic()

    def fail(self, message: str) -> None:
        """Print an error, also with `--quiet`."""
        sys.stderr.write(f"{name_as_called(message)}\n")

    def say(self, message: str) -> None:
        """Print a line of progress."""
        record_progress(progress=message)
        self._progress.print(f"[dim]{message}[/dim]")
        self._reported_at = time.monotonic()

    @contextmanager
    def follow(self, run: Run) -> Iterator[None]:
        """Show the progress of a run: one line that changes on a terminal, a line now and then elsewhere."""
        estimate = _Estimate()

        def describe() -> str:
            return describe_progress(run) + estimate.describe(run)

        run.on_page = lambda: self.progress(describe())
        run.on_wait = lambda reason, seconds: self.progress(describe(), seconds, reason)
        if not self._progress.is_terminal:
            yield
            return
        spinner = "dots" if self._progress.encoding.startswith("utf") else "line"
        try:
            with self._progress.status("connecting to the API", spinner=spinner) as self._status:
                yield
        finally:
            self._status = None

    def progress(self, line: str, waiting_seconds: float = 0.0, reason: str = "rate limit") -> None:
        """Show how far the work is: always on a terminal, now and then elsewhere."""
        text = describe_wait(line, waiting_seconds, reason) if waiting_seconds else line
        record_progress(waiting_seconds, text)
        if self._status is not None:
            self._status.update(_Countdown(line, waiting_seconds, reason) if waiting_seconds else line)
        elif time.monotonic() - self._reported_at > SECONDS_BETWEEN_LINES:
            self.say(text)
            record_progress(waiting_seconds, text)

    def print(self, as_dict: Any, show: Callable[[Console], None]) -> None:
        """Print one line of JSON, or call `show`."""
        if self.as_json:
            sys.stdout.write(json.dumps(as_dict) + "\n")
        else:
            show(self._output)

    def print_text(self, as_dict: Any, text: str) -> None:
        """Print one line of JSON, or the text."""
        self.print(as_dict, lambda console: console.print(name_as_called(text), markup=False, soft_wrap=True))


class _Countdown:
    """A line of progress with the seconds left to wait. The terminal is redrawn several times a second."""

    def __init__(self, line: str, seconds: float, reason: str) -> None:
        self._line, self._reason = line, reason
        self._until = time.monotonic() + seconds

    def __rich__(self) -> str:
        return describe_wait(self._line, max(self._until - time.monotonic(), 0), self._reason)


class _Estimate:
    """Estimates when a backfill is complete, if the configuration says where it ends (`start_date` or `--since`)."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def describe(self, run: Run) -> str:
        now = time.monotonic()
        for name, progress in run.streams.items():
            start_ms, reached_ms = run.settings.start_ms, progress.reached_ms
            if start_ms <= 0 or reached_ms is None:
                continue
            began, first_ms = self._first.setdefault(name, (now, reached_ms))
            if now - began > SECONDS_BEFORE_ESTIMATE and first_ms > reached_ms > start_ms:
                seconds = (reached_ms - start_ms) * (now - began) / (first_ms - reached_ms)
                share = (time.time() * 1000 - reached_ms) / (time.time() * 1000 - start_ms)
                return f" · {name} {share:.0%}, about {format_count(max(round(seconds / 60), 1), 'minute')} left"
        return ""


def build_table(headings: Sequence[str], left: Collection[str]) -> Table:
    """Build a table of these columns: those in `left` hold text, the others numbers."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right")
    return table


def print_warning(console: Console, line: str) -> None:
    console.print(line, style="yellow", markup=False, soft_wrap=True)


def check_terminal() -> None:
    """Check that somebody can answer a question. Raises `UsageError`."""
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal; pass --yes to skip the confirmation")


def confirm(question: str) -> bool:
    """Ask a question on the terminal. Ctrl-C and Ctrl-D mean no."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


def describe_wait(line: str, seconds: float, reason: str) -> str:
    """Return a line of progress with a wait."""
    return " · ".join(filter(None, [line, f"waiting {seconds:.0f} s ({reason})"]))


def describe_progress(run: Run) -> str:
    """Return what a run has read so far."""
    streams = [
        f"{name} {progress.rows:,}" + (f" back to {format_day(progress.reached_ms)}" if progress.reached_ms else "")
        for name, progress in run.streams.items()
        if name != "numbers"
    ]
    return " · ".join([*streams, count_requests(run)])


def count_requests(run: Run) -> str:
    """Return the number of requests, and how much of the rate limit is used."""
    traffic = run.traffic
    window = f" ({traffic.window_requests} of {traffic.window_limit} this minute)" if traffic.window_limit else ""
    return f"{format_count(traffic.total, 'request')}{window}"


def format_day(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{from_epoch_ms(at_ms):%Y-%m-%d}"


def _get_width(stream: Any) -> int | None:
    """Return the width of lines on a stream; null on a terminal, which has its own."""
    return None if stream.isatty() else PIPED_WIDTH
