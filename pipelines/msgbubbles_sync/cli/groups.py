"""Groups declared in a table, brought about through the API: look at the plan, then apply it.

    python pipelines/groups.py plan groups.csv      # what would be created, renamed, added, removed; sends nothing
    python pipelines/groups.py apply groups.csv     # does it, once you have said yes

Exit status: 0 done; 3 done, but something needs a look (a group failed, or operations were left); 1 failed, the next
apply goes on; 2 wrong usage, configuration or table, nothing was changed; 75 another apply runs on the database; 130
stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.plan import MAX_CREATES, MAX_REMOVALS, check_limits
from msgbubbles_sync.lock import AnotherJobRunsError, hold_lock
from msgbubbles_sync.workspace import Workspace

from .console import Reporter
from .options import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_STOPPED,
    Account,
    Command,
    Database,
    Sandbox,
    app_of,
    begun,
    ended,
    workspace_of,
)

if TYPE_CHECKING:
    from msgbubbles.client import Client
    from msgbubbles_sync.groups.plan import Plan
    from msgbubbles_sync.groups.result import ApplyResult
    from msgbubbles_sync.settings import Settings

SCRIPT = "groups.py"
STOPPED = "stopped at once; what was asked is on record, and the next apply finds out what came of it"
NO_FILE = (
    "a plan in a file has to hold numbers and messages, which [sources.msgbubbles.privacy] keeps out of files: "
    "apply the table itself; --dry-run shows what that would do"
)

app = app_of(__doc__)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Table = Annotated[
    str | None,
    typer.Argument(
        help="A .csv, .yml or .sql file, a dbt model, or a query. [default: groups.table of dlt_config/config.toml]"
    ),
]
MaxCreates = Annotated[int, typer.Option("--max-creates", min=0, help="Refuse to create more groups than this.")]
MaxRemovals = Annotated[int, typer.Option("--max-removals", min=0, help="Refuse to remove more people than this.")]


@app.command()
def plan(
    table: Table = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the plan, to be applied as it is.")] = None,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Say what has to be done so that the groups are as the table says. Makes no request."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(command: Command) -> int:
        if out is not None:
            _check_files(command.workspace)
        made = _planned(command, table)
        if out is not None:
            from msgbubbles_sync.groups.plan import save

            save(made, out)
        _show_plan(command, made, reporter)
        return 0

    _run(body, database, account, reporter, sandbox=sandbox, serve=False)


@app.command()
def apply(
    table: Annotated[
        str | None, typer.Argument(help="As for plan; or a plan.json that was saved, to be applied as it is.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for schedules.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and send nothing.")] = False,
    max_creates: MaxCreates = MAX_CREATES,
    max_removals: MaxRemovals = MAX_REMOVALS,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the groups what the table says. Asks before it changes anything."""
    reporter = Reporter(quiet=quiet, as_json=as_json)

    def body(command: Command) -> int:
        from msgbubbles_sync.groups.plan import load

        saved = load(Path(table)) if table and table.endswith(".json") else None
        if saved is not None:
            _check_files(command.workspace)
        if dry_run:
            return _dry_run(command, table, saved, max_creates, max_removals, reporter)
        if not yes and not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked; say --yes to apply without asking")
        _claim(command.workspace, reporter, sandbox=sandbox)
        with hold_lock(command.workspace.folder, "apply"):
            return _applied(command, table, saved, max_creates, max_removals, reporter, ask=not yes)

    _run(body, database, account, reporter, sandbox=sandbox, serve=not dry_run)


@app.command("import")
def import_(
    key: Annotated[str, typer.Argument(help="What the group is called in your table.")],
    chat_id: Annotated[str, typer.Argument(help="The group's id.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Adopt a group that exists already: from now on it is the one with this key. Changes nothing in the group."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(command: Command) -> int:
        from msgbubbles_sync.groups.job import adopt_group

        from .groups_report import adopted_text

        _claim(command.workspace, reporter, sandbox=sandbox)
        with hold_lock(command.workspace.folder, "apply"), command.client() as client:
            observation = adopt_group(command.workspace, client, key.strip(), chat_id)
        as_dict = {"key": observation.key, "chat_id": observation.chat_id, "members": len(observation.handles or ())}
        reporter.print(as_dict, lambda console: console.print(adopted_text(observation), markup=False, soft_wrap=True))
        _land(command.workspace, reporter)
        return 0

    _run(body, database, account, reporter, sandbox=sandbox)


@app.command()
def read(
    chats: Annotated[list[str], typer.Argument(metavar="CHAT...", help="Ids of chats, or keys of groups.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
) -> None:
    """Mark threads as read on our side; the other people see the receipt (iMessage, WhatsApp). A request each."""
    _each(chats, lambda client, chat_id: client.mark_read(chat_id), database, account, sandbox=sandbox)


@app.command()
def typing(
    chat: Annotated[str, typer.Argument(metavar="CHAT", help="Id of a chat, or key of a group.")],
    on: Annotated[bool, typer.Option("--on/--off", help="Show the typing sign, or hide it.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
) -> None:
    """Show the typing sign in a thread, or hide it; it expires by itself. One request."""
    _each([chat], lambda client, chat_id: client.set_typing(chat_id, on), database, account, sandbox=sandbox)


def _run(
    body: Callable[[Command], int],
    database: Path | None,
    account: str | None,
    reporter: Reporter,
    *,
    sandbox: bool,
    serve: bool = True,
) -> None:
    def run(workspace: Workspace) -> int:
        with begun(workspace, SCRIPT, sandbox=sandbox and serve) as command:
            return body(command)

    ended(run, lambda: workspace_of(database, account, sandbox=sandbox), reporter, STOPPED)


def _claim(workspace: Workspace, reporter: Reporter, *, sandbox: bool) -> None:
    claim(workspace, build_destination(workspace), sandbox=sandbox, say=reporter.fail)


def _table(table: str | None, settings: Settings) -> str:
    named = table or settings.groups.table
    if not named:
        from msgbubbles_sync.groups.desired import WHAT_A_TABLE_IS

        raise UsageError(f"which groups? {WHAT_A_TABLE_IS}; or set table in [groups] of dlt_config/config.toml")
    return str(named)


def _check_files(workspace: Workspace) -> None:
    from msgbubbles_sync.groups.redact import GroupRedactor

    if GroupRedactor.of(workspace).hides:
        raise UsageError(NO_FILE)


def _planned(command: Command, table: str | None) -> Plan:
    from msgbubbles_sync.groups.desired import read_rows
    from msgbubbles_sync.groups.job import plan_groups

    return plan_groups(command.workspace, read_rows(_table(table, command.settings), command.workspace))


def _show_plan(command: Command, made: Plan, reporter: Reporter) -> None:
    from msgbubbles_sync.groups.job import count_unresolved, list_groups

    from .groups_report import plan_dict, show_plan

    unresolved, per_minute = count_unresolved(command.workspace), command.settings.source.requests_per_minute
    known = list_groups(command.workspace)
    reporter.print(
        plan_dict(made, unresolved, per_minute),
        lambda console: show_plan(console, made, known, unresolved, per_minute),
    )


def _dry_run(
    command: Command, table: str | None, saved: Plan | None, max_creates: int, max_removals: int, reporter: Reporter
) -> int:
    from msgbubbles_sync.groups.job import resume_saved_plan

    made = _planned(command, table) if saved is None else resume_saved_plan(command.workspace, saved)
    _show_plan(command, made, reporter)
    check_limits(made, max_creates, max_removals)
    return 0


def _applied(
    command: Command,
    table: str | None,
    saved: Plan | None,
    max_creates: int,
    max_removals: int,
    reporter: Reporter,
    *,
    ask: bool,
) -> int:
    from msgbubbles_sync.groups.desired import read_rows
    from msgbubbles_sync.groups.job import apply_groups

    from .groups_report import complaints, show_applied

    def confirm(made: Plan) -> bool:
        if not ask:
            return True
        _show_plan(command, made, Reporter(quiet=False, as_json=False))
        return typer.confirm("Apply it?", err=True)

    wanted = saved or read_rows(_table(table, command.settings), command.workspace)
    run = command.run
    with command.client() as client:
        applied = apply_groups(
            command.workspace,
            client,
            wanted,
            max_creates=max_creates,
            max_removals=max_removals,
            confirm=confirm,
            on_operation=lambda so_far: reporter.progress(f"{so_far.counts.total():,} operations"),
        )
    requests = run.traffic.total
    reporter.print(applied.as_dict() | {"requests": requests}, lambda console: show_applied(console, applied, requests))
    for line in complaints(applied):
        reporter.fail(line)
    _land(command.workspace, reporter)
    return _status_of(applied)


def _status_of(applied: ApplyResult) -> int:
    from msgbubbles.errors import Interrupted

    if isinstance(applied.halt, Interrupted):
        return EXIT_STOPPED
    if applied.halt is not None:
        return EXIT_FAILED
    return EXIT_INCOMPLETE if applied.failures or applied.left else 0


def _land(workspace: Workspace, reporter: Reporter) -> None:
    """Bring the ledger into the warehouse; where a sync is at work, the next one does it."""
    from msgbubbles_sync.groups.load import load_ledger

    try:
        with hold_lock(workspace.folder):
            load_ledger(workspace)
    except AnotherJobRunsError:
        reporter.say("a sync is at work; the next one brings these operations into the warehouse")


def _each(
    chats: list[str], ask: Callable[[Client, str], None], database: Path | None, account: str | None, *, sandbox: bool
) -> None:
    """Ask for each chat, and go on with the next when one is refused."""
    reporter = Reporter(quiet=False, as_json=False)

    def body(command: Command) -> int:
        from msgbubbles.errors import ForbiddenError, PermanentError, RetryableError
        from msgbubbles_sync.groups.display import escaped
        from msgbubbles_sync.groups.job import list_groups

        known = list_groups(command.workspace)
        failed = forbidden = 0
        with command.client() as client:
            for chat in chats:
                group = known.get(chat)
                try:
                    ask(client, group.chat_id if group and group.chat_id else chat)
                except (PermanentError, RetryableError, ForbiddenError) as error:
                    reporter.fail(f"{escaped(chat)}: {error}")
                    failed += 1
                    forbidden += isinstance(error, ForbiddenError)
        if forbidden == len(chats):
            return EXIT_FAILED
        return EXIT_INCOMPLETE if failed else 0

    _run(body, database, account, reporter, sandbox=sandbox)
