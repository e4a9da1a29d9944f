"""Find a group whose creation got no answer, or an answer without an id."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from msgbubbles.client import Client
from msgbubbles.handles import exclude_people, fold_handle
from msgbubbles.models import Chat
from msgbubbles.times import format_ms, to_epoch_ms

from .ledger import Entry
from .model import fold_title
from .observed import read_shown_members

# The clocks of the API and of this machine may differ by this much.
CLOCK_SKEW = timedelta(minutes=5)
# A new group is on the first page of the list; on a busy account, or after a day, on a later one.
MAX_PAGES = 10


@dataclass(frozen=True)
class Search:
    """The group, if exactly one matches. `is_certain`: without a match, the group does not exist."""

    group: Chat | None = None
    is_certain: bool = False


def find_created(client: Client, creation: Entry, taken_ids: Collection[str]) -> Search:
    """Search the newest chats for the group of a creation. `taken_ids` are the ids of groups that have a key.

    A group matches if it has the same number and members, or the same title if the API does not show members. Raises
    as the client does.
    """
    since = creation.requested_at - CLOCK_SKEW
    matches, is_certain = [], True
    for chat in _list_newest(client, since):
        if chat is None:
            is_certain = False
        elif _is_candidate(chat, creation, since) and chat.id not in taken_ids:
            is_match = _matches(client.get_chat(chat.id), creation)
            if is_match:
                matches.append(chat)
            is_certain = is_certain and is_match is False
    return Search(matches[0]) if len(matches) == 1 else Search(None, is_certain and not matches)


def _list_newest(client: Client, since: datetime) -> Iterator[Chat | None]:
    """Yield the chats back to a time, each once; null at the end if the time was not reached."""
    seen: set[str] = set()
    before = None
    for _ in range(MAX_PAGES):
        page = client.list_chats(before=before)
        new = [row for row in page.rows if row.id not in seen]
        yield from new
        seen |= {row.id for row in new}
        times = page.cursor_times
        if not new or not times or all(at < since for at in times):
            return
        before = format_ms(to_epoch_ms(times[-1]) + 1)
    yield None


def _is_candidate(chat: Chat, creation: Entry, since: datetime) -> bool:
    at = chat.created_at or chat.cursor_at
    is_ours = chat.from_handle is None or fold_handle(chat.from_handle) == fold_handle(creation.from_handle or "")
    return chat.is_group is not False and is_ours and (at is None or at >= since)


def _matches(group: Chat, creation: Entry) -> bool | None:
    """Return whether a chat is the group; null if the API shows too little to decide."""
    members = read_shown_members(group)
    if members is not None:
        return not exclude_people(members, creation.handles) and not exclude_people(creation.handles, members)
    if group.title is None or creation.title is None:
        return None
    return fold_title(group.title) == fold_title(creation.title)
