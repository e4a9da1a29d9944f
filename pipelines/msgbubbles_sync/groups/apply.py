"""Send the operations of a plan, recording each in the ledger before its request and its result afterwards.

A killed process loses nothing and repeats nothing. A creation is sent again with its own `Idempotency-Key`, for which
the API returns the original group. For any other operation without an answer, the chat is fetched. If the chat cannot
show the change, the operation is sent again, which has no effect if it was done before.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby

from msgbubbles.client import Client
from msgbubbles.errors import (
    SKIPPABLE_ERRORS,
    ApiError,
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    Halt,
    NoIdError,
    NotFoundError,
    PermanentError,
    RetryableError,
)
from msgbubbles.models import Chat

from .ledger import Entry, Ledger, OperationResult, Outcome
from .lookup import Search, find_created
from .model import MIN_MEMBERS, ObservedGroup, Operation
from .plan import Plan
from .redact import GroupRedactor
from .result import (
    DONE_BEFORE,
    NOT_FOUND,
    NOT_IN_EFFECT,
    PSEUDONYMIZED,
    UNKNOWN_PERSON,
    ApplyResult,
    Failure,
    Remark,
    describe_result,
)
from .view import GroupView, Renderings, fetch_view

# After this many groups of one number in a row without an answer, its other groups wait for the next apply.
MAX_UNREACHABLE = 3
# After this many groups in a row are refused with 401 or 403, the account itself may be closed.
MAX_REFUSED = 2


class RedactedOperationError(Exception):
    """The ledger has only pseudonyms of an operation, and its row in the desired table has changed."""


class Applier:
    """Sends operations with one client and records them in one ledger. The caller holds the lock of the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        client: Client,
        redactor: GroupRedactor,
        on_operation: Callable[[ApplyResult], None] = lambda _: None,
    ) -> None:
        self.applied = ApplyResult()
        self._ledger = ledger
        self._client = client
        self._redactor = redactor
        self._renderings = Renderings(ledger, client, redactor)
        self._on_operation = on_operation
        # Groups with an operation of unknown outcome: nothing else may be sent for them.
        self._blocked: set[str] = set()

    def resolve_unknown(self) -> None:
        """Find out the unknown outcomes of earlier applies that were killed or got no answer.

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        views: dict[str, GroupView] = {}
        for entry in self._ledger.list_unresolved():
            if entry.key in self._blocked:
                continue
            try:
                result = self._resolve(entry, views)
            except ApiError as error:
                # A group that cannot be fetched does not hold up the others.
                if is_key_refused(self._client, error.status):
                    raise
                result = self._result_from_error(error, "unknown")
            except RedactedOperationError:
                result = OperationResult("unknown", error_code=PSEUDONYMIZED)
            self._ledger.finish(entry, result)
            if result.outcome == "unknown":
                self._blocked.add(entry.key or "")
                self._add_failure(entry, result)
            else:
                self.applied.resolved += 1
            self._on_operation(self.applied)

    def _resolve(self, entry: Entry, views: dict[str, GroupView]) -> OperationResult:
        if entry.operation == "create" or entry.chat_id is None:
            return self._send(entry, is_first=False)
        if entry.chat_id not in views:
            views[entry.chat_id] = fetch_view(self._ledger, self._client, entry.key or "", entry.chat_id)
        is_done = self._renderings.is_in_effect(entry, views[entry.chat_id])
        if is_done is None:
            return self._send(entry, is_first=False)
        if is_done:
            return OperationResult("succeeded", happened_at=entry.requested_at)
        return OperationResult("failed", error_message=NOT_IN_EFFECT)

    def run(self, plan: Plan, observed: Mapping[str, ObservedGroup]) -> ApplyResult:
        """Send the operations of a plan; a group that fails does not stop the others.

        A signal or a key that does not work ends the apply and is in `ApplyResult.halt`.
        """
        self.applied.plan_id = plan.plan_id
        numbers = {group.key: group.from_handle for group in plan.desired}
        unreachable: Counter[str] = Counter()
        refused = 0
        not_sent = len(plan.operations)
        try:
            for key, operations in self._order_groups(plan.operations):
                number = numbers.get(key, "")
                if key in self._blocked or unreachable[number] >= MAX_UNREACHABLE:
                    continue
                before = self.applied.counts.total()
                try:
                    last = self._apply_group(operations, observed.get(key))
                finally:
                    not_sent -= self.applied.counts.total() - before
                unreachable[number] = unreachable[number] + 1 if last is not None and last.outcome == "unknown" else 0
                is_refused = last is not None and last.http_status in (401, 403) and last.outcome != "succeeded"
                refused = refused + 1 if is_refused else 0
                if last is not None and refused >= MAX_REFUSED and self._is_account_closed():
                    raise AuthenticationError(describe_result(last), status=last.http_status)
        except (AuthenticationError, Halt) as error:
            self.applied.halt = error
        self.applied.not_sent = not_sent
        return self.applied

    def _order_groups(self, operations: Iterable[Operation]) -> list[tuple[str, list[Operation]]]:
        """Collect the operations by group, with the groups that were refused with 401 or 403 before at the end.

        At the beginning, a few of them would look like a closed account.
        """
        statuses = {
            entry.key: entry.http_status for entry in self._ledger.list_entries() if entry.outcome != "succeeded"
        }
        groups = [(key, list(some)) for key, some in groupby(operations, key=lambda operation: operation.key)]
        return sorted(groups, key=lambda group: statuses.get(group[0]) in (401, 403))

    def _is_account_closed(self) -> bool:
        """Return whether 401 or 403 is about the account: no operation succeeded, or reads are refused as well."""
        return all(outcome != "succeeded" for _, outcome in self.applied.counts) or not _has_access(self._client)

    def _apply_group(self, operations: list[Operation], group: ObservedGroup | None) -> OperationResult | None:
        """Send the operations of one group. Returns the last result."""
        result = None
        has_unseen_member = False
        for operation in operations:
            if operation.kind == "remove" and group is not None:
                if len(group.members) <= MIN_MEMBERS or has_unseen_member:
                    # The replacement could not be added, or is in the group under another handle.
                    continue
                if self._redactor.reveal_handle(operation.handles[0], self._client, group.chat_id or "") is None:
                    self.applied.counts["remove", "failed"] += 1
                    self.applied.failures.append(Failure(operation.key, "remove", "failed", UNKNOWN_PERSON))
                    continue
            key = build_idempotency_key(operation) if operation.kind == "create" else None
            entry = self._ledger.begin(self.applied.plan_id, operation, group.chat_id if group else None, key)
            result = self._send_first(entry, group)
            self._ledger.finish(entry, result)
            self.applied.counts[operation.kind, result.outcome] += 1
            if result.outcome != "succeeded":
                self._add_failure(entry, result)
            elif group is not None:
                group = group.after(operation.kind, operation.handles, operation.title)
            self._on_operation(self.applied)
            if is_key_refused(self._client, result.http_status):
                raise AuthenticationError(describe_result(result), status=result.http_status)
            if result.outcome == "unknown" or (result.outcome == "failed" and _ends_group(result)):
                return result
            if operation.kind == "add" and result.outcome == "failed" and _is_conflict(result):
                has_unseen_member = True
        return result

    def _send_first(self, entry: Entry, group: ObservedGroup | None) -> OperationResult:
        traffic = self._client.transport.traffic
        before = traffic.total
        try:
            return self._send(entry, group, is_first=True)
        except AuthenticationError as error:
            # A retry that got 401 may follow an attempt that had an effect.
            return self._result_from_error(error, "failed" if traffic.total == before + 1 else "unknown")
        except Exception:
            if traffic.total == before:
                self._ledger.withdraw(entry)
            raise

    def _send(self, entry: Entry, group: ObservedGroup | None = None, *, is_first: bool) -> OperationResult:
        """Send the request of an operation. `is_first`: it was never sent before.

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        send = self._build_request(entry)
        retries = self._client.transport.traffic.retries
        try:
            chat = send()
        except NoIdError:
            return self._resolve_missing_id(entry, send)
        except RetryableError as error:
            return self._result_from_error(error, "unknown")
        except (PermanentError, ForbiddenError) as error:
            # An attempt without an answer may have had an effect; the refusal is about a later one.
            may_be_done = not is_first or self._client.transport.traffic.retries > retries
            return self._resolve_refusal(entry, error, may_be_done=may_be_done, is_first=is_first)
        result = self._build_success(chat if entry.operation == "create" else None)
        self._renderings.learn(entry, group, result.chat_id or entry.chat_id or "", chat)
        return result

    def _build_success(self, created: Chat | None = None) -> OperationResult:
        answer = self._client.transport.last_answer
        return OperationResult(
            "succeeded",
            chat_id=created.id if created else None,
            happened_at=created.created_at if created else None,
            http_status=answer.status if answer else None,
            request_id=answer.request_id if answer else None,
        )

    def _build_request(self, entry: Entry) -> Callable[[], Chat | None]:
        """Build the request of an operation. Raises `RedactedOperationError`."""
        client, chat_id = self._client, entry.chat_id or ""
        if entry.operation == "create" and (group := self._redactor.reveal_creation(entry)):
            return lambda: client.create_group(
                group.from_handle, group.addresses, group.message, group.title, entry.idempotency_key
            )
        if entry.operation == "rename" and (title := self._redactor.reveal_title(entry.title or "")) is not None:
            return lambda: client.rename_group(chat_id, title)
        if (handle := self._reveal_handle(entry)) is not None:
            request = client.add_participant if entry.operation == "add" else client.remove_participant
            return lambda: request(chat_id, handle)
        raise RedactedOperationError

    # -- answers that leave the outcome open

    def _resolve_missing_id(self, entry: Entry, send: Callable[[], Chat | None]) -> OperationResult:
        """Identify a group whose creation succeeded with an answer that has no id.

        The creation is sent once more with its own idempotency key, then the group is searched for.
        """
        created, chat = self._build_success(), None
        with suppress(*SKIPPABLE_ERRORS):
            chat = send()
        chat = chat or self._search(entry).group
        if chat is None:
            return replace(created, outcome="unknown", error_code=NOT_FOUND)
        return replace(created, chat_id=chat.id, happened_at=chat.created_at)

    def _search(self, entry: Entry) -> Search:
        chat_ids = {observation.chat_id for observation in self._ledger.list_observations()}
        chat_ids |= {other.chat_id for other in self._ledger.list_entries() if other.chat_id is not None}
        try:
            return find_created(self._client, entry, chat_ids)
        except SKIPPABLE_ERRORS:
            return Search()

    def _resolve_refusal(
        self, entry: Entry, error: PermanentError | ForbiddenError, *, may_be_done: bool, is_first: bool
    ) -> OperationResult:
        """Find out the outcome of an operation that was refused. The error may mean that there was nothing to do."""
        refused = self._result_from_error(error, "failed")
        if entry.operation == "create":
            search = self._search(entry) if may_be_done else Search(None, is_certain=True)
            if search.group is not None:
                self._add_remark(entry)
                chat = search.group
                return replace(refused, outcome="succeeded", chat_id=chat.id, happened_at=chat.created_at)
            # A group that was just created may not be on the list yet.
            is_open = may_be_done and (is_first or not search.is_certain)
            return replace(refused, outcome="unknown", error_code=error.code or NOT_FOUND) if is_open else refused
        is_redundant = _may_be_redundant(entry, error)
        if not may_be_done and not is_redundant:
            return refused
        sent = self._reveal_handle(entry)
        try:
            view = fetch_view(self._ledger, self._client, entry.key or "", entry.chat_id or "")
        except SKIPPABLE_ERRORS:
            return replace(refused, outcome="unknown")
        if view.observation.is_gone:
            return refused
        is_done = self._renderings.is_in_effect(entry, view)
        if is_done is False and entry.operation == "remove":
            return self._remove_as_shown(entry, view, sent) or refused
        if is_done or (is_done is None and is_redundant):
            self._add_remark(entry)
            return replace(refused, outcome="succeeded")
        return replace(refused, outcome="unknown") if is_done is None and is_first else refused

    def _reveal_handle(self, entry: Entry) -> str | None:
        """Return the handle to send for adding or removing a person; null for other operations."""
        if entry.operation not in ("add", "remove"):
            return None
        return self._redactor.reveal_handle(entry.handles[0], self._client, entry.chat_id or "")

    def _remove_as_shown(self, entry: Entry, view: GroupView, sent: str | None) -> OperationResult | None:
        """Remove a person under the handle that the group shows; null if that is the handle `sent` before."""
        spelling = self._renderings.find_spelling(entry.handles[0], view)
        chat_id = entry.chat_id or ""
        handle = None if spelling is None else self._redactor.reveal_handle(spelling, self._client, chat_id)
        if handle is None or handle == sent:
            return None
        try:
            self._client.remove_participant(chat_id, handle)
        except SKIPPABLE_ERRORS as error:
            return self._result_from_error(error, "unknown" if isinstance(error, RetryableError) else "failed")
        return self._build_success()

    def _add_remark(self, entry: Entry) -> None:
        self.applied.remarks.append(Remark(entry.key or "", entry.operation, DONE_BEFORE[entry.operation]))

    def _add_failure(self, entry: Entry, result: OperationResult) -> None:
        why = describe_result(result)
        self.applied.failures.append(Failure(entry.key or "", entry.operation, result.outcome, why))

    def _result_from_error(self, error: ApiError, outcome: Outcome) -> OperationResult:
        return OperationResult(
            outcome,
            http_status=error.status,
            error_code=error.code,
            error_message=self._redactor.redact_message(self._client.transport.last_error_message or str(error)),
            request_id=error.request_id,
        )


def is_key_refused(client: Client, status: int | None) -> bool:
    """Return whether an answer with this status is a 401 to the key, and not only to its own request."""
    return status == 401 and not _has_access(client)


def _has_access(client: Client) -> bool:
    """Return whether the API lists the numbers or the chats, or at least does not refuse to."""
    for request in (client.list_numbers, partial(client.list_chats, limit=1)):
        try:
            request()
        except AuthenticationError:
            continue
        except ApiError:
            pass
        return True
    return False


def build_idempotency_key(creation: Operation) -> str:
    """Build a key that is the same for the same group key and creation, and for nothing else."""
    parts = [creation.key, creation.from_handle, sorted(creation.handles), creation.title, creation.message]
    return "group-" + hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:40]


def _may_be_redundant(entry: Entry, error: ApiError) -> bool:
    """Return whether a refusal may mean that there is nothing to do."""
    if isinstance(error, ConflictError):
        return error.code != "not_a_group"
    return entry.operation == "remove" and isinstance(error, NotFoundError)


def _is_conflict(result: OperationResult) -> bool:
    """Return whether the API says that a person is in the group, although it does not show them."""
    return result.http_status == 409 and result.error_code != "not_a_group"


def _ends_group(result: OperationResult) -> bool:
    """Return whether no other operation on the group can succeed."""
    return result.http_status in (401, 403, 404) or result.error_code == "not_a_group"
