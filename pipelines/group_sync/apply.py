"""Sends a plan's operations: each written down before it is asked, and its verdict after.

Killed anywhere, nothing is lost or done twice. A creation is repeated with its own `Idempotency-Key`, to which the API
answers with the original group. Of the other operations an answer that never came is looked for in the chat; where the
chat does not show it, the operation is repeated, which changes nothing if it was done.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from msgbubbles.client import Client
from msgbubbles.errors import (
    ApiError,
    AuthenticationError,
    ConflictError,
    Halt,
    NotFoundError,
    PermanentError,
    RetryableError,
)
from msgbubbles.models import Chat, participants_of

from .known import people
from .ledger import Entry, Ledger, Outcome, Sighting, Verdict
from .model import MIN_MEMBERS, KnownGroup, Operation
from .planner import Plan
from .privacy import Disguise

# So many groups of one number in a row without an answer, and the number's other groups are left for the next time.
MAX_UNREACHABLE = 3
NOBODY_KNOWS = (
    "who is behind the pseudonym is in no table here, and the API does not show it: remove them in the app, or "
    "configure a vault"
)
# Of an operation that cannot be repeated: what it said is kept as a pseudonym only.
DISGUISED = "disguised"
NOT_IN_EFFECT = "no answer came; a look at the chat showed that it was not done"


class DisguisedError(Exception):
    """What was asked is known in disguise only, and its row is not in the desired table as it was."""


@dataclass(frozen=True)
class Failure:
    """An operation that did not succeed. `why` names no handle."""

    key: str
    operation: str
    outcome: str
    why: str


@dataclass
class Applied:
    """What came of it. `counts` are of operations, by kind and outcome; `left` were not sent. `halt` ended it early."""

    plan_id: str = ""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    settled: int = 0
    left: int = 0
    halt: Exception | None = None

    @property
    def succeeded(self) -> int:
        return sum(count for (_, outcome), count in self.counts.items() if outcome == "succeeded")

    def as_dict(self) -> dict[str, Any]:
        kinds = ("create", "rename", "add", "remove")
        return {
            "plan_id": self.plan_id,
            "operations": {
                kind: {outcome: n for (what, outcome), n in sorted(self.counts.items()) if what == kind}
                for kind in kinds
            },
            "settled": self.settled,
            "left": self.left,
            "failures": [vars(failure) for failure in self.failures],
            "halt": None if self.halt is None else str(self.halt),
        }


class Applier:
    """Sends operations with one client, and writes them into one ledger. One at a time on a ledger: its caller holds
    the lock."""

    def __init__(
        self,
        ledger: Ledger,
        client: Client,
        disguise: Disguise,
        on_operation: Callable[[Applied], None] = lambda _: None,
    ) -> None:
        self.applied = Applied()
        self._ledger = ledger
        self._client = client
        self._disguise = disguise
        self._on_operation = on_operation
        # Groups of which an operation has no verdict: nothing else may be asked for them.
        self._blocked: set[str] = set()

    def settle(self) -> None:
        """Find the verdicts that are missing: of an apply that was killed, or that got no answer.

        Raises `AuthenticationError` and `Halt`.
        """
        sightings: dict[str, Sighting] = {}
        for entry in self._ledger.unsettled():
            if entry.key in self._blocked:
                continue
            try:
                if entry.operation == "create" or entry.chat_id is None:
                    verdict = self._verdict(entry)
                else:
                    if entry.chat_id not in sightings:
                        sightings[entry.chat_id] = look(self._ledger, self._client, entry.key or "", entry.chat_id)
                    verdict = self._seen_verdict(entry, sightings[entry.chat_id])
            except RetryableError as error:
                verdict = self._verdict_of(error, "unknown")
            except DisguisedError:
                verdict = Verdict("unknown", error_code=DISGUISED)
            self._ledger.finish(entry, verdict)
            if verdict.outcome == "unknown":
                self._blocked.add(entry.key or "")
                self._failed(entry, verdict)
            else:
                self.applied.settled += 1
            self._on_operation(self.applied)

    def _seen_verdict(self, entry: Entry, sighting: Sighting) -> Verdict:
        shown = _in_effect(entry, sighting)
        if shown is None:
            return self._verdict(entry)
        if shown:
            return Verdict("succeeded", happened_at=entry.requested_at)
        return Verdict("failed", error_message=NOT_IN_EFFECT)

    def run(self, plan: Plan, known: Mapping[str, KnownGroup]) -> Applied:
        """Send the operations of a plan. A group that fails does not stop the others. What ends everything is kept in
        `halt`: a signal, or a key that does not work."""
        self.applied.plan_id = plan.plan_id
        numbers = {group.key: group.from_handle for group in plan.desired}
        unreachable: Counter[str] = Counter()
        left = len(plan.operations)
        try:
            for key, operations in groupby(plan.operations, key=lambda operation: operation.key):
                number = numbers.get(key, "")
                if key in self._blocked or unreachable[number] >= MAX_UNREACHABLE:
                    continue
                before = self.applied.counts.total()
                try:
                    unreachable[number] = (
                        0 if self._change(list(operations), known.get(key)) else unreachable[number] + 1
                    )
                finally:
                    left -= self.applied.counts.total() - before
        except (AuthenticationError, Halt) as error:
            self.applied.halt = error
        self.applied.left = left
        return self.applied

    def _change(self, operations: list[Operation], group: KnownGroup | None) -> bool:
        """Send the operations of one group. Returns whether the API answered."""
        for operation in operations:
            if operation.kind == "remove" and group is not None:
                if len(group.members) <= MIN_MEMBERS:
                    # Whoever was to take that place could not be added.
                    continue
                if self._disguise.handle(operation.handles[0], self._client, group.chat_id or "") is None:
                    self.applied.counts["remove", "failed"] += 1
                    self.applied.failures.append(Failure(operation.key, "remove", "failed", NOBODY_KNOWS))
                    continue
            creation = operation.kind == "create"
            key = idempotency_key_of(operation) if creation else None
            entry = self._ledger.begin(self.applied.plan_id, operation, group.chat_id if group else None, key)
            verdict = self._first_verdict(entry)
            self._ledger.finish(entry, verdict)
            self.applied.counts[operation.kind, verdict.outcome] += 1
            if verdict.outcome != "succeeded":
                self._failed(entry, verdict)
            elif group is not None:
                group = group.after(operation.kind, operation.handles, operation.title)
            self._on_operation(self.applied)
            if verdict.http_status in (401, 403):
                raise AuthenticationError(_why(verdict), status=verdict.http_status)
            if verdict.outcome == "unknown":
                return False
            if verdict.outcome == "failed" and (verdict.http_status == 404 or verdict.error_code == "not_a_group"):
                return True
        return True

    def _first_verdict(self, entry: Entry) -> Verdict:
        before = self._client.transport.traffic.total
        try:
            return self._verdict(entry)
        except AuthenticationError as error:
            # Only the first try is known to have done nothing.
            return self._verdict_of(
                error, "failed" if self._client.transport.traffic.total == before + 1 else "unknown"
            )
        except Exception:
            if self._client.transport.traffic.total == before:
                self._ledger.withdraw(entry)
            raise

    def _verdict(self, entry: Entry) -> Verdict:
        """Ask for an operation, and say what came of it. Raises `AuthenticationError` and `Halt`."""
        try:
            chat = self._asked(entry)
        except RetryableError as error:
            return self._verdict_of(error, "unknown")
        except PermanentError as error:
            refused = self._verdict_of(error, "failed")
            return replace(refused, outcome="succeeded") if self._is_done_anyway(entry, error) else refused
        answer = self._client.transport.last_answer
        return Verdict(
            "succeeded",
            chat_id=chat.id,
            happened_at=chat.created_at if entry.operation == "create" else None,
            http_status=answer.status if answer else None,
            request_id=answer.request_id if answer else None,
        )

    def _asked(self, entry: Entry) -> Chat:
        """Raises `DisguisedError` where it cannot be said any more what is to be asked."""
        if entry.operation == "create":
            group = self._disguise.creation(entry)
            if group is None:
                raise DisguisedError
            return self._client.create_group(
                group.from_handle, group.addresses, group.message, group.title, entry.idempotency_key
            )
        chat_id = entry.chat_id or ""
        if entry.operation == "rename":
            title = self._disguise.title(entry.title or "")
            if title is None:
                raise DisguisedError
            return self._client.rename_group(chat_id, title)
        handle = self._disguise.handle(entry.handles[0], self._client, chat_id)
        if handle is None:
            raise DisguisedError
        if entry.operation == "add":
            return self._client.add_participant(chat_id, handle)
        return self._client.remove_participant(chat_id, handle)

    def _is_done_anyway(self, entry: Entry, error: PermanentError) -> bool:
        """Whether an error only says that there was nothing left to do: so it is when the answer to a try that did it
        was lost on the way, and the next try removes somebody who is gone."""
        missing = entry.operation == "remove" and isinstance(error, NotFoundError)
        there = entry.operation == "add" and isinstance(error, ConflictError) and error.code != "not_a_group"
        if not missing and not there:
            return False
        try:
            sighting = look(self._ledger, self._client, entry.key or "", entry.chat_id or "")
        except (RetryableError, PermanentError):
            return False
        shown = _in_effect(entry, sighting)
        # The chat is there, so it is the person who was not found.
        return missing and not sighting.is_gone if shown is None else shown

    def _verdict_of(self, error: ApiError, outcome: Outcome) -> Verdict:
        """What an error says of the operation that was asked for just now."""
        return Verdict(
            outcome,
            http_status=error.status,
            error_code=error.code,
            error_message=self._disguise.quoted(self._client.transport.last_said or str(error)),
            request_id=error.request_id,
        )

    def _failed(self, entry: Entry, verdict: Verdict) -> None:
        self.applied.failures.append(Failure(entry.key or "", entry.operation, verdict.outcome, _why(verdict)))


def look(ledger: Ledger, client: Client, key: str, chat_id: str) -> Sighting:
    """How a group is now, by `GET /chats/:id`; the ledger keeps it. Raises as the client does, but not for 404."""
    seen_at = datetime.now(UTC)
    try:
        chat = client.get_chat(chat_id)
    except NotFoundError:
        sighting = Sighting(key, chat_id, None, None, None, True, seen_at)
    else:
        shown = participants_of(chat)
        handles = None if shown is None else people(shown, chat.from_handle)
        sighting = Sighting(key, chat_id, chat.from_handle, chat.title, handles, False, seen_at)
    ledger.saw(sighting)
    return sighting


def idempotency_key_of(creation: Operation) -> str:
    """The same for the same group: for its key here and all that a creation says, and for nothing else."""
    said = [creation.key, creation.from_handle, sorted(creation.handles), creation.title, creation.message]
    return "group-" + hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:40]


def _in_effect(entry: Entry, sighting: Sighting) -> bool | None:
    """Whether a look shows that an operation was done; null where it cannot show it."""
    if entry.operation == "rename":
        return sighting.title == entry.title
    if sighting.handles is None:
        return None
    is_member = entry.handles[0] in sighting.handles
    return is_member if entry.operation == "add" else not is_member


def _why(verdict: Verdict) -> str:
    """What the API said, in its stable words: its message for humans may quote handles."""
    said = " ".join(str(one) for one in (verdict.http_status, verdict.error_code) if one is not None)
    request = f" (request {verdict.request_id})" if verdict.request_id else ""
    if verdict.error_code == DISGUISED:
        return "no verdict, and its row is not in the table as it was: have it so for one apply, which finds out"
    if verdict.outcome == "unknown":
        return f"no verdict: {said or 'the API could not be reached'}{request}; the next apply finds out"
    return f"the API answered {said or 'with an error'}{request}"
