"""A group as the API shows it: title and members in the network's spelling, which may differ from the request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from msgbubbles.client import Client
from msgbubbles.decode import read_participants
from msgbubbles.errors import SKIPPABLE_ERRORS, NotFoundError
from msgbubbles.handles import exclude_people, fold_handle
from msgbubbles.models import Chat

from .ledger import Entry, Ledger, Observation, Rendering
from .model import ObservedGroup, fold_title
from .observed import normalize_members, read_shown_members
from .redact import GroupRedactor


@dataclass(frozen=True)
class GroupView:
    """A group by `GET /chats/:id`. `participants` are as the API writes them; null if it does not show them."""

    observation: Observation
    participants: Sequence[str] | None = None


def fetch_view(ledger: Ledger, client: Client, key: str, chat_id: str) -> GroupView:
    """Fetch a group and record its state in the ledger. Raises as the client does, except for 404."""
    seen_at = datetime.now(UTC)
    participants = None
    try:
        chat = client.get_chat(chat_id)
    except NotFoundError:
        observation = Observation(key, chat_id, None, None, None, True, seen_at)
    else:
        participants, handles = read_participants(chat), read_shown_members(chat)
        observation = Observation(key, chat_id, chat.from_handle, chat.title, handles, False, seen_at)
    ledger.record_observation(observation)
    return GroupView(observation, participants)


class Renderings:
    """How the network shows the titles and handles that were requested, as recorded in the ledger."""

    def __init__(self, ledger: Ledger, client: Client, redactor: GroupRedactor) -> None:
        self._ledger = ledger
        self._client = client
        self._redactor = redactor

    def is_in_effect(self, entry: Entry, view: GroupView) -> bool | None:
        """Return whether the view shows that an operation was done; null if it cannot show that."""
        if entry.operation == "rename":
            renderings = self._renderings(view.observation.chat_id, "title")
            titles = {fold_title(entry.title)} | {
                rendering.shown for rendering in renderings if rendering.asked == entry.title
            }
            return fold_title(view.observation.title) in titles
        if view.participants is None:
            return None
        is_member = self.find_spelling(entry.handles[0], view) is not None
        return is_member if entry.operation == "add" else not is_member

    def find_spelling(self, handle: str, view: GroupView) -> str | None:
        """Return the handle under which a group shows a person; null if it does not show them."""
        renderings, folded = self._renderings(view.observation.chat_id, "handle"), fold_handle(handle)
        spellings = {handle} | {rendering.shown for rendering in renderings if fold_handle(rendering.asked) == folded}
        return next((shown for shown in view.participants or () if not exclude_people([shown], spellings)), None)

    def _renderings(self, chat_id: str, field: Literal["title", "handle"]) -> list[Rendering]:
        return [rendering for rendering in self._ledger.list_renderings(chat_id) if rendering.field == field]

    def learn(self, entry: Entry, group: ObservedGroup | None, chat_id: str, answer: Chat | None) -> None:
        """Record how the network shows what was just requested, so that the difference is not taken for a change."""
        chat = None if answer is None else self._redactor.redact_chat(answer)
        if entry.title is not None:
            self._learn_title(entry, entry.title, group, chat_id, chat)
        participants = None if chat is None else read_participants(chat)
        if participants is None or entry.operation not in ("create", "add"):
            return
        others = [rendering.shown for rendering in self._renderings(chat_id, "handle")]
        others += sorted(group.members if group else ())
        shown = normalize_members(participants, entry.from_handle or (group.from_handle if group else None))
        missing = exclude_people(entry.handles, shown)
        new = exclude_people(shown, [*entry.handles, *others])
        # By elimination: the requested person whom the answer lacks is the one whom nobody requested.
        if len(missing) == len(new) == 1:
            self._ledger.remember(Rendering(chat_id, "handle", fold_handle(new[0]), missing[0]))

    def _learn_title(
        self, entry: Entry, asked: str, group: ObservedGroup | None, chat_id: str, chat: Chat | None
    ) -> None:
        shown = chat.title if chat else None
        if shown is None and entry.operation == "rename":
            with suppress(*SKIPPABLE_ERRORS):  # the answer lacks the title, so fetch the group
                shown = fetch_view(self._ledger, self._client, entry.key or "", entry.chat_id or "").observation.title
        before = group.title if group else None
        # An unchanged title may come from before the rename.
        if shown is not None and (fold_title(shown) != fold_title(before) or fold_title(shown) == fold_title(asked)):
            self._ledger.remember(Rendering(chat_id, "title", fold_title(shown), asked))
        if before is not None and self._ledger.find_last_title(entry.key) == asked:
            # The same request led to this title before, and would do so again.
            self._ledger.remember(Rendering(chat_id, "title", fold_title(before), asked))
