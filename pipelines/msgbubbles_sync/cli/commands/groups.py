"""`groups.py plan`, `apply`, `import`, `forget`, `read` and `typing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, AuthenticationError, NotFoundError
from msgbubbles_sync.cli.connection import Connection, connect_until_stopped
from msgbubbles_sync.cli.console import Reporter, check_terminal, confirm
from msgbubbles_sync.cli.groups_report import (
    describe_imported,
    imported_dict,
    list_problems,
    plan_dict,
    show_applied,
    show_plan,
)
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups import existing, job
from msgbubbles_sync.groups import plan as plans
from msgbubbles_sync.groups.apply import is_key_refused
from msgbubbles_sync.groups.desired import TABLE_HELP, Row, read_rows
from msgbubbles_sync.groups.ledger import Observation
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.groups.observed import find_chat_ids
from msgbubbles_sync.groups.plan import ChangeLimits, Plan
from msgbubbles_sync.groups.redact import GroupRedactor
from msgbubbles_sync.groups.result import ApplyResult
from msgbubbles_sync.lock import AnotherJobRunsError, hold_lock
from msgbubbles_sync.outcome import EXIT_FAILED, EXIT_INCOMPLETE, explain_end
from msgbubbles_sync.text import escape, format_count

EXIT_CHANGES = 4
NO_FILE = (
    "a saved plan has numbers and messages, which [sources.msgbubbles.privacy] forbids in files. Apply the table "
    "itself; --dry-run shows what that would do."
)


def plan(session: Session, table: str | None, *, refresh: bool, out: Path | None, detailed_exitcode: bool) -> int:
    """Print a plan, and save it if `out` is given."""
    with connect_until_stopped(session, serve=refresh) as connection:
        if out is not None:
            _check_files(session)
        rows = _read_table(session, table)
        if refresh:
            with _hold_ledger(session), connection.client() as client:
                plan = job.refresh_groups(
                    session.context, client, rows, lambda count: _show_progress(session, count, len(rows))
                )
        else:
            plan = job.plan_groups(session.context, rows)
        if out is not None:
            plans.save(plan, out)
        unresolved = _show_plan(session, plan, session.reporter)
    return EXIT_CHANGES if detailed_exitcode and (plan.operations or unresolved) else 0


def apply(session: Session, table: str | None, *, ask: bool, dry_run: bool, limits: ChangeLimits) -> int:
    """Apply a table or a saved plan, or print what that would do."""
    with connect_until_stopped(session, serve=not dry_run) as connection:
        saved = plans.load(Path(table)) if table and table.endswith(".json") else None
        if saved is not None:
            _check_files(session)
        if dry_run:
            context = session.context
            plan = (
                job.resume_saved_plan(context, saved)
                if saved
                else job.plan_groups(context, _read_table(session, table))
            )
            _show_plan(session, plan, session.reporter)
            plans.check_limits(plan, limits)
            return 0
        if ask:
            check_terminal()
        with _hold_ledger(session), connection.client() as client:
            applied = job.apply_groups(
                session.context,
                client,
                saved or _read_table(session, table),
                limits=limits,
                confirm=lambda plan: not ask or _confirm(session, plan),
                on_operation=lambda so_far: session.reporter.progress(format_count(so_far.counts.total(), "operation")),
            )
            return _report(session, connection, applied)


def _confirm(session: Session, plan: Plan) -> bool:
    _show_plan(session, plan, Reporter())
    return confirm("Apply it?")


def _report(session: Session, connection: Connection, applied: ApplyResult) -> int:
    """Print the result of an apply and load the ledger. Returns the exit status."""
    requests, reporter = connection.run.traffic.total, session.reporter
    reporter.print(applied.as_dict() | {"requests": requests}, lambda console: show_applied(console, applied, requests))
    for line in list_problems(applied):
        reporter.fail(line)
    _load_ledger(session)
    is_incomplete = bool(applied.failures or applied.not_sent)
    return explain_end(applied.halt, session.context, is_incomplete=is_incomplete).exit_status


def import_group(session: Session, key: str, chat_id: str | None, title: str | None) -> int:
    with connect_until_stopped(session) as connection:
        with _hold_ledger(session), connection.client() as client:
            group = existing.import_group(session.context, client, existing.ExistingGroup(key, chat_id, title))
        session.reporter.print_text(imported_dict(group), describe_imported(group))
        _load_ledger(session)
    return 0


def import_table(session: Session, table: str) -> int:
    """Assign the keys of a table to existing groups; one that cannot be imported does not stop the others."""
    with connect_until_stopped(session) as connection:
        groups = existing.parse_existing_groups(read_rows(table, session.context))
        with _hold_ledger(session), connection.client() as client:
            results = existing.import_groups(
                session.context, client, groups, lambda count: _show_progress(session, count, len(groups))
            )
        imported = [result for result in results.values() if isinstance(result, Observation)]
        failures = {key: str(result) for key, result in results.items() if isinstance(result, UsageError)}
        session.reporter.print_text(
            {
                "groups": list(map(imported_dict, imported)),
                "failures": [{"key": key, "why": why} for key, why in failures.items()],
                "skipped": len(groups) - len(results),
            },
            "\n".join([*map(describe_imported, imported), f"{len(imported):,} of {len(groups):,} groups imported."]),
        )
        for key, why in failures.items():
            session.reporter.fail(f"{escape(key)}: {why}")
        _load_ledger(session)
    return EXIT_INCOMPLETE if failures else 0


def forget(session: Session, key: str) -> int:
    with connect_until_stopped(session, serve=False):
        with _hold_ledger(session):
            group = job.forget_group(session.context, key)
        text = f"{escape(key)} is no longer the key of {group.chat_id}; the group is unchanged"
        session.reporter.print_text({"key": key, "chat_id": group.chat_id}, text)
        _load_ledger(session)
    return 0


def send_each(session: Session, names: list[str], send: Callable[[Client, str], None], effect: str) -> int:
    """Send a request for each chat; one that is refused does not stop the others."""
    sent = refused = 0
    with connect_until_stopped(session) as connection, connection.client() as client:
        chats = _find_chats(session, client, names)
        for name, chat_id in chats.items():
            try:
                send(client, chat_id)
                sent += 1
            except ApiError as error:
                if is_key_refused(client, error.status):
                    raise
                session.reporter.fail(f"{escape(name)}: {error}")
                refused += isinstance(error, AuthenticationError)
    if sent:
        session.reporter.print_text(None, f"{effect}: {format_count(sent, 'chat')}.")
    if refused == len(chats):
        return EXIT_FAILED
    return EXIT_INCOMPLETE if sent < len(chats) else 0


def _find_chats(session: Session, client: Client, names: list[str]) -> dict[str, str]:
    """Return the chat id of each name, a group's key or a chat's id. Raises `UsageError` before anything is sent."""
    groups = job.list_groups(session.context)
    chat_ids = {name: group.chat_id for name in names if (group := groups.get(name)) and group.chat_id}
    chat_ids |= {chat_id: chat_id for chat_id in find_chat_ids(session.context, set(names) - chat_ids.keys())}
    for name in names:
        if name not in chat_ids:
            try:
                chat_ids[name] = client.get_chat(name).id
            except NotFoundError:
                # Checked for every name before the first request that changes something.
                close = get_close_matches(name, groups, 1)
                hint = f"Did you mean {escape(close[0])}?" if close else "groups.py import KEY CHAT_ID assigns a key."
                raise UsageError(f"{escape(name)} is neither the key of a group nor the id of a chat. {hint}") from None
            except ApiError:
                chat_ids[name] = name
    return {name: chat_ids[name] for name in names}


@contextmanager
def _hold_ledger(session: Session) -> Iterator[None]:
    """Check that the warehouse is this account's, and hold the lock of its ledger."""
    context = session.context
    claim(context.destination, sandbox=session.sandbox, say=session.reporter.fail)
    with hold_lock(context.workspace.folder, "apply"):
        yield


def _check_files(session: Session) -> None:
    if GroupRedactor(session.context.redactor).is_redacting:
        raise UsageError(NO_FILE)


def _read_table(session: Session, table: str | None) -> list[Row]:
    name = table or session.context.settings.groups.table
    if not name:
        raise UsageError(f"no table was given. {TABLE_HELP} Or set table in [groups] of dlt_config/config.toml.")
    return read_rows(name, session.context)


def _show_progress(session: Session, count: int, total: int) -> None:
    session.reporter.progress(f"{count:,} of {total:,} groups")


def _show_plan(session: Session, plan: Plan, reporter: Reporter) -> int:
    """Print a plan. Returns how many operations of earlier applies have an unknown outcome."""
    unresolved = job.count_unresolved(session.context)
    per_minute = session.context.settings.source.requests_per_minute
    groups = job.list_groups(session.context)
    reporter.print(
        plan_dict(plan, unresolved, per_minute),
        lambda console: show_plan(console, plan, groups, unresolved, per_minute),
    )
    return unresolved


def _load_ledger(session: Session) -> None:
    """Load the ledger into the warehouse; if a sync is active, the next one does it."""
    context = session.context
    try:
        with hold_lock(context.workspace.folder), context.destination.lock():
            load_ledger(context.destination, context.redactor)
    except AnotherJobRunsError:
        session.reporter.say("a sync is active; the next one loads these operations into the warehouse")
