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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Literal

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
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
from msgbubbles.handles import fold_handle, without_people
from msgbubbles.models import Chat

from .ledger import Entry, Ledger, Outcome, Rendering, Sighting, Verdict
from .lookup import find_created
from .model import MIN_MEMBERS, KnownGroup, Operation, fold_title
from .observed import people
from .plan import Plan
from .redact import Disguise

# So many groups of one number in a row without an answer, and the number's other groups are left for the next time.
MAX_UNREACHABLE = 3
# So many groups in a row refused with 403, and it is the account that is closed and not the groups.
MAX_FORBIDDEN = 2
NOBODY_KNOWS = (
    "who is behind the pseudonym is in no table here, and the API does not show it: remove them in the app, or "
    "configure a vault"
)
# Of an operation that cannot be repeated: what it said is kept as a pseudonym only.
DISGUISED = "disguised"
NOT_IN_EFFECT = "no answer came; a look at the chat showed that it was not done"
# Of a creation: it may be there, and nothing that the API shows says which group it is.
NOT_FOUND = "not_found_again"
DONE_BEFORE = {
    "create": "found among the chats of the account",
    "rename": "the group had this title already",
    "add": "the person was in the group already",
    "remove": "the person was not in the group any more",
}


class DisguisedError(Exception):
    """What was asked is known in disguise only, and its row is not in the desired table as it was."""


@dataclass(frozen=True)
class Failure:
    """An operation that did not succeed. `why` names no handle."""

    key: str
    operation: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Remark:
    """Something to know about an operation that succeeded. `what` names no handle."""

    key: str
    operation: str
    what: str


@dataclass
class Applied:
    """What came of it. `counts` are of operations, by kind and outcome; `left` were not sent. `halt` ended it early."""

    plan_id: str = ""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
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
            "remarks": [vars(remark) for remark in self.remarks],
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

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        looks: dict[str, Look] = {}
        for entry in self._ledger.unsettled():
            if entry.key in self._blocked:
                continue
            try:
                if entry.operation == "create" or entry.chat_id is None:
                    verdict = self._verdict(entry, is_first=False)
                else:
                    if entry.chat_id not in looks:
                        looks[entry.chat_id] = self._look(entry)
                    verdict = self._seen_verdict(entry, looks[entry.chat_id])
            except (RetryableError, PermanentError, ForbiddenError) as error:
                # A group that cannot be looked at waits alone.
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

    def _seen_verdict(self, entry: Entry, look: Look) -> Verdict:
        shown = self._in_effect(entry, look)
        if shown is None:
            return self._verdict(entry, is_first=False)
        if shown:
            return Verdict("succeeded", happened_at=entry.requested_at)
        return Verdict("failed", error_message=NOT_IN_EFFECT)

    def run(self, plan: Plan, known: Mapping[str, KnownGroup]) -> Applied:
        """Send the operations of a plan. A group that fails does not stop the others. What ends everything is kept in
        `halt`: a signal, or a key that does not work."""
        self.applied.plan_id = plan.plan_id
        numbers = {group.key: group.from_handle for group in plan.desired}
        unreachable: Counter[str] = Counter()
        forbidden = 0
        left = len(plan.operations)
        try:
            for key, operations in self._in_turn(plan.operations):
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
                    raise ForbiddenError(_why(last), status=403)
        except (AuthenticationError, Halt) as error:
            self.applied.halt = error
        self.applied.left = left
        return self.applied

    def _in_turn(self, operations: Iterable[Operation]) -> list[tuple[str, list[Operation]]]:
        """The operations by group. Groups that were refused with 403 before come last, so that a few of them do not
        look like a closed account before anything else was tried."""
        entries = {one.key: one.http_status for one in self._ledger.entries() if one.outcome != "succeeded"}
        groups = [(key, list(theirs)) for key, theirs in groupby(operations, key=lambda operation: operation.key)]
        return sorted(groups, key=lambda group: entries.get(group[0]) == 403)

    def _is_closed(self) -> bool:
        """Whether it is the account that answers 403, and not a few of its groups: nothing was done, or reads are
        refused as well."""
        if not self.applied.succeeded:
            return True
        try:
            self._client.list_numbers()
        except ForbiddenError:
            return True
        except (PermanentError, RetryableError):
            pass
        return False

    def _change(self, operations: list[Operation], group: KnownGroup | None) -> Verdict | None:
        """Send the operations of one group. Returns the last verdict."""
        verdict = None
        may_be_spelled_otherwise = False
        for operation in operations:
            if operation.kind == "remove" and group is not None:
                if len(group.members) <= MIN_MEMBERS or may_be_spelled_otherwise:
                    # The person who was to take that place could not be added, or is in under another handle.
                    continue
                if self._disguise.handle(operation.handles[0], self._client, group.chat_id or "") is None:
                    self.applied.counts["remove", "failed"] += 1
                    self.applied.failures.append(Failure(operation.key, "remove", "failed", NOBODY_KNOWS))
                    continue
            creation = operation.kind == "create"
            key = idempotency_key_of(operation) if creation else None
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
                raise AuthenticationError(_why(verdict), status=401)
            if verdict.outcome == "unknown" or (verdict.outcome == "failed" and _ends_group(verdict)):
                return verdict
            # The API says that somebody is in the group whom it does not show.
            if operation.kind == "add" and verdict.outcome == "failed" and _is_conflict(verdict):
                may_be_spelled_otherwise = True
        return verdict

    def _first_verdict(self, entry: Entry, group: KnownGroup | None) -> Verdict:
        traffic = self._client.transport.traffic
        before = traffic.total
        try:
            return self._verdict(entry, group, is_first=True)
        except AuthenticationError as error:
            # Only the first try is known to have done nothing.
            return self._verdict_of(error, "failed" if traffic.total == before + 1 else "unknown")
        except Exception:
            if traffic.total == before:
                self._ledger.withdraw(entry)
            raise

    def _verdict(self, entry: Entry, group: KnownGroup | None = None, *, is_first: bool) -> Verdict:
        """Ask for an operation, and say what came of it. `is_first` is whether it was never asked for before.

        Raises `AuthenticationError` for a key that does not work, and `Halt`.
        """
        send = self._request_of(entry)
        retries = self._client.transport.traffic.retries
        try:
            chat = send()
        except NoIdError:
            return self._created_without_id(entry, send)
        except RetryableError as error:
            return self._verdict_of(error, "unknown")
        except (PermanentError, ForbiddenError) as error:
            # A try without an answer may have done it, and the refusal speaks of the next one.
            may_be_done = not is_first or self._client.transport.traffic.retries > retries
            return self._refused(entry, error, may_be_done=may_be_done, is_first=is_first)
        verdict = self._success(chat.id if entry.operation == "create" and chat is not None else None, chat)
        self._learn(entry, group, verdict.chat_id or entry.chat_id or "", chat)
        return verdict

    def _success(self, chat_id: str | None, chat: Chat | None) -> Verdict:
        answer = self._client.transport.last_answer
        return Verdict(
            "succeeded",
            chat_id=chat_id,
            happened_at=chat.created_at if chat_id is not None and chat is not None else None,
            http_status=answer.status if answer else None,
            request_id=answer.request_id if answer else None,
        )

    def _request_of(self, entry: Entry) -> Callable[[], Chat | None]:
        """The request of an operation. Raises `DisguisedError` where it cannot be said any more what is to be asked."""
        client, chat_id = self._client, entry.chat_id or ""
        if entry.operation == "create":
            group = self._disguise.creation(entry)
            if group is None:
                raise DisguisedError
            return lambda: client.create_group(
                group.from_handle, group.addresses, group.message, group.title, entry.idempotency_key
            )
        if entry.operation == "rename":
            title = self._disguise.title(entry.title or "")
            if title is None:
                raise DisguisedError
            return lambda: client.rename_group(chat_id, title)
        handle = self._handle_of(entry)
        if handle is None:
            raise DisguisedError
        ask = client.add_participant if entry.operation == "add" else client.remove_participant
        return lambda: ask(chat_id, handle)

    # -- answers that leave something open

    def _created_without_id(self, entry: Entry, send: Callable[[], Chat | None]) -> Verdict:
        """The verdict on a creation that succeeded, and whose answer does not say which group it is: asked once more,
        with its own key, and looked for."""
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
        entries, sightings = self._ledger.entries(), self._ledger.sightings()
        taken = {one.chat_id for one in sightings} | {one.chat_id for one in entries if one.chat_id is not None}
        try:
            search = find_created(self._client, entry, taken)
        except (RetryableError, PermanentError, ForbiddenError):
            return None, False
        return search.group, search.is_certain

    def _refused(
        self, entry: Entry, error: PermanentError | ForbiddenError, *, may_be_done: bool, is_first: bool
    ) -> Verdict:
        """The verdict on an operation that was refused. An error may only say that there was nothing left to do."""
        refused = self._verdict_of(error, "failed")
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
        sent = self._handle_of(entry)
        try:
            look = self._look(entry)
        except (RetryableError, PermanentError, ForbiddenError):
            return replace(refused, outcome="unknown")
        if look.sighting.is_gone:
            return refused
        shown = self._in_effect(entry, look)
        if shown is False and entry.operation == "remove":
            return self._removed_as_shown(entry, look, sent) or refused
        if shown or (shown is None and is_redundant):
            self._remark(entry)
            return replace(refused, outcome="succeeded")
        return replace(refused, outcome="unknown") if shown is None and is_first else refused

    def _handle_of(self, entry: Entry) -> str | None:
        """The handle that an operation on one person sends; null for other operations."""
        if entry.operation not in ("add", "remove"):
            return None
        return self._disguise.handle(entry.handles[0], self._client, entry.chat_id or "")

    def _removed_as_shown(self, entry: Entry, look: Look, sent: str | None) -> Verdict | None:
        """The verdict on a removal under the handle that the group shows; null where that was `sent` already."""
        spelling = self._spelling(entry.handles[0], look)
        handle = None if spelling is None else self._disguise.handle(spelling, self._client, entry.chat_id or "")
        if handle in (None, sent):
            return None
        try:
            self._client.remove_participant(entry.chat_id or "", handle or "")
        except RetryableError as error:
            return self._verdict_of(error, "unknown")
        except (PermanentError, ForbiddenError) as error:
            return self._verdict_of(error, "failed")
        return self._success(None, None)

    def _remark(self, entry: Entry) -> None:
        self.applied.remarks.append(Remark(entry.key or "", entry.operation, DONE_BEFORE[entry.operation]))

    # -- what a group shows

    def _look(self, entry: Entry) -> Look:
        return look_closely(self._ledger, self._client, entry.key or "", entry.chat_id or "")

    def _in_effect(self, entry: Entry, look: Look) -> bool | None:
        """Whether a look shows that an operation was done; null where it cannot show it."""
        if entry.operation == "rename":
            known = {fold_title(entry.title)} | {
                one.shown for one in self._renderings(look.sighting.chat_id, "title") if one.asked == entry.title
            }
            return fold_title(look.sighting.title) in known
        if look.participants is None:
            return None
        is_member = self._spelling(entry.handles[0], look) is not None
        return is_member if entry.operation == "add" else not is_member

    def _spelling(self, handle: str, look: Look) -> str | None:
        """How a group shows a person; null where it does not."""
        renderings, folded = self._renderings(look.sighting.chat_id, "handle"), fold_handle(handle)
        known = {handle} | {one.shown for one in renderings if fold_handle(one.asked) == folded}
        return next((one for one in look.participants or () if not without_people([one], known)), None)

    def _renderings(self, chat_id: str, field: Literal["title", "handle"]) -> list[Rendering]:
        return [one for one in self._ledger.renderings(chat_id) if one.field == field]

    def _learn(self, entry: Entry, group: KnownGroup | None, chat_id: str, answer: Chat | None) -> None:
        """Remember how the network shows what it was asked for just now, so that this is not taken for a change."""
        chat = None if answer is None else self._disguise.shown(answer)
        if entry.title is not None:
            self._learn_title(entry, entry.title, group, chat_id, chat)
        participants = None if chat is None else read_participants(chat)
        if participants is None or entry.operation not in ("create", "add"):
            return
        others = [one.shown for one in self._renderings(chat_id, "handle")] + sorted(group.members if group else ())
        shown = people(participants, entry.from_handle or (group.from_handle if group else None))
        missing = without_people(entry.handles, shown)
        new = without_people(shown, [*entry.handles, *others])
        # By elimination: whom the answer does not show must be the one whom nobody asked for.
        if len(missing) == len(new) == 1:
            self._remember(chat_id, "handle", fold_handle(new[0]), missing[0])

    def _learn_title(self, entry: Entry, asked: str, group: KnownGroup | None, chat_id: str, chat: Chat | None) -> None:
        shown = None if chat is None else chat.title
        if shown is None and entry.operation == "rename":
            # The answer does not say it, so the group is asked.
            try:
                shown = self._look(entry).sighting.title
            except (RetryableError, PermanentError, ForbiddenError):
                shown = None
        before = None if group is None else group.title
        # The title from before is no answer to what was asked.
        if shown is not None and (fold_title(shown) != fold_title(before) or fold_title(shown) == fold_title(asked)):
            self._remember(chat_id, "title", fold_title(shown), asked)
        if before is not None and self._ledger.last_title(entry.key) == asked:
            # The same title was asked for before, and this one came of it: it would do so again.
            self._remember(chat_id, "title", fold_title(before), asked)

    def _remember(self, chat_id: str, field: Literal["title", "handle"], shown: str, asked: str) -> None:
        self._ledger.remember(Rendering(chat_id, field, shown, asked))

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


@dataclass(frozen=True)
class Look:
    """A group as `GET /chats/:id` shows it, and its people as they are written there; null where it does not show
    them."""

    sighting: Sighting
    participants: tuple[str, ...] | None = None


def look(ledger: Ledger, client: Client, key: str, chat_id: str) -> Sighting:
    """How a group is now, by `GET /chats/:id`; the ledger keeps it. Raises as the client does, but not for 404."""
    return look_closely(ledger, client, key, chat_id).sighting


def look_closely(ledger: Ledger, client: Client, key: str, chat_id: str) -> Look:
    """Look at a group as `look` does, and return its people as well as they are written."""
    seen_at = datetime.now(UTC)
    participants = None
    try:
        chat = client.get_chat(chat_id)
    except NotFoundError:
        sighting = Sighting(key, chat_id, None, None, None, True, seen_at)
    else:
        shown = read_participants(chat)
        participants = None if shown is None else tuple(shown)
        handles = None if shown is None else people(shown, chat.from_handle)
        sighting = Sighting(key, chat_id, chat.from_handle, chat.title, handles, False, seen_at)
    ledger.saw(sighting)
    return Look(sighting, participants)


def idempotency_key_of(creation: Operation) -> str:
    """The same for the same group: for its key here and all that a creation says, and for nothing else."""
    said = [creation.key, creation.from_handle, sorted(creation.handles), creation.title, creation.message]
    return "group-" + hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:40]


def _may_be_redundant(entry: Entry, error: ApiError) -> bool:
    """Whether a refusal may say that there is nothing to do: the person is in the group, or is not, or the title is."""
    if isinstance(error, ConflictError):
        return error.code != "not_a_group"
    return entry.operation == "remove" and isinstance(error, NotFoundError)


def _is_conflict(verdict: Verdict) -> bool:
    return verdict.http_status == 409 and verdict.error_code != "not_a_group"


def _ends_group(verdict: Verdict) -> bool:
    """Whether nothing else can be done to the group."""
    return verdict.http_status in (403, 404) or verdict.error_code == "not_a_group"


def _why(verdict: Verdict) -> str:
    """What the API said, in its stable words: its message for humans may quote handles."""
    said = " ".join(str(one) for one in (verdict.http_status, verdict.error_code) if one is not None)
    request = f" (request {verdict.request_id})" if verdict.request_id else ""
    if verdict.error_code == DISGUISED:
        return "no verdict, and its row is not in the table as it was: have it so for one apply, which finds out"
    if verdict.error_code == NOT_FOUND:
        return (
            f"it may have been created{request}, and no chat shows which group it is; if it is there, run: "
            "groups.py import KEY CHAT_ID"
        )
    if verdict.outcome == "unknown":
        return f"no verdict: {said or 'the API could not be reached'}{request}; the next apply finds out"
    return f"the API answered {said or 'with an error'}{request}"
