"""Find a group that was created while its answer was lost, or did not say its id."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.handles import fold_handle, without_people
from msgbubbles.models import Chat

from .ledger import Entry
from .model import fold_title
from .observed import people

# The API's clock and ours may differ by this much.
CLOCK_SKEW = timedelta(minutes=5)
# A group that was just created is on the first page of the list; on a busy account, or after a day, further down.
MAX_PAGES = 10


@dataclass(frozen=True)
class Search:
    """What came of it: the group, where exactly one fits; `is_certain` is whether there is surely none otherwise."""

    group: Chat | None = None
    is_certain: bool = False


def find_created(client: Client, creation: Entry, taken: Collection[str]) -> Search:
    """Search the newest chats for the group of a creation; `taken` are the groups that have a key already.

    A group fits that has its number and its people; where the API does not show them, its title. Raises as the client
    does.
    """
    since = creation.requested_at - CLOCK_SKEW
    fitting, is_certain = [], True
    for row in _newest(client, since):
        if row is None:
            is_certain = False
        elif _may_be(row, creation, since) and row.id not in taken:
            fits = _fits(client.get_chat(row.id), creation)
            if fits:
                fitting.append(row)
            is_certain = is_certain and fits is False
    return Search(fitting[0]) if len(fitting) == 1 else Search(None, is_certain and not fitting)


def _newest(client: Client, since: datetime) -> Iterator[Chat | None]:
    """The chats back to a time, each once; null at the end where it was not reached."""
    seen: set[str] = set()
    before = None
    for _ in range(MAX_PAGES):
        page = client.list_chats(before=before)
        new = [row for row in page.rows if row.id not in seen]
        yield from new
        seen |= {row.id for row in new}
        times = [row.cursor_at for row in page.rows if row.cursor_at is not None]
        if not new or not times or all(at < since for at in times):
            return
        before = (times[-1] + timedelta(milliseconds=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    yield None


def _may_be(row: Chat, creation: Entry, since: datetime) -> bool:
    at = row.created_at or row.cursor_at
    is_ours = row.from_handle is None or fold_handle(row.from_handle) == fold_handle(creation.from_handle or "")
    return row.is_group is not False and is_ours and (at is None or at >= since)


def _fits(group: Chat, creation: Entry) -> bool | None:
    """Whether it is the group; null where the API shows nothing to tell it by."""
    shown = read_participants(group)
    if shown is not None:
        members = people(shown, group.from_handle)
        return not without_people(members, creation.handles) and not without_people(creation.handles, members)
    if group.title is None or creation.title is None:
        return None
    return fold_title(group.title) == fold_title(creation.title)
