"""Reads the chats, newest first by `last_message_at`; then those that have to be asked for by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgbubbles.models import Chat, Page
from msgbubbles.times import DAY_MS, HOUR_MS, to_epoch_ms

from . import reconcile
from .buffer import NewChat
from .failed_pages import NEVER_MS
from .run import StreamContext
from .state import ChatsState
from .streams import Fetch, StreamReader

# More than this at once are more likely the API's fault than deletes; those that are left are missed again.
MAX_MISSED = 1000
MAX_TIMELESS = 50


def read_chats(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    """Read the chats, and what has to be read by id."""

    def fetch(before: str | None) -> Page[Chat]:
        return context.client.list_chats(before=before)

    reader = ChatReader(fetch, state, context)
    if context.run.missing is None:
        yield from reader.read()
    yield from reconcile.read_by_id(state, context)


class ChatReader(StreamReader[Chat]):
    """Reads the chats, and notes which of them did not show up where they should have.

    A chat that is `missed` need not be deleted: one that gets a message while its interval is read moves out of it.
    """

    state: ChatsState

    def __init__(self, fetch: Fetch[Chat], state: ChatsState, context: StreamContext) -> None:
        super().__init__("chats", fetch, state, context)
        self._shown: set[str] = set()
        context.buffer.on_chats = self._note_threads
        # Up to here, all chats that were visible are known; not so while the first run has gaps to fill.
        has_gaps = bool(self.coverage.gaps(self.settings.start_ms))
        self._known_to_ms = 0 if has_gaps else (self.coverage.newest_ms or 0) - self.settings.lookback_ms

    def count(self, page: Page[Any]) -> None:
        super().count(page)
        self._shown.update(row.key for row in page.rows)

    def _note_threads(self, chats: list[NewChat]) -> None:
        """A chat that is there again, or that should have been known long ago, was hidden for a while: its messages
        were too, and their time has been read.
        """
        for chat in chats:
            was_hidden = chat.created_at is not None and to_epoch_ms(chat.created_at) < self._known_to_ms
            if chat.is_back or (was_hidden and self.run.missing is None):
                self.state.threads.append(chat.id)

    def forget_times_after(self, latest_ms: int) -> None:
        super().forget_times_after(latest_ms)
        state = self.state
        state.head_swept_ms = 0 if state.head_swept_ms > latest_ms else state.head_swept_ms
        state.timeless_asked_ms = 0 if state.timeless_asked_ms > latest_ms else state.timeless_asked_ms
        if (state.participants_hidden_ms or 0) > latest_ms:
            state.participants_hidden_ms = None

    def finish(self) -> None:
        state, missed, now_ms = self.state, self.state.missed, self.now_ms or 0
        for chat_id in self._shown & missed.keys():
            del missed[chat_id]
        warehouse = self.run.warehouse
        if warehouse is None:
            return
        for task, lo_ms, hi_ms in self.intervals:
            if task.kind == "backfill":
                continue
            if task.kind == "incremental":
                # The newest page is read by every run; that is often enough to make a sweep of every hour's.
                if now_ms - state.head_swept_ms < HOUR_MS:
                    continue
                state.head_swept_ms = now_ms
                hi_ms = NEVER_MS  # nothing is newer than the newest page, and the chat that was may be deleted
            for chat_id in warehouse.chats_between(lo_ms, hi_ms) - self._shown:
                if chat_id in missed or len(missed) < MAX_MISSED:
                    missed[chat_id] = missed.get(chat_id, 0) + 1
        if now_ms - state.timeless_asked_ms >= DAY_MS:
            state.timeless_asked_ms = now_ms
            for chat_id in warehouse.chats_without_time(MAX_TIMELESS):
                if chat_id not in self._shown:
                    missed[chat_id] = reconcile.SWEEPS_MISSED
