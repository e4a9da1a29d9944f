"""Plan and apply groups: what groups.py and the dlt destination share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from msgbubbles.client import Client
from msgbubbles.errors import (
    ApiError,
    AuthenticationError,
    NotFoundError,
    PermanentError,
    RetryableError,
    UnreachableError,
)
from msgbubbles_sync.context import Context
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.text import escape

from .apply import Applier
from .desired import Row, validate_rows
from .ledger import Ledger
from .model import DesiredGroup, ObservedGroup
from .observed import observe_groups, open_ledger, read_published
from .plan import LIMITS, ChangeLimits, Note, Plan, build_plan, check_limits, trim_plan
from .redact import GroupRedactor
from .result import ApplyResult
from .view import fetch_view


def plan_groups(context: Context, rows: Sequence[Row]) -> Plan:
    """Plan the groups of these rows by what is stored, without a request. Raises `UsageError`."""
    published = read_published(context)
    desired = _redact_rows(rows, published.numbers, GroupRedactor(context.redactor))
    with open_ledger(context) as ledger:
        return build_plan(desired, observe_groups(ledger, published))


def refresh_groups(context: Context, client: Client, rows: Sequence[Row], on_group: Callable[[int], None]) -> Plan:
    """Plan the groups of these rows by what the API shows: one request for the numbers, and one for each group.

    What it shows is recorded in the ledger. A group that it does not show gets a note in the plan. The caller holds the
    lock `apply`. Raises `UsageError`, `Halt`, and as `fetch_own_numbers` does.
    """
    redactor = GroupRedactor(context.redactor)
    client = redactor.wrap_client(client)
    published = read_published(context)
    desired = _redact_rows(rows, fetch_own_numbers(client) or published.numbers, redactor)
    notes = []
    with open_ledger(context) as ledger:
        observed = observe_groups(ledger, published)
        for count, group in enumerate(desired, 1):
            chat_id = observed[group.key].chat_id if group.key in observed else None
            if chat_id is not None:
                try:
                    fetch_view(ledger, client, group.key, chat_id)
                except UnreachableError:
                    raise
                except ApiError as error:  # the key works: the numbers, or the chats, have been listed
                    notes.append(Note(group.key, f"not refreshed: {escape(str(error))}"))
            on_group(count)
        plan = build_plan(desired, observe_groups(ledger, published))
    return replace(plan, notes=(*plan.notes, *notes))


def _redact_rows(
    rows: Sequence[Row], numbers: frozenset[str] | None, group_redactor: GroupRedactor
) -> tuple[DesiredGroup, ...]:
    redactor = group_redactor.redactor
    redactor.add_own_numbers(numbers or ())
    return group_redactor.redact_groups(validate_rows(rows, numbers, redactor.own_handle))


def resume_saved_plan(context: Context, plan: Plan) -> Plan:
    """Return what is left to do of a saved plan. Raises `UsageError` if the groups have changed since."""
    with open_ledger(context) as ledger:
        return _trim(plan, ledger, observe_groups(ledger, read_published(context)))


def _trim(plan: Plan, ledger: Ledger, observed: dict[str, ObservedGroup]) -> Plan:
    return trim_plan(plan, observed, begun=bool(ledger.list_entries(plan.plan_id)))


def list_groups(context: Context) -> dict[str, ObservedGroup]:
    """Return the groups that have a key, by key, as they are known without a request."""
    with open_ledger(context) as ledger:
        return observe_groups(ledger, read_published(context))


def count_unresolved(context: Context) -> int:
    """Count the operations of earlier applies whose outcome is unknown."""
    with Ledger.open(context.workspace.folder) as ledger:
        return len(ledger.list_unresolved())


def fetch_own_numbers(client: Client) -> frozenset[str] | None:
    """Fetch the account's numbers (`GET /v1/numbers`); null if the API does not list them.

    Each creation then shows whether its number is one. Raises `AuthenticationError` for a key that does not work, and
    `UnreachableError` or `NotFoundError` if there is no API behind `base_url`.
    """
    try:
        with suppress(NotFoundError, AuthenticationError):
            return frozenset(number.handle for number in client.list_numbers().rows) or None
        client.list_chats(limit=1)  # without a key that works, or an API behind `base_url`, it fails too
    except (UnreachableError, NotFoundError, AuthenticationError):
        raise
    except (PermanentError, RetryableError):
        pass
    return None


def apply_groups(
    context: Context,
    client: Client,
    table: Sequence[Row] | Plan,
    *,
    limits: ChangeLimits = LIMITS,
    confirm: Callable[[Plan], bool] = lambda _plan: True,
    on_operation: Callable[[ApplyResult], None] = lambda _applied: None,
) -> ApplyResult:
    """Apply the rows of a table, or a saved plan. `confirm` gets the plan before anything is changed.

    The caller holds the lock `apply`. Raises `UsageError` if the rows, the plan or a limit forbid it, and client errors
    until the first operation is sent; after that, see `ApplyResult.halt`.
    """
    redactor = GroupRedactor(context.redactor)
    client = redactor.wrap_client(client)
    with open_ledger(context) as ledger:
        if isinstance(table, Plan):
            desired: Sequence[DesiredGroup] = table.desired
        else:
            numbers = fetch_own_numbers(client) or read_published(context).numbers
            desired = _redact_rows(table, numbers, redactor)
        applier = Applier(ledger, client, redactor, on_operation)
        applier.resolve_unknown()
        observed = observe_groups(ledger, read_published(context))
        plan = _trim(table, ledger, observed) if isinstance(table, Plan) else build_plan(desired, observed)
        check_limits(plan, limits)
        if plan.operations and not confirm(plan):
            applier.applied.not_sent = len(plan.operations)
            return applier.applied
        return applier.run(plan, observed)


def forget_group(context: Context, key: str) -> ObservedGroup:
    """Detach a key from its group, which stays as it is. Raises `UsageError` for an unknown key."""
    with open_ledger(context) as ledger:
        group = observe_groups(ledger, read_published(context)).get(key)
        if group is None:
            raise UsageError(f"no group has the key {escape(key)}. Check the key in your table.")
        if any(entry.key == key for entry in ledger.list_unresolved()):
            raise UsageError(f"{escape(key)} has an operation of unknown outcome. Run groups.py apply first.")
        ledger.forget(key)
        return group
