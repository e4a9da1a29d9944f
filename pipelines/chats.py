"""The scheduled job: brings a DuckDB warehouse up to date with a MsgBubbles account.

    python pipelines/chats.py                 # with the API key from dlt_config/secrets.toml or the environment
    python pipelines/chats.py --sandbox       # with a made-up account on this machine

Exit status: 0 complete; 3 complete, but rows were rejected or out of reach; 1 failed, the next run goes on; 2 wrong
usage or configuration; 75 another job runs on the database; 130 stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from warehouse.destinations import destination_of
from warehouse.journal import Journal
from warehouse.lock import AnotherJobRunsError, one_job
from warehouse.place import ROOT, Place, UsageError
from warehouse.report import Reporter

if TYPE_CHECKING:
    from msgbubbles import Run
    from msgbubbles.settings import Settings
    from msgbubbles.transport import Transport
    from warehouse.verify import Verdict

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


Database = Annotated[
    Path | None,
    typer.Option(
        "--database", help="The DuckDB file for readers. [default: warehouse.duckdb, or sandbox.duckdb, in the project]"
    ),
]
Into = Annotated[Literal["duckdb", "postgres"], typer.Option("--destination", help="Where the tables are.")]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Use a made-up account on this machine; no key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON.")]


@app.command()
def sync(
    database: Database = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    since: Annotated[
        datetime | None, typer.Option(help="Read nothing older than this day (UTC).", formats=["%Y-%m-%d"])
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many requests; the next run goes on.")
    ] = None,
    no_transform: Annotated[bool, typer.Option("--no-transform", help="Load and publish; leave the marts.")] = False,
    accept_ties: Annotated[
        bool, typer.Option("--accept-ties", help="Forget the tie overflows that are known; nothing is missing there.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load what is new, build the marts, publish (this is the default command)."""
    reporter = Reporter(quiet=quiet, as_json=as_json)

    def body(place: Place) -> int:
        place.make_folders()
        place.configure_dlt()
        with one_job(place.folder):
            return _recorded_sync(place, reporter, sandbox, since, max_requests, accept_ties, not no_transform, as_json)

    _ended(body, _place(database, destination, sandbox), reporter)


@app.command()
def plan(
    database: Database = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    probe: Annotated[bool, typer.Option("--probe", help="Spend one request to see how many chats are new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the next run would read and what that costs. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(place: Place) -> int:
        with _configured(place, sandbox, serve=probe) as (options, run, settings):
            from warehouse import plan as planning
            from warehouse.known import Known

            known = Known(place)
            steps = planning.steps(known, settings, int(time.time() * 1000))
            fresh = planning.probe(known, _transport(options, run)) if probe else None
            reporter.plan(steps, fresh, _requests_per_minute(options))
        return 0

    _ended(body, _place(database, destination, sandbox), reporter)


@app.command()
def check(
    database: Database = None, destination: Into = "duckdb", sandbox: Sandbox = False, as_json: AsJson = False
) -> None:
    """Look at everything a run needs, and at how the API behaves. Exit status 3 when something has to be mended."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(place: Place) -> int:
        with _configured(place, sandbox) as (options, run, _settings):
            from warehouse.check import findings

            run.max_requests = 20
            found = reporter.findings(findings(place, lambda: _transport(options, run, max_attempts=2)))
        return EXIT_INCOMPLETE if any(one.state == "failed" for one in found) else 0

    _ended(body, _place(database, destination, sandbox), reporter)


@app.command()
def verify(
    database: Database = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare so many chats, picked at random, and all their messages.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare everything.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Then read again what differs, and compare again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the published warehouse with the API, field by field. Exit status 3 when they differ."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(place: Place) -> int:
        if full == (sample is not None):
            raise UsageError("verify: say --full, or --sample 20")
        if not destination_of(place).exists():
            raise UsageError(f"verify: {place.database} is not there; run the sync first")
        with _configured(place, sandbox) as (options, run, settings), _stopped_by_signals(run), reporter.following(run):
            from msgbubbles import Client
            from warehouse.known import Known
            from warehouse.verify import verify as compare

            with Client(_transport(options, run)) as client:
                verdict = compare(Known(place), client, settings, sample=sample, on_page=run.on_page)
            if repair and not verdict.is_equal:
                _repaired(place, reporter, options, verdict)
                with Client(_transport(options, run)) as client:
                    verdict = compare(Known(place), client, settings, sample=sample, on_page=run.on_page)
        reporter.verdict(verdict, run)
        return 0 if verdict.is_equal else EXIT_INCOMPLETE

    _ended(body, _place(database, destination, sandbox), reporter)


@app.command()
def status(
    database: Database = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    max_age_minutes: Annotated[
        float | None, typer.Option(help="Exit with status 3 when the last complete run is older than this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how fresh and how complete the copy is, and what the last runs did. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(place: Place) -> int:
        with _configured(place, sandbox, serve=False) as (_options, _run, settings):
            from warehouse.known import Known
            from warehouse.status import show, status_of

            known, now = Known(place), datetime.now(UTC)
            found = status_of(known, settings.start_ms, now)
            reporter.print(found.as_dict(), lambda console: show(found, known, settings.start_ms, now, console))
        stale = found.age_minutes is None or (max_age_minutes is not None and found.age_minutes > max_age_minutes)
        return EXIT_INCOMPLETE if stale and max_age_minutes is not None else 0

    _ended(body, _place(database, destination, sandbox), reporter)


@contextmanager
def _configured(place: Place, sandbox: bool, *, serve: bool = True) -> Iterator[tuple[dict[str, Any], Run, Settings]]:
    """What every command but sync begins with: how to reach the account, a run, and the source's settings."""
    place.make_folders()
    place.configure_dlt()
    with _readable_configuration():
        import dlt

        from msgbubbles import Run, msgbubbles_source
    with _account(place, sandbox and serve) as account:
        run = Run()
        with _readable_configuration():
            options = {"api_key": dlt.secrets.get("sources.msgbubbles.api_key") or "", **account}
            msgbubbles_source(run=run, **options)
        if run.settings is None:
            raise UsageError("dlt_config: the source could not be configured")
        yield options, run, run.settings


def _transport(options: dict[str, Any], run: Run, **others: Any) -> Transport:
    """The way to the API that the source would take."""
    from msgbubbles import BASE_URL
    from msgbubbles.budget import RequestBudget
    from msgbubbles.transport import Transport

    if not options["api_key"]:
        raise UsageError(NO_KEY)
    per_minute = _requests_per_minute(options)
    folder = _source_option(options, "budget_dir", None)
    budget = RequestBudget.of_key(options["api_key"], per_minute, folder) if per_minute else None
    return Transport(
        _source_option(options, "base_url", BASE_URL),
        options["api_key"],
        budget,
        timeout_seconds=float(_source_option(options, "timeout_seconds", 30.0)),
        **{"max_attempts": int(_source_option(options, "max_attempts", 8)), **others},
        traffic=run.traffic,
        max_requests=run.max_requests,
        stop=run.stop,
        on_wait=run.on_wait,
        clock=run.clock,
    )


def _requests_per_minute(options: dict[str, Any]) -> int:
    from msgbubbles.client import REQUESTS_PER_MINUTE

    return int(_source_option(options, "requests_per_minute", REQUESTS_PER_MINUTE))


def _source_option(options: dict[str, Any], name: str, default: Any) -> Any:
    import dlt

    value = options.get(name)
    if value is None:
        value = dlt.config.get(f"sources.msgbubbles.{name}")
    return default if value is None else value


def _repaired(place: Place, reporter: Reporter, options: dict[str, Any], verdict: Verdict) -> None:
    """Read by id what a comparison found to differ."""
    from msgbubbles import Run
    from msgbubbles.run import Repair
    from warehouse.report import as_dict
    from warehouse.sync import Report, repair

    chats = [one.id for one in verdict.differences if one.table == "chats"]
    threads = [one.chat_id for one in verdict.differences if one.table != "chats" and one.chat_id]
    run, report = Run(), Report()
    wanted = Repair(chats=list(dict.fromkeys(chats)), threads=list(dict.fromkeys(threads)))
    with one_job(place.folder), _stopped_by_signals(run), reporter.following(run):
        repair(place, run, report, wanted, options, reporter.say, lambda: as_dict(place, run, report, _status_of(run)))
    Journal(place.folder).add(as_dict(place, run, report, _status_of(run)))
    if run.error is not None:
        raise run.error


def _place(database: Path | None, destination: str, sandbox: bool) -> Callable[[], Place]:
    name = f"{'sandbox' if sandbox else 'warehouse'}.{destination}"
    return lambda: Place.of(database or ROOT / name, destination)


def _ended(body: Callable[[Place], int], place_of: Callable[[], Place], reporter: Reporter) -> NoReturn:
    """Run a command, tell what went wrong in its way, and exit with the status that says so."""
    place = None
    try:
        place = place_of()
        status = body(place)
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


def _recorded_sync(
    place: Place,
    reporter: Reporter,
    sandbox: bool,
    since: datetime | None,
    max_requests: int | None,
    accept_ties: bool,
    with_transform: bool,
    as_json: bool,
) -> int:
    """One run, and its record, whatever becomes of it."""
    # dlt reads its configuration when it is imported, which therefore has to wait until here.
    with _readable_configuration():
        import dlt

        from msgbubbles import Run
        from msgbubbles.run import MIN_SLICE_PAGES
        from warehouse.report import as_dict
        from warehouse.sync import Report
        from warehouse.sync import sync as run_sync

        if not sandbox and not dlt.secrets.get("sources.msgbubbles.api_key"):
            raise UsageError(NO_KEY)
        slice_pages = _number("sync.slice_pages", 500, at_least=MIN_SLICE_PAGES)
        publish_minutes = _number("sync.publish_minutes", 60, at_least=1)
    place.claim_for("the sandbox" if sandbox else "a MsgBubbles account")
    options: dict[str, Any] = {}
    if since is not None:
        options["start_date"] = f"{since:%Y-%m-%d}"
    run = Run(slice_pages=slice_pages, max_requests=max_requests, accept_overflows=accept_ties)
    report = Report()
    status, message = EXIT_FAILED, ""
    try:
        with _stopped_by_signals(run), _account(place, sandbox) as account, reporter.following(run):
            run_sync(
                place,
                run,
                report,
                options | account,
                with_transform=with_transform,
                publish_minutes=publish_minutes,
                say=reporter.say,
                record=lambda: as_dict(place, run, report, _status_of(run)),
            )
        status = _status_of(run)
        reporter.summary(place, run, report, sandbox=sandbox)
    except KeyboardInterrupt:
        status, message = EXIT_STOPPED, "stopped at once"
        raise
    except Exception as error:
        status, message = _explained(error, place)
        raise
    finally:
        record = as_dict(place, run, report, status, error=message or None)
        with suppress(OSError):  # a full disk has its own error already
            Journal(place.folder).add(record)
        if as_json:
            sys.stdout.write(json.dumps(record) + "\n")
    return status


def _status_of(run: Run) -> int:
    from msgbubbles.errors import Interrupted

    if isinstance(run.halt, Interrupted):
        return EXIT_STOPPED
    if run.error is not None:
        return EXIT_FAILED
    lossy = any(progress.rejected or progress.standing for progress in run.streams.values())
    return EXIT_INCOMPLETE if lossy else 0


def _number(key: str, default: int, *, at_least: int) -> int:
    """A whole number of the job's own configuration."""
    import dlt

    value: Any = dlt.config.get(key)
    if value is None:
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = at_least - 1
    if number < at_least:
        raise UsageError(f"{key} is a whole number, {at_least} at least, not {value!r}; mend dlt_config/config.toml")
    return number


@contextmanager
def _readable_configuration() -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # Whatever dlt makes of it, the cause of it is in there.
        cause: BaseException | None = error
        while cause is not None and "TOML" not in type(cause).__name__.upper() and not isinstance(cause, ValueError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UsageError(_unreadable(Path(os.environ["DLT_PROJECT_DIR"], os.environ["DLT_CONFIG_FOLDER"]))) from None


def _unreadable(folder: Path) -> str:
    """Which file of the configuration is no TOML, and where; nothing of it is quoted, because there are secrets."""
    for path in (folder / "config.toml", folder / "secrets.toml"):
        try:
            tomllib.loads(path.read_text())
        except FileNotFoundError:
            continue
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            where = f"line {line[1]}" if line else "its end"
            return f"{path}: {where} is not TOML; mend it (text is in quotes, a section's name in brackets)"
        except (OSError, UnicodeDecodeError) as error:
            return f"{path} cannot be read ({type(error).__name__}); mend it, or let the user of this job read it"
    return f"{folder}: config.toml, secrets.toml or the environment has a value of the wrong type; mend it"


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


def _account(place: Place, sandbox: bool) -> AbstractContextManager[dict[str, Any]]:
    if sandbox:
        return _sandbox(place)
    return nullcontext({})


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
                raise UsageError("the sandbox did not start: what it says is above")
            account = json.loads(line)
            # The budget of a made-up key is nobody else's business.
            yield {"api_key": account["key"], "base_url": account["url"], "budget_dir": str(place.folder)}
        finally:
            if process.stdin:
                process.stdin.close()


def _explained(error: Exception, place: Place | None) -> tuple[int, str]:
    """The exit status for an error, and what to say of it. What the database or dlt say may quote rows, so that goes
    to a file that only the user reads."""
    from dlt.common.configuration.exceptions import ConfigValueCannotBeCoercedException

    from msgbubbles.errors import ConfigurationError, MsgBubblesError
    from warehouse.transform import TransformError
    from warehouse.troubles import trouble_of

    if isinstance(error, ConfigValueCannotBeCoercedException):
        return EXIT_USAGE, f"{error.field_name} has no value of its type; dlt_config/config.toml shows how it is set"
    if isinstance(error, ConfigurationError | UsageError):
        return EXIT_USAGE, str(error)
    if isinstance(error, MsgBubblesError | TransformError) or place is None:
        return EXIT_FAILED, str(error)
    trouble = trouble_of(error, place) or f"{type(error).__name__}; what was loaded stays"
    path = place.folder / "last_error.txt"
    with suppress(OSError):  # where the disk is full, or is not ours
        path.touch(mode=0o600)
        path.write_text("".join(traceback.format_exception(error)))
        trouble += f". Details, which may quote your data: {path}"
    return EXIT_FAILED, trouble


if __name__ == "__main__":
    app()
