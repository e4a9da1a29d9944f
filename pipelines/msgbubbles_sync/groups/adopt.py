"""Assign keys to groups that exist, named by the ids of their chats or by their titles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.errors import ForbiddenError, PermanentError, RetryableError, UnreachableError
from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles_sync.context import Context
from msgbubbles_sync.display import escape
from msgbubbles_sync.errors import UsageError

from .desired import Row, read_text_columns
from .ledger import Ledger, Observation, OperationResult
from .model import ObservedGroup, fold_title
from .observed import Published, normalize_members, observe_groups, open_ledger, read_members, read_published
from .redact import GroupRedactor


@dataclass(frozen=True)
class ExistingGroup:
    """A group that exists, and the key that it should get. `chat_id` is null if it is named by its title."""

    key: str
    chat_id: str | None = None
    title: str | None = None
    from_handle: str | None = None


def parse_existing_groups(rows: Sequence[Row]) -> list[ExistingGroup]:
    """Convert the rows of a table. Raises `UsageError` with all faults."""
    groups, faults = [], []
    for number, row in enumerate(rows, 1):
        key, chat_id, title, from_handle = read_text_columns(row, "key", "chat_id", "title", "from_handle")
        groups.append(ExistingGroup(key, chat_id or None, title or None, from_handle or None))
        if not key:
            faults.append(f"row {number}: key is missing")
        elif escape(key) != key:
            faults.append(f"row {number}: key has invisible characters; type it again")
        elif not chat_id and not title:
            faults.append(f"row {number} ({escape(key)}): it needs a chat_id or a title")
    counts = Counter(group.key for group in groups if group.key)
    faults += [f"{escape(key)} is the key of {count} rows" for key, count in counts.items() if count > 1]
    if faults or not rows:
        raise UsageError("the table cannot be imported:\n  " + "\n  ".join(faults or ["it has no rows"]))
    return groups


def adopt_groups(
    context: Context,
    client: Client,
    groups: Sequence[ExistingGroup],
    on_group: Callable[[int], None] = lambda _count: None,
) -> dict[str, Observation | UsageError]:
    """Assign keys to groups, one request each. Returns for each key its group, or why it has none.

    A key that already has a group is left out. The caller holds the lock `apply`. Raises as the client does if the API
    cannot be reached or refuses the key.
    """
    adopter = _Adopter.open(context, client)
    results: dict[str, Observation | UsageError] = {}
    with open_ledger(context) as ledger:
        known = observe_groups(ledger, adopter.published)
        for count, group in enumerate(groups, 1):
            if group.key in known and not known[group.key].is_gone:
                continue
            try:
                results[group.key] = observation = adopter.adopt(ledger, known, group)
                known[group.key] = ObservedGroup(group.key, observation.chat_id, None, None, frozenset())
            except UnreachableError:
                raise
            except (UsageError, RetryableError) as error:
                results[group.key] = UsageError(str(error))
            on_group(count)
    return results


def adopt_group(context: Context, client: Client, group: ExistingGroup) -> Observation:
    """Assign a key to one group. Raises `UsageError` if that is impossible."""
    adopter = _Adopter.open(context, client)
    with open_ledger(context) as ledger:
        return adopter.adopt(ledger, observe_groups(ledger, adopter.published), group)


@dataclass(frozen=True)
class _Adopter:
    context: Context
    client: Client
    redactor: GroupRedactor
    published: Published

    @classmethod
    def open(cls, context: Context, client: Client) -> _Adopter:
        redactor = GroupRedactor(context.redactor)
        published = read_published(context)
        redactor.add_own_numbers(published.numbers or ())
        return cls(context, redactor.wrap_client(client), redactor, published)

    def adopt(self, ledger: Ledger, known: dict[str, ObservedGroup], group: ExistingGroup) -> Observation:
        """Assign a key to the group as `GET /chats/:id` shows it. Raises `UsageError` if that is impossible.

        If the API does not show the members, those known from the published marts are used.
        """
        key, chat_id = group.key, group.chat_id or self._find_chat_id(group, known)
        for other in known.values():
            if other.chat_id == chat_id and other.key != key:
                raise UsageError(f"this group already has the key {escape(other.key)}")
            if other.key == key and other.chat_id not in (None, chat_id) and not other.is_gone:
                raise UsageError(f"the key {escape(key)} already stands for the group {other.chat_id}")
        seen_at = datetime.now(UTC)
        try:
            chat = self.client.get_chat(chat_id)
        except (PermanentError, ForbiddenError) as error:
            raise UsageError(f"the group cannot be imported: {error}. Check the id and the account.") from None
        if not chat.is_group:
            raise UsageError("this chat is not a group, and only groups can be imported")
        if group.chat_id is None and fold_title(chat.title) != self._fold(group.title or ""):
            raise UsageError(f"{chat_id} had this title at the last sync, and has another one now. Pass its id")
        shown = read_participants(chat)
        if shown is None:
            handles = read_members(self.context, chat_id, chat.from_handle)
        else:
            handles = normalize_members(shown, chat.from_handle)
        observation = Observation(key, chat.id, chat.from_handle, chat.title, handles, False, seen_at)
        ledger.record_observation(observation)
        for entry in ledger.unresolved():
            if entry.key == key and entry.operation == "create":
                ledger.finish(entry, OperationResult("succeeded", chat_id=chat.id, happened_at=chat.created_at))
        return observation

    def _find_chat_id(self, group: ExistingGroup, known: dict[str, ObservedGroup]) -> str:
        """Return the id of the only published group with a title that has no key. Raises `UsageError`."""
        title = self._fold(group.title or "")
        handle = parse_handle(group.from_handle or "")
        ours = None if handle is None else fold_handle(self.redactor.redact_own_handle(handle))
        taken = {other.chat_id for other in known.values() if other.key != group.key}
        found = [
            chat_id
            for chat_id, chat in self.published.chats.items()
            if chat.title is not None and chat.gone_at is None and fold_title(chat.title[1]) == title
            and chat_id not in taken
            and (ours is None or chat.from_handle is None or fold_handle(chat.from_handle) == ours)
        ]  # fmt: skip
        if not found:
            raise UsageError("no group without a key has this title. If the group is new, run chats.py first")
        if len(found) > 1:
            raise UsageError(f"{len(found)} groups have this title. Pass the id of one: {', '.join(sorted(found))}")
        return found[0]

    def _fold(self, title: str) -> str:
        redacted = self.redactor.redact_title(title)
        if redacted is None:
            raise UsageError("the privacy policy drops titles, so groups cannot be found by them. Pass the id")
        return fold_title(redacted)
