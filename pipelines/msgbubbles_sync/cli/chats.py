"""The scheduled job: brings a warehouse up to date with a MsgBubbles account; and commands that look at it.

    python pipelines/chats.py                 # with the API key from dlt_config/secrets.toml or the environment
    python pipelines/chats.py --sandbox       # with a made-up account on this machine

Exit status: 0 complete; 3 complete, but look at it: rows were rejected, something could not be read or is out of reach,
marts failed a data test, or a check, a comparison or an age is not as it should be; 1 failed, the next run goes on, or
another job has made no progress for 30 minutes; 2 wrong usage or configuration; 75 another job runs on the database;
130 stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec import structs
from typer.core import TyperGroup

from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.destinations.version import check_version, refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.run_log import Journal
from msgbubbles_sync.settings import Settings, load_settings, source_arguments
from msgbubbles_sync.workspace import CLAIM, Workspace

from .console import Reporter
from .options import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_STOPPED,
    Account,
    Database,
    Into,
    Sandbox,
    account_of,
    app_of,
    check_api_key,
    ended,
    explained,
    readable_configuration,
    stopped_by_signals,
    transport_of,
    workspace_of,
)

if TYPE_CHECKING:
    from msgbubbles.client import Client
    from msgbubbles.redact import Redactor
    from msgbubbles.source.config import Settings as ReadSettings
    from msgbubbles.source.run import Run
    from msgbubbles_sync.inspect.verify import Verdict
    from msgbubbles_sync.job import Report
    from msgbubbles_sync.webhooks.load import LoadResult

SCRIPT = "chats.py"
STOPPED = "stopped at once; what was loaded stays, and the next run goes on from there"


class DefaultsToSync(TyperGroup):
    """`chats.py` alone, or with options only, is `chats.py sync`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["sync", *args]
        return list(super().parse_args(ctx, args))


app = app_of(__doc__, cls=DefaultsToSync)


@app.callback()
def main() -> None:
    pass


AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON.")]


@app.command()
def sync(
    database: Database = None,
    account: Account = None,
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

    def body(workspace: Workspace) -> int:
        workspace.make_folders()
        workspace.configure_dlt()
        with hold_lock(workspace.folder):
            return _recorded_sync(
                workspace, reporter, sandbox, since, max_requests, accept_ties, not no_transform, as_json
            )

    _run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def plan(
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    probe: Annotated[bool, typer.Option("--probe", help="Spend one request to see how many chats are new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the next run would read and what that costs. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        with _configured(workspace, sandbox, serve=probe) as begun:
            from msgbubbles_sync.inspect import plan as planning
            from msgbubbles_sync.inspect.local_state import Known

            known = Known(workspace)
            steps = planning.steps(known, begun.reading, int(time.time() * 1000))
            fresh = planning.probe(known, transport_of(begun.settings, begun.run, SCRIPT)) if probe else None
            reporter.plan(steps, fresh, begun.settings.source.requests_per_minute)
        return 0

    _run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def check(
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Look at everything a run needs, and at how the API behaves. Exit status 3 when something has to be mended."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        with _configured(workspace, sandbox) as begun:
            from msgbubbles_sync.inspect.check import check
            from msgbubbles_sync.webhooks import health

            begun.run.max_requests = 20
            of_the_job = check(workspace, lambda: begun.client(max_attempts=2))
            results = reporter.check_results(chain(of_the_job, health.check(workspace)))
        return EXIT_INCOMPLETE if any(one.state == "failed" for one in results) else 0

    _run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def verify(
    database: Database = None,
    account: Account = None,
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

    def body(workspace: Workspace) -> int:
        if full == (sample is not None):
            raise UsageError("verify: say --full, or --sample 20")
        if not build_destination(workspace).exists():
            raise UsageError(f"verify: {workspace.database} is not there; run the sync first")
        with (
            _configured(workspace, sandbox) as begun,
            stopped_by_signals(begun.run.stop),
            reporter.following(begun.run),
        ):
            from msgbubbles.redact import client_of
            from msgbubbles_sync.inspect.local_state import Known
            from msgbubbles_sync.inspect.verify import verify as compare

            def connect() -> Client:
                transport = transport_of(begun.settings, begun.run, SCRIPT)
                return client_of(transport, begun.redactor, sender_field=begun.settings.source.sender_field)

            def compared() -> Verdict:
                with connect() as client:
                    return compare(Known(workspace), client, begun.reading, sample=sample, on_page=begun.run.on_page)

            verdict = compared()
            if repair and not verdict.is_equal:
                _repaired(workspace, reporter, begun, verdict)
                verdict = compared()
        reporter.verdict(verdict, begun.run)
        return 0 if verdict.is_equal else EXIT_INCOMPLETE

    _run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def status(
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    max_age_minutes: Annotated[
        float | None, typer.Option(help="Exit with status 3 when the last complete run is older than this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how fresh and how complete the copy is, and what the last runs did. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        with _configured(workspace, sandbox, serve=False) as begun:
            from msgbubbles_sync.inspect.local_state import Known
            from msgbubbles_sync.inspect.status import show, status_of

            known, now, start_ms = Known(workspace), datetime.now(UTC), begun.reading.start_ms
            found = status_of(known, start_ms, now)
            reporter.print(found.as_dict(), lambda console: show(found, known, start_ms, now, console))
        stale = found.age_minutes is None or (max_age_minutes is not None and found.age_minutes > max_age_minutes)
        return EXIT_INCOMPLETE if stale and max_age_minutes is not None else 0

    _run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def erase(
    handles: Annotated[
        list[str], typer.Argument(metavar="HANDLE...", help="Numbers or addresses; - reads them from standard input.")
    ],
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; this cannot be undone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove people from the warehouse and its files, and keep them out of it. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        workspace.make_folders()
        workspace.configure_dlt()
        with readable_configuration():
            import dlt  # noqa: F401

            from msgbubbles_sync.privacy import erase as erasing
        transforms = load_settings(workspace.account).transforms
        check_version(workspace, build_destination(workspace))
        people = _lines(handles)
        if not yes and not typer.confirm(f"Erase {len(people)} people for good?", err=True):
            return EXIT_STOPPED
        with hold_lock(workspace.folder), hold_lock(workspace.folder, "apply"):
            certificate = erasing.erase(workspace, people, transforms, reporter.say)
        reporter.print(certificate.as_dict(), lambda console: console.print(str(certificate), soft_wrap=True))
        return 0

    _run(body, reporter, database, account, destination, sandbox=sandbox)


@app.command()
def privacy(
    action: Annotated[
        Literal["apply", "lookup"],
        typer.Argument(help="apply: bring what has landed to the policy. lookup: say who is behind a pseudonym."),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="For lookup: pseudonyms, or numbers and addresses; - reads them from standard input.",
        ),
    ] = None,
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Apply a stricter policy to what has landed (what was left out before does not come back), or look somebody up.
    Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def apply(workspace: Workspace) -> int:
        workspace.make_folders()
        workspace.configure_dlt()
        with readable_configuration():
            import dlt  # noqa: F401

            from msgbubbles_sync.privacy.reapply import apply
        transforms = load_settings(workspace.account).transforms
        check_version(workspace, build_destination(workspace))
        with hold_lock(workspace.folder), hold_lock(workspace.folder, "apply"):
            changed = apply(workspace, transforms, reporter.say)
        what = ", ".join(f"{count:,} of {table}" for table, count in sorted(changed.items())) or "nothing had to change"
        reporter.print({action: dict(changed)}, lambda console: console.print(f"Changed: {what}.", soft_wrap=True))
        return 0

    def lookup(workspace: Workspace) -> int:
        from msgbubbles_sync.policy.applied import looked_up

        found = looked_up(_lines(names or []), load_settings(workspace.account))
        reporter.print(
            found,
            lambda console: console.print(
                "\n".join(f"{name}  {behind or 'nobody knows'}" for name, behind in found.items()),
                markup=False,
                soft_wrap=True,
            ),
        )
        return 0 if all(found.values()) else EXIT_INCOMPLETE

    body = lookup if action == "lookup" else apply
    _run(body, reporter, database, account, destination, sandbox=sandbox)


def _run(
    body: Callable[[Workspace], int],
    reporter: Reporter,
    database: Path | None,
    account: str | None,
    destination: str,
    *,
    sandbox: bool,
    for_each: bool = False,
) -> None:
    ended(
        body,
        lambda: workspace_of(database, account, destination, sandbox=sandbox),
        reporter,
        STOPPED,
        for_each=for_each,
    )


def _lines(arguments: Iterable[str]) -> list[str]:
    """Arguments, and the lines of standard input in the place of -: what is in an argument, others see in the list of
    processes."""
    return [line.strip() for one in arguments for line in (sys.stdin if one == "-" else [one]) if line.strip()]


@dataclass(frozen=True)
class Configured:
    """What every command but sync begins with. `reading` are the source's settings in the units of reading."""

    settings: Settings
    redactor: Redactor
    run: Run
    reading: ReadSettings

    def client(self, **others: Any) -> Client:
        """Connect to the API as it answers: nothing is left out."""
        from msgbubbles.client import Client

        return Client(transport_of(self.settings, self.run, SCRIPT, **others), self.settings.source.sender_field)


@contextmanager
def _configured(workspace: Workspace, sandbox: bool, *, serve: bool = True) -> Iterator[Configured]:
    """Read the settings, and start the sandbox if it is asked for."""
    workspace.make_folders()
    workspace.configure_dlt()
    with readable_configuration():
        import dlt  # noqa: F401

        from msgbubbles.source.config import Settings as ReadSettings
        from msgbubbles.source.run import Run
        from msgbubbles_sync.policy.applied import redactor_of
    check_version(workspace, build_destination(workspace))
    with account_of(workspace, sandbox=sandbox and serve) as settings:
        yield Configured(settings, redactor_of(workspace), Run(), ReadSettings.from_source(settings.source))


def _repaired(workspace: Workspace, reporter: Reporter, begun: Configured, verdict: Verdict) -> None:
    """Read by id what a comparison found to differ."""
    from msgbubbles.source.run import Repair, Run
    from msgbubbles_sync.job import Report, repair

    from .console import as_dict

    chats = [one.id for one in verdict.differences if one.table == "chats"]
    threads = [one.chat_id for one in verdict.differences if one.table != "chats" and one.chat_id]
    run, report = Run(), Report()
    wanted = Repair(chats=list(dict.fromkeys(chats)), threads=list(dict.fromkeys(threads)))
    with hold_lock(workspace.folder), stopped_by_signals(run.stop), reporter.following(run):
        repair(
            workspace, run, report, wanted, source_arguments(begun.settings, begun.redactor),
            begun.settings.transforms, reporter.say,
            lambda: as_dict(workspace, run, report, _status_of(run, report)),
        )  # fmt: skip
    Journal(workspace.folder).add(as_dict(workspace, run, report, _status_of(run, report)))
    if run.error is not None:
        raise run.error


def _recorded_sync(
    workspace: Workspace,
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
    with readable_configuration():
        import dlt  # noqa: F401

        from msgbubbles.source.run import Run
        from msgbubbles_sync.groups.load import load_ledger
        from msgbubbles_sync.inspect.local_state import Known
        from msgbubbles_sync.job import Report
        from msgbubbles_sync.job import sync as run_sync
        from msgbubbles_sync.migrations import migrate
        from msgbubbles_sync.policy.applied import keep_found, redactor_of
        from msgbubbles_sync.privacy.erase import purge
        from msgbubbles_sync.privacy.reapply import apply as apply_policy
        from msgbubbles_sync.privacy.retention import expire
        from msgbubbles_sync.restore import restore, tidy
        from msgbubbles_sync.webhooks.health import with_refresh
        from msgbubbles_sync.webhooks.load import load_events

        from .console import as_dict

    settings = load_settings(workspace.account)
    if not sandbox:
        check_api_key(settings, SCRIPT)
    refuse_newer(workspace.version, str(workspace.folder))
    transforms = settings.transforms
    if not (workspace.folder / CLAIM).exists():
        # Tables of a newer version are refused as such, whosever they are.
        with suppress(UsageError):
            Known(workspace).states()
    claim(workspace, build_destination(workspace), sandbox=sandbox, say=reporter.fail)
    restore(workspace, reporter.fail)
    migrate(workspace, reporter.say)
    redactor = redactor_of(workspace)
    run = Run(batch_pages=settings.sync.batch_pages, max_requests=max_requests, accept_overflows=accept_ties)
    report = Report()
    status, message = EXIT_FAILED, ""
    try:
        with stopped_by_signals(run.stop), account_of(workspace, sandbox=sandbox) as settings, reporter.following(run):
            source = with_refresh(workspace, settings)
            if since is not None:
                source = structs.replace(source, start_date=f"{since:%Y-%m-%d}")
            if workspace.is_pending("policy"):
                reporter.say("finishing a change of the policy that was cut off")
                apply_policy(workspace, transforms, reporter.say)
            if workspace.is_pending("erase"):
                reporter.say("finishing an erasure that was cut off")
                purge(workspace, transforms, reporter.say)
            report.expired = dict(expire(workspace, redactor.policy, transforms, reporter.say))
            load_ledger(workspace)
            _told(load_events(workspace), reporter)
            run_sync(
                workspace,
                run,
                report,
                source_arguments(replace(settings, source=source), redactor),
                with_transform=with_transform,
                transforms=transforms,
                publish_minutes=settings.sync.publish_minutes,
                say=reporter.say,
                record=lambda: as_dict(workspace, run, report, _status_of(run, report)),
            )
        keep_found(workspace, redactor)
        tidy(workspace)
        status = _status_of(run, report)
        reporter.summary(workspace, run, report, settings.describe_policy(), sandbox=sandbox)
    except KeyboardInterrupt:
        status, message = EXIT_STOPPED, "stopped at once"
        raise
    except Exception as error:
        status, message = explained(error, workspace)
        raise
    finally:
        record = as_dict(workspace, run, report, status, error=message or None)
        with suppress(OSError):  # a full disk has its own error already
            Journal(workspace.folder).add(record)
        if as_json:
            sys.stdout.write(json.dumps(record) + "\n")
    return status


def _told(landed: LoadResult, reporter: Reporter) -> None:
    """Say what the webhooks have brought, where that is something."""
    if landed.malformed:
        reporter.fail(f"webhooks: {landed}")
    elif landed.deliveries:
        reporter.say(f"webhooks: {landed}")


def _status_of(run: Run, report: Report) -> int:
    from msgbubbles.errors import Interrupted

    if isinstance(run.halt, Interrupted):
        return EXIT_STOPPED
    if run.error is not None:
        return EXIT_FAILED
    lossy = any(progress.rejected or progress.standing for progress in run.streams.values())
    return EXIT_INCOMPLETE if lossy or report.failed_reads or report.tested.failed_tests else 0
