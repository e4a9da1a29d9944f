"""One apply, from rows to verdicts: what groups.py and the dlt destination share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.errors import ForbiddenError, PermanentError, RetryableError, UnreachableError
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.policy.applied import build_redactor
from msgbubbles_sync.workspace import Workspace

from .apply import Applier
from .desired import Row, validate_rows
from .display import escape
from .ledger import Ledger, Observation, OperationResult
from .model import DesiredGroup, ObservedGroup
from .observed import normalize_members, observe_groups, read_members, read_published, restore
from .plan import Plan, build_plan, check_limits, trim_plan
from .redact import GroupRedactor
from .result import ApplyResult


def plan_groups(workspace: Workspace, rows: Sequence[Row]) -> Plan:
    """The plan for the groups of these rows, from what is known without a request. Raises `UsageError`."""
    read, disguise = read_published(workspace), GroupRedactor(build_redactor(workspace))
    desired = _disguised(rows, read.numbers, disguise)
    with Ledger.open(workspace.folder) as ledger:
        restore(ledger, workspace)
        return build_plan(desired, observe_groups(ledger, read))


def _disguised(
    rows: Sequence[Row], numbers: frozenset[str] | None, disguise: GroupRedactor
) -> tuple[DesiredGroup, ...]:
    disguise.add_own_numbers(numbers or ())
    return disguise.redact_groups(validate_rows(rows, numbers, disguise.redact_own_handle))


def resume_saved_plan(workspace: Workspace, plan: Plan) -> Plan:
    """What is left to do of a saved plan. Raises `UsageError` when it no longer fits what is known."""
    with Ledger.open(workspace.folder) as ledger:
        restore(ledger, workspace)
        return trim_plan(
            plan, observe_groups(ledger, read_published(workspace)), begun=bool(ledger.entries(plan.plan_id))
        )


def list_groups(workspace: Workspace) -> dict[str, ObservedGroup]:
    """The groups that have a key, by key, as far as they are known without a request."""
    with Ledger.open(workspace.folder) as ledger:
        restore(ledger, workspace)
        return observe_groups(ledger, read_published(workspace))


def count_unresolved(workspace: Workspace) -> int:
    """Operations of an earlier apply that have no verdict."""
    with Ledger.open(workspace.folder) as ledger:
        return len(ledger.unresolved())


def fetch_own_numbers(client: Client) -> frozenset[str] | None:
    """The account's numbers, by `GET /v1/numbers`; null where the API does not list them: then each creation shows
    whether its number is one. Raises `AuthenticationError` for a key that does not work, and `UnreachableError`.
    """
    try:
        return frozenset(number.handle for number in client.list_numbers().rows) or None
    except UnreachableError:
        raise
    except (PermanentError, RetryableError):
        return None


def apply_groups(
    workspace: Workspace,
    client: Client,
    wanted: Sequence[Row] | Plan,
    *,
    max_creates: int,
    max_removals: int,
    confirm: Callable[[Plan], bool] = lambda _plan: True,
    on_operation: Callable[[ApplyResult], None] = lambda _applied: None,
) -> ApplyResult:
    """Bring about the groups of these rows, or a saved plan. `confirm` is shown the plan before anything is changed.

    The caller holds the lock `apply`. Raises `UsageError` when rows, plan or guards forbid it, and what the client
    raises as long as nothing of the plan was sent; after that, see `ApplyResult.halt`.
    """
    disguise = GroupRedactor(build_redactor(workspace))
    client = disguise.wrap_client(client)
    with Ledger.open(workspace.folder) as ledger:
        restore(ledger, workspace)
        if isinstance(wanted, Plan):
            desired: Sequence[DesiredGroup] = wanted.desired
        else:
            numbers = fetch_own_numbers(client) or read_published(workspace).numbers
            desired = _disguised(wanted, numbers, disguise)
        applier = Applier(ledger, client, disguise, on_operation)
        applier.resolve_unknown()
        known = observe_groups(ledger, read_published(workspace))
        if isinstance(wanted, Plan):
            plan = trim_plan(wanted, known, begun=bool(ledger.entries(wanted.plan_id)))
        else:
            plan = build_plan(desired, known)
        check_limits(plan, max_creates, max_removals)
        if plan.operations and not confirm(plan):
            applier.applied.not_sent = len(plan.operations)
            return applier.applied
        return applier.run(plan, known)


def adopt_group(workspace: Workspace, client: Client, key: str, chat_id: str) -> Observation:
    """Put an existing group under a key, as `GET /chats/:id` shows it. Raises `UsageError` when that cannot be.

    Where the API does not show who is in it, those are taken who are known from the published marts.
    """
    client = GroupRedactor(build_redactor(workspace)).wrap_client(client)
    with Ledger.open(workspace.folder) as ledger:
        restore(ledger, workspace)
        for other in observe_groups(ledger, read_published(workspace)).values():
            if other.chat_id == chat_id and other.key != key:
                raise UsageError(f"this group already has the key {escape(other.key)}")
            if other.key == key and other.chat_id not in (None, chat_id) and not other.is_gone:
                raise UsageError(f"the key {escape(key)} already stands for the group {other.chat_id}")
        seen_at = datetime.now(UTC)
        try:
            chat = client.get_chat(chat_id)
        except (PermanentError, ForbiddenError) as error:
            raise UsageError(f"no group can be adopted: {error}; check the id and the account") from None
        if not chat.is_group:
            raise UsageError("this chat is not a group; only groups can be adopted")
        shown = read_participants(chat)
        handles = (
            read_members(workspace, chat_id, chat.from_handle)
            if shown is None
            else normalize_members(shown, chat.from_handle)
        )
        observation = Observation(key, chat.id, chat.from_handle, chat.title, handles, False, seen_at)
        ledger.record_observation(observation)
        for entry in ledger.unresolved():
            if entry.key == key and entry.operation == "create":
                # This is the group whose creation had no verdict.
                ledger.finish(entry, OperationResult("succeeded", chat_id=chat.id, happened_at=chat.created_at))
        return observation
