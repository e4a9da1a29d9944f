"""Sends a plan's operations: each written down before it is asked, and its verdict after.

Killed anywhere, nothing is lost or done twice. A creation is repeated with its own `Idempotency-Key`, to which the API
answers with the original group. Of the other operations an answer that never came is looked for in the chat; where the
chat does not show it, the operation is repeated, which changes nothing if it was done.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby

from msgbubbles.client import Client
from msgbubbles.errors import (
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
from .lookup import find_created
from .model import MIN_MEMBERS, ObservedGroup, Operation
from .plan import Plan
from .redact import GroupRedactor
from .result import (
    DISGUISED,
    DONE_BEFORE,
    NOBODY_KNOWS,
    NOT_FOUND,
    NOT_IN_EFFECT,
    ApplyResult,
    Failure,
    Remark,
    describe_result,
)
from .view import GroupView, Renderings, fetch_view

# So many groups of one number in a row without an answer, and the number's other groups are left for the next time.
MAX_UNREACHABLE = 3
# So many groups in a row refused with 403, and it is the account that is closed and not the groups.
MAX_FORBIDDEN = 2


class RedactedOperationError(Exception):
    """The ledger has only pseudonyms of what was asked, and its row in the desired table has changed."""


class Applier:
    """Sends operations with one client, and writes them into one ledger. One at a time on a ledger: its caller holds
    the lock.
    """

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
        # Groups of which an operation has no verdict: nothing else may be asked for them.
        self._blocked: set[str] = set()

    def resolve_unknown(self) -> None:
        """Find the verdicts that are missing: of an apply that was killed, or that got no answer.

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        looks: dict[str, GroupView] = {}
        for entry in self._ledger.unresolved():
            if entry.key in self._blocked:
                continue
            try:
                if entry.operation == "create" or entry.chat_id is None:
                    verdict = self._verdict(entry, is_first=False)
                else:
                    if entry.chat_id not in looks:
                        looks[entry.chat_id] = fetch_view(
                            self._ledger, self._client, entry.key or "", entry.chat_id or ""
                        )
                    verdict = self._seen_verdict(entry, looks[entry.chat_id])
            except (RetryableError, PermanentError, ForbiddenError) as error:
                # A group that cannot be looked at waits alone.
                verdict = self._result_from_error(error, "unknown")
            except RedactedOperationError:
                verdict = OperationResult("unknown", error_code=DISGUISED)
            self._ledger.finish(entry, verdict)
            if verdict.outcome == "unknown":
                self._blocked.add(entry.key or "")
                self._failed(entry, verdict)
            else:
                self.applied.settled += 1
            self._on_operation(self.applied)

    def _seen_verdict(self, entry: Entry, view: GroupView) -> OperationResult:
        shown = self._renderings.is_in_effect(entry, view)
        if shown is None:
            return self._verdict(entry, is_first=False)
        if shown:
            return OperationResult("succeeded", happened_at=entry.requested_at)
        return OperationResult("failed", error_message=NOT_IN_EFFECT)

    def run(self, plan: Plan, known: Mapping[str, ObservedGroup]) -> ApplyResult:
        """Send the operations of a plan. A group that fails does not stop the others. What ends everything is kept in
        `halt`: a signal, or a key that does not work.
        """
        self.applied.plan_id = plan.plan_id
        numbers = {group.key: group.from_handle for group in plan.desired}
        unreachable: Counter[str] = Counter()
        forbidden = 0
        left = len(plan.operations)
        try:
            for key, operations in self._by_group(plan.operations):
                number = numbers.get(key, "")
                if key in self._blocked or unreachable[number] >= MAX_UNREACHABLE:
                    continue
                before = self.applied.counts.total()
                try:
                    last = self._change(operations, known.get(key))
                finally:
                    left -= self.applied.counts.total() - before
                unreachable[number] = unreachable[number] + 1 if last is not None and last.outcome == "unknown" else 0
                is_forbidden = last is not None and last.http_status == 403 and last.outcome != "succeeded"
                forbidden = forbidden + 1 if is_forbidden else 0
                if last is not None and forbidden >= MAX_FORBIDDEN and self._is_closed():
                    raise ForbiddenError(describe_result(last), status=403)
        except (AuthenticationError, Halt) as error:
            self.applied.halt = error
        self.applied.left = left
        return self.applied

    def _by_group(self, operations: Iterable[Operation]) -> list[tuple[str, list[Operation]]]:
        """The operations by group. Groups that were refused with 403 before come last, so that a few of them do not
        look like a closed account before anything else was tried.
        """
        entries = {one.key: one.http_status for one in self._ledger.entries() if one.outcome != "succeeded"}
        groups = [(key, list(theirs)) for key, theirs in groupby(operations, key=lambda operation: operation.key)]
        return sorted(groups, key=lambda group: entries.get(group[0]) == 403)

    def _is_closed(self) -> bool:
        """Whether it is the account that answers 403, and not a few of its groups: nothing was done, or reads are
        refused as well.
        """
        if not self.applied.succeeded:
            return True
        try:
            self._client.list_numbers()
        except ForbiddenError:
            return True
        except (PermanentError, RetryableError):
            pass
        return False

    def _change(self, operations: list[Operation], group: ObservedGroup | None) -> OperationResult | None:
        """Send the operations of one group. Returns the last verdict."""
        verdict = None
        may_be_spelled_otherwise = False
        for operation in operations:
            if operation.kind == "remove" and group is not None:
                if len(group.members) <= MIN_MEMBERS or may_be_spelled_otherwise:
                    # The person who was to take that place could not be added, or is in under another handle.
                    continue
                if self._redactor.handle(operation.handles[0], self._client, group.chat_id or "") is None:
                    self.applied.counts["remove", "failed"] += 1
                    self.applied.failures.append(Failure(operation.key, "remove", "failed", NOBODY_KNOWS))
                    continue
            creation = operation.kind == "create"
            key = build_idempotency_key(operation) if creation else None
            entry = self._ledger.begin(self.applied.plan_id, operation, group.chat_id if group else None, key)
            verdict = self._first_verdict(entry, group)
            self._ledger.finish(entry, verdict)
            self.applied.counts[operation.kind, verdict.outcome] += 1
            if verdict.outcome != "succeeded":
                self._failed(entry, verdict)
            elif group is not None:
                group = group.after(operation.kind, operation.handles, operation.title)
            self._on_operation(self.applied)
            if verdict.http_status == 401:
                raise AuthenticationError(describe_result(verdict), status=401)
            if verdict.outcome == "unknown" or (verdict.outcome == "failed" and _ends_group(verdict)):
                return verdict
            # The API says that somebody is in the group whom it does not show.
            if operation.kind == "add" and verdict.outcome == "failed" and _is_conflict(verdict):
                may_be_spelled_otherwise = True
        return verdict

    def _first_verdict(self, entry: Entry, group: ObservedGroup | None) -> OperationResult:
        traffic = self._client.transport.traffic
        before = traffic.total
        try:
            return self._verdict(entry, group, is_first=True)
        except AuthenticationError as error:
            # Only the first try is known to have done nothing.
            return self._result_from_error(error, "failed" if traffic.total == before + 1 else "unknown")
        except Exception:
            if traffic.total == before:
                self._ledger.withdraw(entry)
            raise

    def _verdict(self, entry: Entry, group: ObservedGroup | None = None, *, is_first: bool) -> OperationResult:
        """Ask for an operation, and say what came of it. `is_first` is whether it was never asked for before.

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        send = self._build_request(entry)
        retries = self._client.transport.traffic.retries
        try:
            chat = send()
        except NoIdError:
            return self._created_without_id(entry, send)
        except RetryableError as error:
            return self._result_from_error(error, "unknown")
        except (PermanentError, ForbiddenError) as error:
            # A try without an answer may have done it, and the refusal speaks of the next one.
            may_be_done = not is_first or self._client.transport.traffic.retries > retries
            return self._refused(entry, error, may_be_done=may_be_done, is_first=is_first)
        verdict = self._success(chat.id if entry.operation == "create" and chat is not None else None, chat)
        self._renderings.learn(entry, group, verdict.chat_id or entry.chat_id or "", chat)
        return verdict

    def _success(self, chat_id: str | None, chat: Chat | None) -> OperationResult:
        answer = self._client.transport.last_answer
        return OperationResult(
            "succeeded",
            chat_id=chat_id,
            happened_at=chat.created_at if chat_id is not None and chat is not None else None,
            http_status=answer.status if answer else None,
            request_id=answer.request_id if answer else None,
        )

    def _build_request(self, entry: Entry) -> Callable[[], Chat | None]:
        """Build a request. Raises `RedactedOperationError` where what was asked is not known any more."""
        client, chat_id = self._client, entry.chat_id or ""
        if entry.operation == "create":
            group = self._redactor.creation(entry)
            if group is None:
                raise RedactedOperationError
            return lambda: client.create_group(
                group.from_handle, group.addresses, group.message, group.title, entry.idempotency_key
            )
        if entry.operation == "rename":
            title = self._redactor.title(entry.title or "")
            if title is None:
                raise RedactedOperationError
            return lambda: client.rename_group(chat_id, title)
        handle = self._find_handle(entry)
        if handle is None:
            raise RedactedOperationError
        ask = client.add_participant if entry.operation == "add" else client.remove_participant
        return lambda: ask(chat_id, handle)

    # -- answers that leave something open

    def _created_without_id(self, entry: Entry, send: Callable[[], Chat | None]) -> OperationResult:
        """The verdict on a creation that succeeded, and whose answer does not say which group it is: asked once more,
        with its own key, and looked for.
        """
        done = self._success(None, None)
        try:
            chat = send() or self._search(entry)[0]
        except (RetryableError, PermanentError, ForbiddenError):
            chat = self._search(entry)[0]
        if chat is None:
            return replace(done, outcome="unknown", error_code=NOT_FOUND)
        return replace(done, chat_id=chat.id, happened_at=chat.created_at)

    def _search(self, entry: Entry) -> tuple[Chat | None, bool]:
        """The group of a creation, and whether there is surely none otherwise."""
        entries, observations = self._ledger.entries(), self._ledger.observations()
        taken = {one.chat_id for one in observations} | {one.chat_id for one in entries if one.chat_id is not None}
        try:
            search = find_created(self._client, entry, taken)
        except (RetryableError, PermanentError, ForbiddenError):
            return None, False
        return search.group, search.is_certain

    def _refused(
        self, entry: Entry, error: PermanentError | ForbiddenError, *, may_be_done: bool, is_first: bool
    ) -> OperationResult:
        """The verdict on an operation that was refused. An error may only say that there was nothing left to do."""
        refused = self._result_from_error(error, "failed")
        if entry.operation == "create":
            chat, is_none = self._search(entry) if may_be_done else (None, True)
            if chat is not None:
                self._remark(entry)
                return replace(refused, outcome="succeeded", chat_id=chat.id, happened_at=chat.created_at)
            # What was asked for a moment ago may not be on the list yet.
            is_open = may_be_done and (is_first or not is_none)
            return replace(refused, outcome="unknown", error_code=error.code or NOT_FOUND) if is_open else refused
        is_redundant = _may_be_redundant(entry, error)
        if not may_be_done and not is_redundant:
            return refused
        sent = self._find_handle(entry)
        try:
            view = fetch_view(self._ledger, self._client, entry.key or "", entry.chat_id or "")
        except (RetryableError, PermanentError, ForbiddenError):
            return replace(refused, outcome="unknown")
        if view.observation.is_gone:
            return refused
        shown = self._renderings.is_in_effect(entry, view)
        if shown is False and entry.operation == "remove":
            return self._removed_as_shown(entry, view, sent) or refused
        if shown or (shown is None and is_redundant):
            self._remark(entry)
            return replace(refused, outcome="succeeded")
        return replace(refused, outcome="unknown") if shown is None and is_first else refused

    def _find_handle(self, entry: Entry) -> str | None:
        """The handle that an operation on one person sends; null for other operations."""
        if entry.operation not in ("add", "remove"):
            return None
        return self._redactor.handle(entry.handles[0], self._client, entry.chat_id or "")

    def _removed_as_shown(self, entry: Entry, view: GroupView, sent: str | None) -> OperationResult | None:
        """The verdict on a removal under the handle that the group shows; null where that was `sent` already."""
        spelling = self._renderings.find_spelling(entry.handles[0], view)
        handle = None if spelling is None else self._redactor.handle(spelling, self._client, entry.chat_id or "")
        if handle in (None, sent):
            return None
        try:
            self._client.remove_participant(entry.chat_id or "", handle or "")
        except RetryableError as error:
            return self._result_from_error(error, "unknown")
        except (PermanentError, ForbiddenError) as error:
            return self._result_from_error(error, "failed")
        return self._success(None, None)

    def _remark(self, entry: Entry) -> None:
        self.applied.remarks.append(Remark(entry.key or "", entry.operation, DONE_BEFORE[entry.operation]))

    def _result_from_error(self, error: ApiError, outcome: Outcome) -> OperationResult:
        """What an error says of the operation that was asked for just now."""
        return OperationResult(
            outcome,
            http_status=error.status,
            error_code=error.code,
            error_message=self._redactor.quoted(self._client.transport.last_error_message or str(error)),
            request_id=error.request_id,
        )

    def _failed(self, entry: Entry, verdict: OperationResult) -> None:
        self.applied.failures.append(
            Failure(entry.key or "", entry.operation, verdict.outcome, describe_result(verdict))
        )


def build_idempotency_key(creation: Operation) -> str:
    """The same for the same group: for its key here and all that a creation says, and for nothing else."""
    said = [creation.key, creation.from_handle, sorted(creation.handles), creation.title, creation.message]
    return "group-" + hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:40]


def _may_be_redundant(entry: Entry, error: ApiError) -> bool:
    """Whether a refusal may say that there is nothing to do: the person is in the group, or is not, or the title is."""
    if isinstance(error, ConflictError):
        return error.code != "not_a_group"
    return entry.operation == "remove" and isinstance(error, NotFoundError)


def _is_conflict(verdict: OperationResult) -> bool:
    return verdict.http_status == 409 and verdict.error_code != "not_a_group"


def _ends_group(verdict: OperationResult) -> bool:
    """Whether nothing else can be done to the group."""
    return verdict.http_status in (403, 404) or verdict.error_code == "not_a_group"
