"""Read messages from the account's feed if the API has one, otherwise chat by chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgbubbles.errors import ForbiddenError, PermanentError
from msgbubbles.models import Chat, Message, Page
from msgbubbles.times import DAY_MS, is_recent, to_epoch_ms

from . import reconcile
from .chat_messages import ChatByChatReader, read_chat_messages
from .coverage import Coverage
from .run import StreamContext
from .state import MessagesState
from .streams import StreamReader


def read_messages(state: MessagesState, context: StreamContext) -> Iterator[Any]:
    """Read the messages. Each of the two ways has its own coverage in `state`.

    An API that refuses the feed is asked again once a day. If the feed only fails, this run reads chat by chat.
    """
    client, run, failed = context.client, context.run, context.failed
    if run.missing is not None:
        if run.missing.overflows:
            yield from reconcile.read_overflows(state.by_feed, context)
        return
    start_ms = context.run.settings.start_ms
    first = _ask_for_feed(state, context)
    # An empty feed may mean that there are no messages, or that the API needs a `conversation_id`.
    run.feed = bool(first)
    if first:
        pages = [first]

        def fetch(before: str | None) -> Page[Message]:
            if before is None and pages:
                return pages.pop()
            return client.list_messages(before=before)

        try:
            yield from StreamReader("messages", fetch, state.by_feed, context).read()
        finally:
            for chat_id, error in client.unknown_chats.items():
                failed.record("thread", chat_id, error, start_ms)
    else:

        def list_chats(before: str | None) -> Page[Chat]:
            page = client.list_chats(before=before)
            if state.feed_refused_ms is not None:
                state.feed = False  # only believed from an API that answers another request
            return page

        _add_coverage_of_feed(state, start_ms)
        yield from ChatByChatReader(list_chats, state.by_thread, context).read()
    for entry in failed.list_due("thread"):
        yield from read_chat_messages(context, entry.id, start_ms if entry.from_ms is None else entry.from_ms)


def _ask_for_feed(state: MessagesState, context: StreamContext) -> Page[Message] | None:
    """Return the newest page of the account's feed; null if the API refuses it, or fails."""
    now_ms = to_epoch_ms(context.run.clock.now())
    is_refused = state.feed is False and is_recent(state.feed_refused_ms, now_ms, DAY_MS)
    if is_refused or context.failed.is_waiting("feed", "messages"):
        return None
    first: Page[Message] | None = None
    with context.failed.attempt("feed", "messages"):
        try:
            first = context.client.list_messages()
        except (PermanentError, ForbiddenError):
            state.feed_refused_ms = now_ms
    if first:
        state.feed, state.feed_refused_ms = True, None
    return first


def _add_coverage_of_feed(state: MessagesState, start_ms: int) -> None:
    """Copy the coverage of the feed up to its first gap: this part need not be read again chat by chat."""
    feed = Coverage(state.by_feed.covered)
    complete_to = feed.complete_to(start_ms)
    if complete_to is None:
        return
    covered = Coverage(state.by_thread.covered)
    if (covered.complete_to(start_ms) or 0) < complete_to:
        for lo, hi, read in feed.intervals:
            covered.add(lo, min(hi, complete_to), read)
        state.by_thread.covered = covered.intervals
