"""Assign keys to groups that exist, named by the ids of their chats or by their titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from msgbubbles.client import Client
from msgbubbles.errors import AuthenticationError, PermanentError, RetryableError, UnreachableError
from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles_sync.context import Context
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.text import escape

from .apply import is_key_refused
from .desired import Row, check_key, check_unique, name_row, read_text_columns
from .ledger import Ledger, Observation, OperationResult
from .model import ObservedGroup, fold_title
from .observed import observe_groups, open_ledger, read_members, read_published, read_shown_members
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
        unnamed = [] if chat_id or title else ["it needs a chat_id or a title"]
        faults += [f"{name_row(number, key)}: {fault}" for fault in check_key(key) or unnamed]
    faults += check_unique([group.key for group in groups])
    if faults or not rows:
        raise UsageError("the table cannot be imported:\n  " + "\n  ".join(faults or ["it has no rows"]))
    return groups


def import_groups(
    context: Context,
    client: Client,
    groups: Sequence[ExistingGroup],
    on_group: Callable[[int], None] = lambda _count: None,
) -> dict[str, Observation | UsageError]:
    """Assign keys to groups, one request each. Returns for each key its group, or why it has none.

    A key that already has a group is left out. The caller holds the lock `apply`. Raises as the client does if the API
    cannot be reached or refuses the key.
    """
    results: dict[str, Observation | UsageError] = {}
    with open_ledger(context) as ledger:
        importer = _Importer(context, client, ledger)
        for count, group in enumerate(groups, 1):
            if group.key in importer.groups and not importer.groups[group.key].is_gone:
                continue
            try:
                results[group.key] = importer.import_group(group)
            except UnreachableError:
                raise
            except (UsageError, RetryableError) as error:
                results[group.key] = UsageError(str(error))
            on_group(count)
    return results


def import_group(context: Context, client: Client, group: ExistingGroup) -> Observation:
    """Assign a key to one group. Raises `UsageError` if that is impossible."""
    with open_ledger(context) as ledger:
        return _Importer(context, client, ledger).import_group(group)


class _Importer:
    """`groups` are those that have a key."""

    def __init__(self, context: Context, client: Client, ledger: Ledger) -> None:
        self._context, self._ledger = context, ledger
        group_redactor = GroupRedactor(context.redactor)
        self._client, self._redactor = group_redactor.wrap_client(client), group_redactor.redactor
        self._published = read_published(context)
        self._redactor.add_own_numbers(self._published.numbers or ())
        self.groups = observe_groups(ledger, self._published)

    def import_group(self, group: ExistingGroup) -> Observation:
        """Assign a key to the group as `GET /chats/:id` shows it. Raises `UsageError` if that is impossible.

        If the API does not show the members, those known from the published marts are used.
        """
        key, chat_id = group.key, group.chat_id or self._find_chat_id(group)
        for other in self.groups.values():
            if other.chat_id == chat_id and other.key != key:
                raise UsageError(f"this group already has the key {escape(other.key)}")
            if other.key == key and other.chat_id not in (None, chat_id) and not other.is_gone:
                raise UsageError(
                    f"{escape(key)} is the key of {other.chat_id}. Run groups.py forget {escape(key)} first"
                )
        seen_at = datetime.now(UTC)
        try:
            chat = self._client.get_chat(chat_id)
        except (PermanentError, AuthenticationError) as error:
            if is_key_refused(self._client, error.status):
                raise
            raise UsageError(f"the group cannot be imported: {error}. Check the id and the account.") from None
        if not chat.is_group:
            raise UsageError("this chat is not a group, and only groups can be imported")
        if group.chat_id is None and fold_title(chat.title) != self._fold(group.title or ""):
            raise UsageError(f"{chat_id} had this title at the last sync, and has another one now. Pass its id")
        handles = read_shown_members(chat)
        if handles is None:
            handles = read_members(self._context, chat_id, chat.from_handle)
        observation = Observation(key, chat.id, chat.from_handle, chat.title, handles, False, seen_at)
        self._ledger.record_observation(observation)
        for entry in self._ledger.list_unresolved():
            if entry.key == key and entry.operation == "create":
                self._ledger.finish(entry, OperationResult("succeeded", chat_id=chat.id, happened_at=chat.created_at))
        self.groups[key] = ObservedGroup(key, chat.id, None, None, frozenset())
        return observation

    def _find_chat_id(self, group: ExistingGroup) -> str:
        """Return the id of the only published group with a title that has no key. Raises `UsageError`."""
        title = self._fold(group.title or "")
        handle = parse_handle(group.from_handle or "")
        ours = None if handle is None else fold_handle(self._redactor.own_handle(handle))
        taken_ids = {other.chat_id for other in self.groups.values() if other.key != group.key}
        chat_ids = [
            chat_id
            for chat_id, chat in self._published.chats.items()
            if chat.title is not None and chat.gone_at is None and fold_title(chat.title[1]) == title
            and chat_id not in taken_ids
            and (ours is None or chat.from_handle is None or fold_handle(chat.from_handle) == ours)
        ]  # fmt: skip
        if not chat_ids:
            raise UsageError("no group without a key has this title. If the group is new, run chats.py first")
        if len(chat_ids) > 1:
            raise UsageError(
                f"{len(chat_ids)} groups have this title. Pass the id of one: {', '.join(sorted(chat_ids))}"
            )
        return chat_ids[0]

    def _fold(self, title: str) -> str:
        redacted = self._redactor.title(title)
        if redacted is None:
            raise UsageError("the privacy policy drops titles, so groups cannot be found by them. Pass the id")
        return fold_title(redacted)
