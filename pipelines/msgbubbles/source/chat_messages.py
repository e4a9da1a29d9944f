"""Read the messages of one chat, or of all chats one after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from msgbubbles.errors import NotFoundError
from msgbubbles.models import Chat, Message, Page, fingerprint
from msgbubbles.times import to_epoch_ms

from .coverage import Task
from .intervals import OpenInterval
from .paginate import PageResult, cursor_ms, paginate_interval
from .run import StreamContext
from .state import ListState, RejectedInterval
from .streams import Fetch, StreamReader


@dataclass
class ChatMessagesResult:
    """`is_read`: the messages were read, or the chat is gone. `has_overflow`: there was a tie overflow.

    `rejected` are the hashes of the rows that could not be read, by the interval of their page.
    """

    is_read: bool = False
    has_overflow: bool = False
    rejected: dict[tuple[int, int], set[str]] = field(default_factory=dict)


def read_chat_messages(
    context: StreamContext, chat_id: str, from_ms: int, to_ms: int | None = None
) -> Generator[Any, None, ChatMessagesResult]:
    """Read the messages of one chat in [from, to]."""
    failed, progress, messages = context.failed, context.run.get_progress("messages"), ChatMessagesResult()

    def fetch(before: str | None) -> Page[Message]:
        context.before_request()
        page = context.client.list_messages(chat_id, before=before)
        progress.count(page)
        context.run.on_page()
        return page

    if failed.is_waiting("thread", chat_id, from_ms):
        return messages
    missing_from_ms = failed.find_missing_from("thread", chat_id)
    if missing_from_ms is not None:  # everything that is missing is read, even if less was asked for
        from_ms, to_ms = min(from_ms, missing_from_ms), None
    before_ms = None if to_ms is None else to_ms + 1
    # A 404 here does not mark the chat as deleted; `reconcile` asks for the chat itself.
    with failed.attempt("thread", chat_id, from_ms) as attempt, suppress(NotFoundError):
        for result in paginate_interval(fetch, lo_ms=from_ms, before_ms=before_ms):
            progress.note(result)
            context.buffer.add(result.page)
            times = map(to_epoch_ms, result.page.cursor_times)
            lo_ms, hi_ms = min(times, default=from_ms), to_ms or to_epoch_ms(result.page.server_at)
            if result.page.rejected:
                messages.rejected[lo_ms, hi_ms] = {row.row_hash for row in result.page.rejected}
            to_ms = lo_ms
            messages.has_overflow = messages.has_overflow or result.overflow is not None
            yield from context.buffer.flush_full()
    messages.is_read = attempt.succeeded
    return messages


class ChatByChatReader(StreamReader[Chat]):
    """Reads messages chat by chat, for accounts whose API has no feed of all messages.

    It reads the list of chats and the messages of each. So its coverage is in terms of `last_message_at`: *the messages
    of every chat that was in this interval then have been read*.
    """

    reads_ahead = False

    def __init__(self, fetch: Fetch[Chat], state: ListState, context: StreamContext) -> None:
        super().__init__("messages", fetch, state, context)
        # Messages before this time have been read in every chat, because up to here no chat is missing.
        start_ms = self.settings.start_ms
        complete_to = self.coverage.complete_to(start_ms)
        self._floor_ms = start_ms if complete_to is None else max(complete_to - 1 - self.settings.lookback_ms, start_ms)

    def _build_request(self, before: str | None) -> Callable[[], Page[Chat]]:
        def fetch() -> Page[Chat]:
            # Checked late: the chats of the previous page come first.
            self.check_batch()
            self.take_from_batch()
            return self._fetch(before)

        return fetch

    def count(self, page: Page[Any]) -> None:
        self.note_time(page)
        self.progress.pages += 1

    def _covered_from(self, result: PageResult[Chat], task: Task) -> int | None:
        # The messages of chats outside of the task are not read, although the page shows them.
        return None if result.covered_from_ms is None else max(result.covered_from_ms, task.lo_ms)

    def load(self, result: PageResult[Chat], interval: OpenInterval[Chat]) -> Iterator[Any]:
        task = interval.task
        is_newest = task.kind == "incremental" and interval.from_ms is None
        covered_ms = self._covered_from(result, task)
        self.buffer.add_rejected(result.page)
        for rejected in result.page.rejected:
            # The chat has messages even if its row cannot be read.
            if rejected.key is not None and rejected.row_hash not in self.seen:
                yield from self._read_chat_messages(rejected.key, self._floor_ms)
            if is_newest:
                self.mark_seen(result.page, {rejected.row_hash})
        for chat in sorted(result.page.rows, key=_newest_first):
            at_ms = cursor_ms(chat)
            is_outlier = chat.key in result.outliers  # listed within the task, whatever time it shows
            is_outside = at_ms is not None and (at_ms < task.lo_ms or (task.hi_ms is not None and at_ms >= task.hi_ms))
            if is_outside and not is_outlier:
                continue
            if interval.from_ms is not None and (task.hi_ms is None or interval.from_ms < task.hi_ms):
                self.check_batch()
            mark = fingerprint(chat)
            if task.kind != "refresh" and self._is_unchanged(mark, at_ms):
                interval.has_skipped = True
            else:
                lo_ms = self._refresh_floor_ms() if task.kind == "refresh" else self._floor_ms
                yield from self._read_chat_messages(chat.id, lo_ms)
            if is_newest:
                self.mark_seen(result.page, {mark})
            if at_ms is not None and covered_ms is not None:
                interval.from_ms = max(at_ms + 1, covered_ms)
                self.check_refresh_share()

    def _read_chat_messages(self, chat_id: str, from_ms: int) -> Iterator[Any]:
        # A chat is always read to its end, even beyond the batch: there is no state to resume within one.
        messages = yield from self._read_interval(chat_id, from_ms)
        for (lo_ms, hi_ms), hashes in messages.rejected.items():
            self._rejected.add(lo_ms, hi_ms, hashes, to_epoch_ms(self.run.clock.now()), chat_id)

    def _read_interval(
        self, chat_id: str, from_ms: int, to_ms: int | None = None
    ) -> Generator[Any, None, ChatMessagesResult]:
        context = replace(self.context, before_request=self.take_from_batch)
        return (yield from read_chat_messages(context, chat_id, from_ms, to_ms))

    def _read_again(self, entry: RejectedInterval) -> Generator[Any, None, set[str] | None]:
        if entry.chat_id is None:
            return None
        messages = yield from self._read_interval(entry.chat_id, entry.lo_ms, entry.hi_ms)
        return set().union(*messages.rejected.values()) if messages.is_read else None

    def _is_unchanged(self, mark: str, at_ms: int | None) -> bool:
        """Return whether the chat is as it was when its messages were read, and none can have become visible since."""
        return mark in self.seen and (at_ms or 0) + self.settings.lookback_ms < self.seen_ms

    def _refresh_floor_ms(self) -> int:
        within = [rule.within_ms for rule in self.settings.refresh_rules[self.stream]]
        widest = max((within_ms for within_ms in within if within_ms is not None), default=0)
        start_ms = self.settings.start_ms
        return start_ms if None in within else max(start_ms, (self.now_ms or 0) - widest)


def _newest_first(chat: Chat) -> timedelta:
    latest = datetime.max.replace(tzinfo=UTC)
    return latest - (chat.cursor_at or latest)
