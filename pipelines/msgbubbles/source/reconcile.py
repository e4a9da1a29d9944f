"""Reads by id what no list shows: chats that stopped showing up, chats that only messages name, all messages of a chat,
and timestamps that hold more messages than a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

from msgbubbles.decode import read_participants
from msgbubbles.errors import NotFoundError
from msgbubbles.models import NOTHING, Chat
from msgbubbles.times import DAY_MS, from_epoch_ms

from .config import Settings
from .coverage import Coverage
from .paginate import Overflow
from .run import MissingRows, Run, StreamContext, known_overflows, save_overflows
from .state import ChatsState, ListState, OverflowProgress, States
from .stored import Warehouse
from .threads import read_thread

# A chat that so many sweeps did not show is asked for by id.
SWEEPS_MISSED = 2
# Requests for missing rows in one run. They are rare; a great many are spread over runs.
REQUESTS_A_RUN = 100
# Where reading so many lagging threads again has brought nothing, `last_message_at` is not the time of a message.
LAGGING_IN_VAIN = 30
CHATS_AT_ONCE = 50
# How long an event may wait for the message that it names, and how many intervals are remembered as read.
EVENT_WAITS_MS = 7 * DAY_MS
MAX_READ_FOR_EVENTS = 1000
# How many ids of chats that only events name are remembered as asked for.
MAX_NAMED_BY_EVENTS = 1000


class _Spent(Exception):  # noqa: N818 - not an error
    pass


class _Allowance:
    def __init__(self, run: Run) -> None:
        self._run = run
        limit = run.missing.limit if run.missing else REQUESTS_A_RUN
        self._last = None if limit is None else run.traffic.total + limit

    def check(self) -> None:
        if self._last is not None and self._run.traffic.total >= self._last:
            raise _Spent


def find_missing(warehouse: Warehouse, states: States, settings: Settings) -> MissingRows | None:
    """Return what finished loads show to be missing; null where it is nothing.

    A message names its chat, and a chat the timestamp of its newest message: each shows that the other exists.
    """
    chats, of_messages, by_feed = states.chats, states.messages.in_use, states.messages.feed is True
    chats_covered, messages_covered = Coverage(chats.covered), Coverage(of_messages.covered)
    # A chat that has not been read yet is not missing. An empty list has been read too, and covers no time.
    if not chats.seen_ms or chats_covered.gaps(settings.start_ms):
        return None
    # What failed is tried again by itself, when it is due.
    failed = {(one.kind, one.id) for one in states.failed_reads}
    limit = REQUESTS_A_RUN + len(failed)
    orphans = [one for one in warehouse.orphans(limit) if ("chat", one) not in failed][:REQUESTS_A_RUN]
    settled_ms = (messages_covered.newest_ms or 0) - settings.lookback_ms
    messages_complete = bool(messages_covered.intervals) and not messages_covered.gaps(settings.start_ms)
    asked, read = set(chats.named_by_events), chats.read_for_events
    # What has been asked for already must not hide the rest.
    unknown, intervals = warehouse.missing_from_events(chats.seen_ms - EVENT_WAITS_MS, limit + len(asked) + len(read))
    known = asked | {one for kind, one in failed if kind == "chat"} | set(orphans)
    named = [one for one in unknown if one not in known][: max(REQUESTS_A_RUN - len(orphans), 0)]
    known_from_events = {
        one: at
        for one, at in intervals.items()
        if read.get(one) != at and at[1] >= settings.start_ms and ("thread", one) not in failed
    }
    known_from_events = dict(list(known_from_events.items())[:REQUESTS_A_RUN])
    lagging: dict[str, int] = {}
    if messages_complete and chats.lagging_in_vain < LAGGING_IN_VAIN:
        lagging = warehouse.lagging(settings.start_ms, settled_ms, limit)
        lagging = {one: at_ms for one, at_ms in lagging.items() if ("thread", one) not in failed}
    lags = any(chats.lagging.get(chat_id) != at_ms for chat_id, at_ms in lagging.items())
    to_read = _to_read(of_messages) if by_feed and not (orphans or named) else []
    # Messages prove that no chat is missing, as far as each chat has some: where one is known that has none, there may
    # be others that nothing names.
    proven = (
        by_feed and messages_complete and not (orphans or named) and not of_messages.overflows
        and any(from_ms is not None for from_ms, _ in chats.overflows)
        and not warehouse.has_chat_without_messages(settings.start_ms)
    )  # fmt: skip
    groups: dict[str, list[str] | None] = {}
    now_ms = chats.seen_ms
    if settings.participants and now_ms - (chats.participants_hidden_ms or 0) >= DAY_MS:
        groups = warehouse.groups_to_ask(now_ms - DAY_MS, limit)
        waiting = {one.id for one in states.failed_reads if one.kind == "participants" and one.next_try_ms > now_ms}
        groups = {one: before for one, before in groups.items() if one not in waiting}
    if not (orphans or named or chats.threads or lags or to_read or proven or known_from_events or groups):
        return None
    all_chats = not chats.overflows and not (orphans or named)
    return MissingRows(
        orphans,
        (),
        lagging,
        bool(to_read),
        proven,
        known_from_events,
        groups,
        REQUESTS_A_RUN,
        named,
        all_chats_known=all_chats,
    )


def _to_read(state: ListState) -> list[Overflow]:
    """Return the overflowed timestamps whose threads have not all been read."""
    done = {name for name, progress in state.overflows_done.items() if progress.is_over}
    spans = [Overflow(*span) for span in state.overflows]
    return [span for span in spans if span.from_ms is not None and _name(span) not in done]


def _name(span: Overflow) -> str:
    return f"{span.from_ms}-{span.to_ms}"


def read_by_id(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    """Ask for the chats that sweeps have missed, and for what `run.missing` names. What there is no allowance for stays
    in the state: `missed` (chats), `threads` (ids of chats whose messages are to be read again).
    """
    run, failed, missed, threads = context.run, context.failed, state.missed, state.threads
    lagging: dict[str, int] = {}
    if run.missing is not None:
        missed.update(dict.fromkeys([*run.missing.chats, *run.missing.named_by_events], SWEEPS_MISSED))
        named = [one for one in state.named_by_events if one not in run.missing.chats]
        state.named_by_events = [*named, *run.missing.named_by_events][-MAX_NAMED_BY_EVENTS:]
        threads.extend(run.missing.threads)
        lagging = {one: at_ms for one, at_ms in run.missing.lagging.items() if one not in threads}
    missed.update({one.id: SWEEPS_MISSED for one in failed.due("chat")})
    threads[:] = dict.fromkeys([*threads, *(one.id for one in failed.due("thread"))])
    allowance = _Allowance(run)
    try:
        yield from _read_chats(state, context, allowance)
        start_ms = context.settings.start_ms
        for chat_id in list(threads):
            result = yield from read_thread(context, chat_id, start_ms, before_request=allowance.check)
            threads.remove(chat_id)
            run.reconciled["threads"] += result.is_read
        yield from _read_for_events(state, context, allowance)
        yield from _read_lagging(lagging, state, context, allowance)
        _read_participants(state, context, allowance)
    except _Spent:
        pass
    spans = known_overflows(state)
    if run.missing is not None and run.missing.chats_proven:
        run.reconciled["tie overflows"] += sum(span.from_ms is not None for span in spans)
        spans = {span for span in spans if span.from_ms is None}
    save_overflows(state, spans, run, "chats")


def _read_chats(state: ChatsState, context: StreamContext, allowance: _Allowance) -> Iterator[Any]:
    client, buffer, run, failed = context.client, context.buffer, context.run, context.failed
    missed, named_by_events = state.missed, state.named_by_events
    for chat_id in [one for one, times in missed.items() if times >= SWEEPS_MISSED]:
        if failed.is_waiting("chat", chat_id):
            del missed[chat_id]
            continue
        allowance.check()
        fetched_at = run.clock.now()
        with failed.attempt("chat", chat_id):
            try:
                buffer.put(as_listed(client.get_chat(chat_id)), fetched_at)
                run.reconciled["chats"] += 1
            except NotFoundError:
                stored = run.warehouse.chats([chat_id]) if run.warehouse else []
                chat = stored[0] if stored else Chat(id=chat_id)
                # A message that is stored has been in a chat. An id that only events name is no chat.
                if chat.deleted_at is None and (stored or chat_id not in named_by_events):
                    chat.deleted_at = fetched_at
                    buffer.put(chat, fetched_at)
                    run.reconciled["deleted chats"] += 1
        del missed[chat_id]
        run.on_page()
        yield from buffer.flush_full()


def as_listed(chat: Chat) -> Chat:
    """A chat by id as the list shows it, without its participants: a row must not change with the way it was read."""
    if bytes(chat.extra):
        fields = msgspec.json.decode(chat.extra, type=dict[str, Raw])
        fields.pop("participants", None)
        chat.extra = Raw(msgspec.json.encode(fields)) if fields else NOTHING
    return chat


def _read_lagging(
    lagging: dict[str, int], state: ChatsState, context: StreamContext, allowance: _Allowance
) -> Iterator[Any]:
    run, in_vain = context.run, state.lagging_in_vain
    if in_vain >= LAGGING_IN_VAIN:
        return
    # Those that still lag although they were read are not read again.
    known = {one: at_ms for one, at_ms in state.lagging.items() if lagging.get(one) == at_ms}
    state.lagging = known
    for chat_id, at_ms in lagging.items():
        if known.get(chat_id) == at_ms:
            continue
        before = run.loaded("messages")
        start_ms = context.settings.start_ms
        result = yield from read_thread(context, chat_id, start_ms, before_request=allowance.check)
        yield from context.buffer.flush()
        known[chat_id] = at_ms
        if not result.is_read:
            continue
        if run.loaded("messages") > before:
            run.reconciled["threads"] += 1
            in_vain = 0
        else:
            in_vain += 1
        state.lagging_in_vain = in_vain


def _read_for_events(state: ChatsState, context: StreamContext, allowance: _Allowance) -> Iterator[Any]:
    """Read just the intervals in which events name messages that are missing. One that has been read is not read again
    for the same events, whatever was there.
    """
    run, settings = context.run, context.settings
    for chat_id, (from_ms, to_ms) in run.missing.known_from_events.items() if run.missing else ():
        # An event's time need not be the message's to the millisecond.
        lo_ms, hi_ms = max(from_ms - settings.lookback_ms, settings.start_ms), to_ms + settings.lookback_ms
        result = yield from read_thread(context, chat_id, lo_ms, hi_ms, before_request=allowance.check)
        known = {**state.read_for_events, chat_id: (from_ms, to_ms)}
        state.read_for_events = dict(list(known.items())[-MAX_READ_FOR_EVENTS:])
        run.reconciled["stretches that events told of"] += result.is_read


def _read_participants(state: ChatsState, context: StreamContext, allowance: _Allowance) -> None:
    """Ask for the participants of each group of `run.missing`. Where the API does not show them, wait for another
    day.
    """
    client, buffer, run, failed = context.client, context.buffer, context.run, context.failed
    for chat_id, before in run.missing.groups.items() if run.missing else ():
        if failed.is_waiting("participants", chat_id):
            continue
        allowance.check()
        fetched_at = run.clock.now()
        chat: Chat | None = None
        with failed.attempt("participants", chat_id):
            try:
                chat = client.get_chat(chat_id)
            except NotFoundError:
                state.missed[chat_id] = SWEEPS_MISSED
        run.on_page()
        if chat is None:
            continue
        handles = read_participants(chat)
        if handles is None:
            state.participants_hidden_ms = state.seen_ms
            return
        buffer.put(as_listed(chat), fetched_at)
        # By the API's clock, like the change that it is compared with.
        buffer.put_participants(chat_id, handles, before, from_epoch_ms(state.seen_ms))
        run.reconciled["participant lists"] += 1


def read_overflows(state: ListState, context: StreamContext) -> Iterator[Any]:
    """Read the messages of timestamps that hold more than the feed shows, thread by thread, in the order of the
    threads' ids: where the allowance ends, the next run goes on. What one thread alone has too many of stays out of
    reach, and so does what is in chats that are not known: then the overflow stands.
    """
    run, spans = context.run, known_overflows(state)
    allowance = _Allowance(run)
    try:
        for span in _to_read(state):
            if span.from_ms is None or span.to_ms is None or run.warehouse is None:
                continue
            progress = state.overflows_done.setdefault(_name(span), OverflowProgress())
            while ids := run.warehouse.chats_alive_at(span.from_ms, span.to_ms, progress.after_id, CHATS_AT_ONCE):
                for chat_id in ids:
                    result = yield from read_thread(
                        context, chat_id, span.from_ms, span.to_ms, before_request=allowance.check
                    )
                    progress.after_id = chat_id
                    progress.is_stuck = progress.is_stuck or result.has_overflow or not result.is_read
            # Where a chat is not known, its messages may be missing still.
            if progress.is_stuck or run.missing is None or not run.missing.all_chats_known:
                progress.is_over = True
            else:
                spans = spans - {span}
                del state.overflows_done[_name(span)]
                run.reconciled["tie overflows"] += 1
    except _Spent:
        pass
    finally:
        save_overflows(state, spans, run, "messages")
