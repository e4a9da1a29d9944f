"""Keep a warehouse up to date with a MsgBubbles account.

    python pipelines/chats.py              # sync the account of your API key
    python pipelines/chats.py --sandbox    # sync a simulated account

Exit status: 0 complete; 1 failed, the next run continues, or another job has made no progress for 30 minutes; 2 wrong
usage or configuration; 3 complete, but rows were rejected or could not be read, a data test or check failed, rows
differ, or the last run is too old; 75 another job is active on the database; 130 stopped by Ctrl-C or SIGTERM, nothing
is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import hold_lock

from . import commands
from .main import Script, Session, build_app, parse_time


class DefaultsToSync(TyperGroup):
    """Treat `chats.py` with options only as `chats.py sync`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = [*ctx.help_option_names, "--version"]
        # Shell completion parses the words before the last one.
        if not ctx.resilient_parsing and (not args or (args[0].startswith("-") and args[0] not in own)):
            args = ["sync", *args]
        return list(super().parse_args(ctx, args))


class CommandAnywhere(TyperGroup):
    """Accept the options of a command before its name as well: `privacy --json apply`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        name = next((argument for argument in args if argument in self.commands), None)
        if name is not None:
            index = args.index(name)
            args = [name, *args[:index], *args[index + 1 :]]
        return list(super().parse_args(ctx, args))


def parse_day(text: str) -> datetime:
    """Parse a day (UTC). Raises `BadParameter` if it is in the future."""
    day = parse_time(text, "%Y-%m-%d")
    if day.replace(tzinfo=UTC) > datetime.now(UTC):
        raise typer.BadParameter(f"{day:%Y-%m-%d} is in the future. Pass today or an earlier day.")
    return day


app = build_app(__doc__, cls=DefaultsToSync)
privacy = typer.Typer(cls=CommandAnywhere, no_args_is_help=True)
app.add_typer(privacy, name="privacy", help="Apply a stricter privacy policy, or look up a pseudonym.")
SCRIPT, PRIVACY = Script(app), Script(privacy)


@SCRIPT.command("quiet", "as_json", for_each=True)
def sync(
    session: Session,
    since: Annotated[
        datetime | None,
        typer.Option(help="Read nothing older than this day (UTC).", metavar="YYYY-MM-DD", parser=parse_day),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N requests. The next run continues.")
    ] = None,
    no_transform: Annotated[
        bool, typer.Option("--no-transform", help="Load and publish without building the marts.")
    ] = False,
    accept_ties: Annotated[
        bool, typer.Option("--accept-ties", help="Treat the known tie overflows as complete, and stop reporting them.")
    ] = False,
) -> int:
    """Load new data, build the marts and publish. The default command."""
    # Another job is detected before dlt is imported.
    with hold_lock(session.context.workspace.folder):
        return commands.sync.run(session, since, max_requests, accept_ties=accept_ties, with_transform=not no_transform)


@SCRIPT.command("quiet", "as_json")
def watch(
    session: Session,
    every: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Run the job this often.")] = 300,
    health_port: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Serve /health and /metrics on this port.")
    ] = None,
    health_host: Annotated[str, typer.Option(metavar="HOST", help="Address for --health-port.")] = "127.0.0.1",
) -> int:
    """Run the job at an interval, and load webhook events."""
    return commands.watch.run(session, every, None if health_port is None else (health_host, health_port))


@SCRIPT.command("as_json", for_each=True, needs_version=True, only_reads=True)
def plan(
    session: Session,
    probe: Annotated[
        bool, typer.Option("--probe", help="Make one request to count the chats that have changed.")
    ] = False,
) -> int:
    """Show what the next run would read, and its cost. Makes no request."""
    return commands.inspect.plan(session, probe=probe)


@SCRIPT.command("as_json", for_each=True, only_reads=True)
def check(session: Session) -> int:
    """Check that a sync can run, and how the API behaves.

    Exits with status 3 if a check fails.
    """
    return commands.inspect.check(session)


@SCRIPT.command("as_json", for_each=True, needs_warehouse=True, needs_version=True)
def verify(
    session: Session,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compare N random chats and all their messages.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Compare everything.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Read rows that differ again, and repeat the comparison.")
    ] = False,
) -> int:
    """Compare the published warehouse with the API, field by field.

    Exits with status 3 if they differ.
    """
    if full == (sample is not None):
        raise UsageError("Pass either --full or --sample N, for example --sample 20.")
    return commands.inspect.verify(session, sample=sample, repair=repair)


@SCRIPT.command("as_json", for_each=True, needs_warehouse=True, needs_version=True, only_reads=True)
def status(
    session: Session,
    max_age_minutes: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Exit with status 3 if the last complete run is older than this."),
    ] = None,
) -> int:
    """Show how fresh and complete the copy is, and the last runs.

    Makes no request.
    """
    return commands.inspect.status(session, max_age_minutes=max_age_minutes)


@SCRIPT.command("as_json", needs_warehouse=True, needs_version=True, only_reads=True)
def report(
    session: Session,
    days: Annotated[int, typer.Option(min=1, max=3660, metavar="N", help="Cover the last N days.")] = 30,
    number: Annotated[str | None, typer.Option(metavar="HANDLE", help="Cover one number of the account only.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write. [default: the database's name, ending in .html]"),
    ] = None,
) -> int:
    """Write an HTML page: who waits, and how fast we answer.

    The page needs no network and runs no script. Makes no request.
    """
    return commands.report.run(session, days=days, number=number, out=out)


@SCRIPT.command("as_json", needs_warehouse=True, needs_version=True)
def erase(
    session: Session,
    handles: Annotated[
        list[str], typer.Argument(metavar="HANDLE", help="Phone numbers or email addresses, or - to read stdin.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation. This cannot be undone.")] = False,
) -> int:
    """Erase people from the warehouse and its files, for good.

    Later runs do not load them again. Makes no request.
    """
    return commands.privacy.erase(session, _read_arguments(handles), ask=not yes)


@PRIVACY.command("as_json", needs_warehouse=True, needs_version=True)
def apply(session: Session) -> int:
    """Bring stored rows to a stricter policy.

    A policy cannot be relaxed later: dropped data is gone. Makes no request.
    """
    return commands.privacy.apply_policy(session)


@PRIVACY.command("as_json", uses_dlt=False)
def lookup(
    session: Session,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Pseudonyms, phone numbers or email addresses, or - to read stdin."),
    ],
) -> int:
    """Look up the person behind a pseudonym, or the reverse.

    Exits with status 3 if the vault lacks one of the names. Makes no request.
    """
    return commands.privacy.look_up(session, _read_arguments(names))


def _read_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the arguments, with the lines of stdin in place of -.

    Arguments are visible to other users in the list of processes; stdin is not.
    """
    lines = (line for argument in arguments for line in (sys.stdin if argument == "-" else [argument]))
    return [line.strip() for line in lines if line.strip()]
