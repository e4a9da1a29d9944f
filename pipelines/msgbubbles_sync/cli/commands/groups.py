"""`groups.py plan`, `apply`, `import`, `read` and `typing`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from msgbubbles.client import Client
from msgbubbles.errors import ForbiddenError, PermanentError, RetryableError
from msgbubbles_sync.cli.connection import Connection, connect
from msgbubbles_sync.cli.console import Reporter
from msgbubbles_sync.cli.groups_report import adopted_text, complaints, plan_dict, show_applied, show_plan
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups import job
from msgbubbles_sync.groups import plan as plans
from msgbubbles_sync.groups.desired import WHAT_A_TABLE_IS, read_rows
from msgbubbles_sync.groups.display import escape
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.groups.plan import Plan
from msgbubbles_sync.groups.redact import GroupRedactor
from msgbubbles_sync.lock import AnotherJobRunsError, hold_lock
from msgbubbles_sync.outcome import EXIT_FAILED, EXIT_INCOMPLETE, explain_end

NO_FILE = (
    "a plan in a file has to hold numbers and messages, which [sources.msgbubbles.privacy] keeps out of files: "
    "apply the table itself; --dry-run shows what that would do"
)


def plan(session: Session, table: str | None, *, out: Path | None) -> int:
    """Print what has to be done, and save it if there is a file for it."""
    with _connect(session, serve=False) as connection:
        if out is not None:
            _check_files(session)
        plan = _plan_table(session, table)
        if out is not None:
            plans.save(plan, out)
        _show_plan(session, connection, plan, session.reporter)
    return 0


def apply(
    session: Session,
    table: str | None,
    *,
    ask: bool,
    dry_run: bool,
    max_creates: int,
    max_removals: int,
) -> int:
    """Apply a table or a saved plan; or print what that would do."""
    with _connect(session, serve=not dry_run) as connection:
        saved = plans.load(Path(table)) if table and table.endswith(".json") else None
        if saved is not None:
            _check_files(session)
        if dry_run:
            workspace = session.context.workspace
            plan = _plan_table(session, table) if saved is None else job.resume_saved_plan(workspace, saved)
            _show_plan(session, connection, plan, session.reporter)
            plans.check_limits(plan, max_creates, max_removals)
            return 0
        if ask and not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked; say --yes to apply without asking")
        _claim(session)
        with hold_lock(session.context.workspace.folder, "apply"):
            return _apply(session, connection, table, saved, max_creates, max_removals, ask=ask)


def adopt(session: Session, key: str, chat_id: str) -> int:
    """Put an existing group under a key."""
    with _connect(session) as connection:
        _claim(session)
        with hold_lock(session.context.workspace.folder, "apply"), connection.client() as client:
            group = job.adopt_group(session.context.workspace, client, key.strip(), chat_id)
        as_dict = {"key": group.key, "chat_id": group.chat_id, "members": len(group.handles or ())}
        session.reporter.print_text(as_dict, adopted_text(group))
        _load_ledger(session)
    return 0


def send_each(session: Session, chats: list[str], send: Callable[[Client, str], None]) -> int:
    """Make a request for each chat, and go on with the next when one is refused."""
    failed = forbidden = 0
    with _connect(session) as connection:
        groups = job.list_groups(session.context.workspace)
        with connection.client() as client:
            for chat in chats:
                group = groups.get(chat)
                try:
                    send(client, group.chat_id if group and group.chat_id else chat)
                except (PermanentError, RetryableError, ForbiddenError) as error:
                    session.reporter.fail(f"{escape(chat)}: {error}")
                    failed += 1
                    forbidden += isinstance(error, ForbiddenError)
    if forbidden == len(chats):
        return EXIT_FAILED
    return EXIT_INCOMPLETE if failed else 0


@contextmanager
def _connect(session: Session, *, serve: bool = True) -> Iterator[Connection]:
    with connect(session, serve=serve) as connection, stopped_by_signals(connection.run.stop):
        yield connection


def _claim(session: Session) -> None:
    claim(session.context.workspace, session.context.destination, sandbox=session.sandbox, say=session.reporter.fail)


def _check_files(session: Session) -> None:
    if GroupRedactor(session.context.redactor).is_redacting:
        raise UsageError(NO_FILE)


def _table_name(session: Session, table: str | None) -> str:
    name = table or session.context.settings.groups.table
    if not name:
        raise UsageError(f"which groups? {WHAT_A_TABLE_IS}; or set table in [groups] of dlt_config/config.toml")
    return name


def _plan_table(session: Session, table: str | None) -> Plan:
    return job.plan_groups(session.context.workspace, read_rows(_table_name(session, table), session.context.workspace))


def _show_plan(session: Session, connection: Connection, plan: Plan, reporter: Reporter) -> None:
    workspace, per_minute = session.context.workspace, connection.context.settings.source.requests_per_minute
    unresolved, groups = job.count_unresolved(workspace), job.list_groups(workspace)
    reporter.print(
        plan_dict(plan, unresolved, per_minute),
        lambda console: show_plan(console, plan, groups, unresolved, per_minute),
    )


def _apply(
    session: Session,
    connection: Connection,
    table: str | None,
    saved: Plan | None,
    max_creates: int,
    max_removals: int,
    *,
    ask: bool,
) -> int:
    workspace, reporter = session.context.workspace, session.reporter

    def confirm(plan: Plan) -> bool:
        if not ask:
            return True
        _show_plan(session, connection, plan, Reporter())
        return typer.confirm("Apply it?", err=True)

    with connection.client() as client:
        applied = job.apply_groups(
            workspace,
            client,
            saved or read_rows(_table_name(session, table), workspace),
            max_creates=max_creates,
            max_removals=max_removals,
            confirm=confirm,
            on_operation=lambda so_far: reporter.progress(f"{so_far.counts.total():,} operations"),
        )
    requests = connection.run.traffic.total
    reporter.print(applied.as_dict() | {"requests": requests}, lambda console: show_applied(console, applied, requests))
    for line in complaints(applied):
        reporter.fail(line)
    _load_ledger(session)
    is_incomplete = bool(applied.failures or applied.not_sent)
    return explain_end(applied.halt, session.context, is_incomplete=is_incomplete).exit_status


def _load_ledger(session: Session) -> None:
    """Load the ledger into the warehouse; if a sync is active, the next one does it."""
    try:
        with hold_lock(session.context.workspace.folder):
            load_ledger(session.context.workspace)
    except AnotherJobRunsError:
        session.reporter.say("a sync is at work; the next one brings these operations into the warehouse")
