"""The scheduled job: brings a warehouse up to date with a MsgBubbles account; and commands that look at it.

    python pipelines/chats.py                 # with the API key from dlt_config/secrets.toml or the environment
    python pipelines/chats.py --sandbox       # with a made-up account on this machine

Exit status: 0 complete; 3 complete, but look at it: rows were rejected, something could not be read or is out of reach,
marts failed a data test, or a check, a comparison or an age is not as it should be; 1 failed, the next run goes on, or
another job has made no progress for 30 minutes; 2 wrong usage or configuration; 75 another job runs on the database;
130 stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from msgbubbles_sync.context import Limits
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.outcome import EXIT_INCOMPLETE, STOPPED
from msgbubbles_sync.policy.applied import look_up

from . import commands
from .console import Reporter
from .main import Script, Session, build_app
from .options import Account, AsJson, Database, Destination, Quiet, Sandbox

SCRIPT = Script("chats.py", STOPPED)


class DefaultsToSync(TyperGroup):
    """`chats.py` alone, or with options only, is `chats.py sync`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["sync", *args]
        return list(super().parse_args(ctx, args))


app = build_app(__doc__, cls=DefaultsToSync)


@app.callback()
def main() -> None:
    pass


@app.command()
def sync(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
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
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Load what is new, build the marts, publish (this is the default command)."""

    def body(session: Session) -> int:
        # Another job that runs is found before dlt is imported.
        with hold_lock(session.context.workspace.folder):
            return commands.sync.run(session, limits)

    limits = Limits(since, max_requests, accept_ties, with_transform=not no_transform)
    reporter = Reporter(quiet=quiet, as_json=as_json)
    SCRIPT.run(body, reporter, database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def plan(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    probe: Annotated[bool, typer.Option("--probe", help="Spend one request to see how many chats are new.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the next run would read and what that costs. Makes no request."""
    SCRIPT.run(
        lambda session: commands.inspect.plan(session, probe=probe),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, for_each=True,
    )  # fmt: skip


@app.command()
def check(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Look at everything a run needs, and at how the API behaves. Exit status 3 when something has to be mended."""
    SCRIPT.run(
        lambda session: commands.inspect.check(session),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, for_each=True,
    )  # fmt: skip


@app.command()
def verify(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare so many chats, picked at random, and all their messages.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare everything.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Then read again what differs, and compare again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the published warehouse with the API, field by field. Exit status 3 when they differ."""

    def body(session: Session) -> int:
        if full == (sample is not None):
            raise UsageError("verify: say --full, or --sample 20")
        return commands.inspect.verify(session, sample=sample, repair=repair)

    SCRIPT.run(body, Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, for_each=True)


@app.command()
def status(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    max_age_minutes: Annotated[
        float | None, typer.Option(help="Exit with status 3 when the last complete run is older than this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how fresh and how complete the copy is, and what the last runs did. Makes no request."""
    SCRIPT.run(
        lambda session: commands.inspect.status(session, max_age_minutes=max_age_minutes),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, for_each=True,
    )  # fmt: skip


@app.command()
def erase(
    handles: Annotated[
        list[str], typer.Argument(metavar="HANDLE...", help="Numbers or addresses; - reads them from standard input.")
    ],
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; this cannot be undone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove people from the warehouse and its files, and keep them out of it. Makes no request."""
    SCRIPT.run(
        lambda session: commands.privacy.erase(session, _lines(handles), ask=not yes),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox,
    )  # fmt: skip


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
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Apply a stricter policy to what has landed (what was left out before does not come back), or look somebody up.
    Makes no request.
    """

    def lookup(session: Session) -> int:
        found = look_up(_lines(names or []), session.context.settings)
        lines = "\n".join(f"{name}  {behind or 'nobody knows'}" for name, behind in found.items())
        session.reporter.print_text(found, lines)
        return 0 if all(found.values()) else EXIT_INCOMPLETE

    is_lookup = action == "lookup"
    SCRIPT.run(
        lookup if is_lookup else lambda session: commands.privacy.apply_policy(session),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, uses_dlt=not is_lookup,
    )  # fmt: skip


def _lines(arguments: Iterable[str]) -> list[str]:
    """Return the arguments, with the lines of standard input in place of -: other users see arguments in the list of
    processes.
    """
    return [line.strip() for one in arguments for line in (sys.stdin if one == "-" else [one]) if line.strip()]
