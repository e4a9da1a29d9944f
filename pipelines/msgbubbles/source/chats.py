"""Read the chats, newest first by `last_message_at`, then what has to be read by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgbubbles.models import Chat, Page
from msgbubbles.times import DAY_MS, HOUR_MS, to_epoch_ms

from . import reconcile
from .buffer import NewChat
from .coverage import OPEN_END_MS
from .run import StreamContext
from .state import ChatsState
from .streams import Fetch, StreamReader

# More than this at once are more likely a fault of the API than deletes. The others are missed again later.
MAX_MISSED = 1000
MAX_TIMELESS = 50


def read_chats(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    def fetch(before: str | None) -> Page[Chat]:
        return context.client.list_chats(before=before)

    reader = ChatReader(fetch, state, context)
    if context.run.missing is None:
        yield from reader.read()
    yield from reconcile.read_by_id(state, context)


class ChatReader(StreamReader[Chat]):
    """Reads the chats, and records those that the list no longer shows where it should.

    Such a `missed` chat need not be deleted: a new message moves a chat out of the interval that is being read.
    """

    state: ChatsState

    def __init__(self, fetch: Fetch[Chat], state: ChatsState, context: StreamContext) -> None:
        super().__init__("chats", fetch, state, context)
        self._shown: set[str] = set()
        context.buffer.on_chats = self._note_threads
        # Up to here, all visible chats are stored; unknown while the first run still has gaps.
        has_gaps = bool(self.coverage.gaps(self.settings.start_ms))
        self._known_to_ms = 0 if has_gaps else (self.coverage.newest_ms or 0) - self.settings.lookback_ms

    def count(self, page: Page[Any]) -> None:
        super().count(page)
        self._shown.update(row.key for row in page.rows)

    def _note_threads(self, chats: list[NewChat]) -> None:
        """Queue the messages of chats that reappeared, or should have been stored long ago, to be read again.

        The chats were hidden for a while, and so were their messages when their time was read.
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
                # Every run reads the newest page; as a sweep, once an hour is enough.
                if now_ms - state.head_swept_ms < HOUR_MS:
                    continue
                state.head_swept_ms = now_ms
                hi_ms = OPEN_END_MS  # a deleted chat may have been newer than the newest page
            for chat_id in warehouse.chats_between(lo_ms, hi_ms) - self._shown:
                if chat_id in missed or len(missed) < MAX_MISSED:
                    missed[chat_id] = missed.get(chat_id, 0) + 1
        if now_ms - state.timeless_asked_ms >= DAY_MS:
            state.timeless_asked_ms = now_ms
            for chat_id in warehouse.chats_without_time(MAX_TIMELESS):
                if chat_id not in self._shown:
                    missed[chat_id] = reconcile.SWEEPS_MISSED
