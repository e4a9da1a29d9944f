"""The scheduled job: brings a DuckDB warehouse up to date with a MsgBubbles account.

    python pipelines/chats.py                 # with the API key from dlt_config/secrets.toml or the environment
    python pipelines/chats.py --sandbox       # with a made-up account on this machine

Exit status: 0 complete; 3 complete, but rows were rejected or out of reach; 1 failed, the next run goes on; 2 wrong
usage or configuration; 75 another job runs on the database; 130 stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from warehouse.lock import AnotherJobRunsError, one_job
from warehouse.place import ROOT, Place, UsageError
from warehouse.report import Reporter

if TYPE_CHECKING:
    from msgbubbles import Run

EXIT_FAILED, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED = 1, 2, 3, 75, 130

NO_KEY = """No API key. Either

  try it with a made-up account:   python pipelines/chats.py --sandbox
  or use your own key:             export SOURCES__MSGBUBBLES__API_KEY=sk_live_...
                                   (or copy dlt_config/secrets.toml.example to secrets.toml and put it there)"""


class DefaultsToSync(TyperGroup):
    """`chats.py` alone, or with options only, is `chats.py sync`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["sync", *args]
        return list(super().parse_args(ctx, args))


# \b keeps the help from running the lines of a paragraph together.
HELP = __doc__.replace("\n\n", "\n\n\b\n")

app = typer.Typer(
    cls=DefaultsToSync, help=HELP, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def main() -> None:
    pass


@app.command()
def sync(
    database: Annotated[
        Path | None,
        typer.Option(
            help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]"
        ),
    ] = None,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Use a made-up account on this machine; no key.")] = False,
    since: Annotated[
        datetime | None, typer.Option(help="Read nothing older than this day (UTC).", formats=["%Y-%m-%d"])
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many requests; the next run goes on.")
    ] = None,
    no_transform: Annotated[bool, typer.Option("--no-transform", help="Load and publish; leave the marts.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON.")] = False,
) -> None:
    """Load what is new, build the marts, publish (this is the default command)."""
    reporter = Reporter(quiet=quiet, as_json=as_json)
    place = None
    try:
        place = Place.of(database or ROOT / ("sandbox.duckdb" if sandbox else "warehouse.duckdb"))
        place.make_folders()
        place.configure_dlt()
        with one_job(place.folder):
            status = _sync(place, reporter, sandbox, since, max_requests, with_transform=not no_transform)
    except UsageError as error:
        reporter.fail(str(error))
        status = EXIT_USAGE
    except AnotherJobRunsError as error:
        reporter.fail(str(error))
        status = EXIT_LOCKED
    except KeyboardInterrupt:
        reporter.fail("stopped at once; what was loaded stays, and the next run goes on from there")
        status = EXIT_STOPPED
    except Exception as error:
        status, message = _explained(error, place)
        reporter.fail(message)
    sys.stdout.flush()
    raise typer.Exit(status)


def _sync(
    place: Place,
    reporter: Reporter,
    sandbox: bool,
    since: datetime | None,
    max_requests: int | None,
    *,
    with_transform: bool,
) -> int:
    # dlt reads its configuration when it is imported, which therefore has to wait until here.
    import dlt

    from msgbubbles import Run
    from msgbubbles.errors import Interrupted
    from msgbubbles.reading import MIN_SLICE_PAGES
    from warehouse.sync import sync as run_sync

    if not sandbox and not dlt.secrets.get("sources.msgbubbles.api_key"):
        raise UsageError(NO_KEY)
    place.claim_for("the sandbox" if sandbox else "a MsgBubbles account")
    options: dict[str, Any] = {}
    if since is not None:
        options["start_date"] = f"{since:%Y-%m-%d}"
    slice_pages = dlt.config.get("sync.slice_pages", int) or 500
    if slice_pages < MIN_SLICE_PAGES:
        raise UsageError(f"sync.slice_pages is {slice_pages}; it must be {MIN_SLICE_PAGES} at least")
    run = Run(slice_pages=slice_pages, max_requests=max_requests)
    with _stopped_by_signals(run), _sandbox(place) if sandbox else _nothing() as account, reporter.following(run):
        report = run_sync(place, run, options | account, with_transform=with_transform, say=reporter.say)
    reporter.summary(place, run, report, sandbox=sandbox)
    if isinstance(run.halt, Interrupted):
        return EXIT_STOPPED
    if run.error is not None:
        return EXIT_FAILED
    lossy = any(progress.rejected or progress.overflows for progress in run.streams.values())
    return EXIT_INCOMPLETE if lossy else 0


@contextmanager
def _stopped_by_signals(run: Run) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops after the page in flight; a second one stops at once."""

    def stop(_number: int, _frame: object) -> None:
        if run.stop.is_set():
            raise KeyboardInterrupt
        run.stop.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _sandbox(place: Place) -> Iterator[dict[str, Any]]:
    """A made-up account, served by a process of its own that ends with this one. Yields how to reach it."""
    command = [sys.executable, "-m", "sandbox", "--until-stdin-closes", "--state", str(place.folder / "sandbox.sqlite")]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipelines")},
        start_new_session=True,  # Ctrl-C is for the job
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise UsageError("the sandbox did not start")
            account = json.loads(line)
            # The budget of a made-up key is nobody else's business.
            yield {"api_key": account["key"], "base_url": account["url"], "budget_dir": str(place.folder)}
        finally:
            if process.stdin:
                process.stdin.close()


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}


def _explained(error: Exception, place: Place | None) -> tuple[int, str]:
    """The exit status for an error, and what to say of it. What the database or dlt say may quote rows, so that goes
    to a file that only the user reads."""
    from msgbubbles.errors import ConfigurationError, MsgBubblesError
    from warehouse.transform import TransformError

    if isinstance(error, ConfigurationError):
        return EXIT_USAGE, str(error)
    if isinstance(error, MsgBubblesError | TransformError) or place is None:
        return EXIT_FAILED, str(error)
    path = place.folder / "last_error.txt"
    path.touch(mode=0o600)
    path.write_text("".join(traceback.format_exception(error)))
    return EXIT_FAILED, f"{type(error).__name__}; what was loaded stays. Details, which may quote your data: {path}"


if __name__ == "__main__":
    app()
