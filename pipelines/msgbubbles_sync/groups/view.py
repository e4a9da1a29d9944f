"""What a group shows: its title and people as the network writes them, which may differ from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.errors import ForbiddenError, NotFoundError, PermanentError, RetryableError
from msgbubbles.handles import fold_handle, without_people
from msgbubbles.models import Chat

from .ledger import Entry, Ledger, Observation, Rendering
from .model import ObservedGroup, fold_title
from .observed import people
from .redact import GroupRedactor


@dataclass(frozen=True)
class GroupView:
    """A group as `GET /chats/:id` shows it, and its people as they are written there; null where it does not show
    them.
    """

    observation: Observation
    participants: tuple[str, ...] | None = None


def observe(ledger: Ledger, client: Client, key: str, chat_id: str) -> Observation:
    """Fetch how a group is now, and record it in the ledger. Raises as the client does, but not for 404."""
    return fetch_view(ledger, client, key, chat_id).observation


def fetch_view(ledger: Ledger, client: Client, key: str, chat_id: str) -> GroupView:
    """Fetch a group as `observe` does, with its people as they are written."""
    seen_at = datetime.now(UTC)
    participants = None
    try:
        chat = client.get_chat(chat_id)
    except NotFoundError:
        observation = Observation(key, chat_id, None, None, None, True, seen_at)
    else:
        shown = read_participants(chat)
        participants = None if shown is None else tuple(shown)
        handles = None if shown is None else people(shown, chat.from_handle)
        observation = Observation(key, chat_id, chat.from_handle, chat.title, handles, False, seen_at)
    ledger.record_observation(observation)
    return GroupView(observation, participants)


class Renderings:
    """How the network shows the titles and handles that it was asked for, as the ledger remembers it."""

    def __init__(self, ledger: Ledger, client: Client, redactor: GroupRedactor) -> None:
        self._ledger = ledger
        self._client = client
        self._redactor = redactor

    def is_in_effect(self, entry: Entry, view: GroupView) -> bool | None:
        """Whether a look shows that an operation was done; null where it cannot show it."""
        if entry.operation == "rename":
            known = {fold_title(entry.title)} | {
                one.shown for one in self._renderings(view.observation.chat_id, "title") if one.asked == entry.title
            }
            return fold_title(view.observation.title) in known
        if view.participants is None:
            return None
        is_member = self.find_spelling(entry.handles[0], view) is not None
        return is_member if entry.operation == "add" else not is_member

    def find_spelling(self, handle: str, view: GroupView) -> str | None:
        """How a group shows a person; null where it does not."""
        renderings, folded = self._renderings(view.observation.chat_id, "handle"), fold_handle(handle)
        known = {handle} | {one.shown for one in renderings if fold_handle(one.asked) == folded}
        return next((one for one in view.participants or () if not without_people([one], known)), None)

    def _renderings(self, chat_id: str, field: Literal["title", "handle"]) -> list[Rendering]:
        return [one for one in self._ledger.renderings(chat_id) if one.field == field]

    def learn(self, entry: Entry, group: ObservedGroup | None, chat_id: str, answer: Chat | None) -> None:
        """Remember how the network shows what it was asked for just now, so that this is not taken for a change."""
        chat = None if answer is None else self._redactor.shown(answer)
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

    def _learn_title(
        self, entry: Entry, asked: str, group: ObservedGroup | None, chat_id: str, chat: Chat | None
    ) -> None:
        shown = None if chat is None else chat.title
        if shown is None and entry.operation == "rename":
            # The answer does not say it, so the group is asked.
            try:
                shown = fetch_view(self._ledger, self._client, entry.key or "", entry.chat_id or "").observation.title
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
