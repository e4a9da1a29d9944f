"""Read by id what no list shows.

Chats that the list no longer shows, chats that only messages or events name, all messages of a chat, and timestamps
that have more messages than a page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from msgbubbles.decode import drop_fields, read_participants
from msgbubbles.errors import LimitReached, NotFoundError, PermanentError, until
from msgbubbles.models import Chat
from msgbubbles.settings import SourceSettings
from msgbubbles.times import DAY_MS, from_epoch_ms

from .chat_messages import read_chat_messages
from .coverage import Coverage
from .paginate import Overflow
from .run import MissingRows, StreamContext, save_overflows
from .state import TRIES_WITHOUT_WAIT, ChatsState, ListState, OverflowProgress, States, is_waiting
from .stored import Warehouse

# A chat that was missing from this many sweeps is asked for by id.
SWEEPS_MISSED = 2
# Missing rows are rare; a great many of them are spread over several runs.
REQUESTS_A_RUN = 100
# If reading this many lagging chats again in a row brings nothing, `last_message_at` is hardly the time of a message.
# Then one is read at a time, with growing pauses.
LAGGING_IN_VAIN = 30
CHATS_AT_ONCE = 50
# How long an event may wait for its message, and how many intervals are remembered as read.
EVENT_WAITS_MS = 7 * DAY_MS
MAX_READ_FOR_EVENTS = 1000
# How many chats that only events name are remembered as asked for.
MAX_NAMED_BY_EVENTS = 1000
# After this many groups without a list of participants, and none with one, the API counts as hiding them.
MAX_HIDDEN = 3
# With this many tries, the pause between them is a day.
MAX_HIDDEN_TRIES = 12
NO_PARTICIPANTS = "the group has no list of participants that can be read"

Failed = set[tuple[str, str]]


def find_missing(warehouse: Warehouse, states: States, settings: SourceSettings) -> MissingRows | None:
    """Return the rows that finished loads show to be missing; null if there are none.

    A message names its chat, and a chat the time of its newest message: each proves that the other exists.
    """
    chats, messages, by_feed = states.chats, states.messages.in_use, states.messages.feed is True
    # A chat that has not been read yet is not missing. An empty list has been read too, although it covers no time.
    if not chats.seen_ms or Coverage(chats.covered).gaps(settings.start_ms):
        return None
    # Failed units are tried again separately, when they are due.
    failed: Failed = {(unit.kind, unit.id) for unit in states.failed_reads}
    limit = REQUESTS_A_RUN + len(failed)
    orphans = [chat_id for chat_id in warehouse.orphans(limit) if ("chat", chat_id) not in failed][:REQUESTS_A_RUN]
    named, known_from_events = _find_from_events(warehouse, chats, settings, failed, orphans)
    covered = Coverage(messages.covered)
    messages_complete = bool(covered.intervals) and not covered.gaps(settings.start_ms)
    lagging: dict[str, int] = {}
    if messages_complete and not _should_pause(chats):
        final_ms = (covered.newest_ms or 0) - settings.lookback_ms
        behind = warehouse.lagging(settings.start_ms, final_ms, limit)
        lagging = {chat_id: at_ms for chat_id, at_ms in behind.items() if ("thread", chat_id) not in failed}
    lags = any(_is_due(chats, chat_id, at_ms) for chat_id, at_ms in lagging.items())
    overflows = bool(_list_unread_overflows(messages)) if by_feed and not (orphans or named) else False
    # The messages prove that no chat is missing if every stored chat has some. A chat without messages would be proof
    # that there may be more of them, which nothing names.
    chats_proven = (
        by_feed and messages_complete and not (orphans or named) and not messages.overflows
        and any(from_ms is not None for from_ms, _ in chats.overflows)
        and not warehouse.has_chat_without_messages(settings.start_ms)
    )  # fmt: skip
    groups = _find_groups(warehouse, states, settings, limit)
    if not (orphans or named or chats.threads or lags or overflows or chats_proven or known_from_events or groups):
        return None
    return MissingRows(
        orphans,
        lagging=lagging,
        overflows=overflows,
        chats_proven=chats_proven,
        known_from_events=known_from_events,
        groups=groups,
        limit=REQUESTS_A_RUN,
        named_by_events=named,
        all_chats_known=not chats.overflows and not (orphans or named),
    )


def _find_from_events(
    warehouse: Warehouse, chats: ChatsState, settings: SourceSettings, failed: Failed, orphans: list[str]
) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Return chats that only events name, and the intervals in which events name messages, by chat."""
    asked, read = set(chats.named_by_events), chats.read_for_events
    # The limit leaves room for those that were asked for before.
    limit = REQUESTS_A_RUN + len(failed) + len(asked) + len(read)
    unknown, intervals = warehouse.missing_from_events(chats.seen_ms - EVENT_WAITS_MS, limit)
    excluded = asked | {unit_id for kind, unit_id in failed if kind == "chat"} | set(orphans)
    named = [chat_id for chat_id in unknown if chat_id not in excluded][: max(REQUESTS_A_RUN - len(orphans), 0)]
    known_from_events = {
        chat_id: interval
        for chat_id, interval in intervals.items()
        if read.get(chat_id) != interval and interval[1] >= settings.start_ms and ("thread", chat_id) not in failed
    }
    return named, dict(list(known_from_events.items())[:REQUESTS_A_RUN])


def _find_groups(
    warehouse: Warehouse, states: States, settings: SourceSettings, limit: int
) -> dict[str, list[str] | None]:
    """Return the groups to ask for their participants, with the participants stored before."""
    now_ms, hidden = states.chats.seen_ms, states.chats.participants_hidden
    if not settings.read_participants or is_waiting(len(hidden), states.chats.participants_hidden_ms or 0, now_ms):
        return {}
    last_asked = {chat_id: number for number, groups in enumerate(hidden) for chat_id in groups}
    groups = warehouse.groups_to_ask(now_ms - DAY_MS, limit + len(last_asked))
    waiting = {
        unit.id
        for unit in states.failed_reads
        if unit.kind == "participants" and is_waiting(unit.tries, unit.last_tried_ms, now_ms)
    }
    groups = {chat_id: before for chat_id, before in groups.items() if chat_id not in waiting}
    return dict(sorted(groups.items(), key=lambda group: last_asked.get(group[0], -1))[:limit])


def _list_unread_overflows(state: ListState) -> list[Overflow]:
    """Return the overflowed timestamps whose chats have not all been read."""
    done = {name for name, progress in state.overflows_done.items() if progress.is_over}
    return [span for span in state.overflows if span.from_ms is not None and _name(span) not in done]


def _name(span: Overflow) -> str:
    return f"{span.from_ms}-{span.to_ms}"


def _limit_requests(context: StreamContext) -> StreamContext:
    """Let `before_request` raise `LimitReached` when the requests for missing rows are used up."""
    run = context.run
    limit = run.missing.limit if run.missing else REQUESTS_A_RUN
    last = None if limit is None else run.traffic.total + limit

    def check() -> None:
        if last is not None and run.traffic.total >= last:
            raise LimitReached("missing rows")

    return replace(context, before_request=check)


def read_by_id(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    """Ask for the chats that sweeps have missed, and read the rows of `run.missing`.

    What exceeds the limit stays in the state: `missed` (chats), and `threads` (chats whose messages to read again).
    """
    run, failed, missed, threads = context.run, context.failed, state.missed, state.threads
    lagging: dict[str, int] = {}
    if run.missing is not None:
        missed.update(dict.fromkeys([*run.missing.chats, *run.missing.named_by_events], SWEEPS_MISSED))
        named = [chat_id for chat_id in state.named_by_events if chat_id not in run.missing.chats]
        state.named_by_events = [*named, *run.missing.named_by_events][-MAX_NAMED_BY_EVENTS:]
        threads.extend(run.missing.threads)
        lagging = {chat_id: at_ms for chat_id, at_ms in run.missing.lagging.items() if chat_id not in threads}
    missed.update({unit.id: SWEEPS_MISSED for unit in failed.list_due("chat")})
    threads[:] = dict.fromkeys([*threads, *(unit.id for unit in failed.list_due("thread"))])
    context = _limit_requests(context)
    with until("missing rows"):
        yield from _read_chats(state, context)
        for chat_id in list(threads):
            messages = yield from read_chat_messages(context, chat_id, run.settings.start_ms)
            threads.remove(chat_id)
            run.reconciled["threads"] += messages.is_read
        yield from _read_for_events(state, context)
        yield from _read_lagging(lagging, state, context)
        _read_participants(state, context)
    spans = {*state.overflows}
    if run.missing is not None and run.missing.chats_proven:
        run.reconciled["tie overflows"] += sum(span.from_ms is not None for span in spans)
        spans = {span for span in spans if span.from_ms is None}
    save_overflows(state, spans, run, "chats")


def _read_chats(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    client, buffer, run, failed = context.client, context.buffer, context.run, context.failed
    missed, named_by_events = state.missed, state.named_by_events
    for chat_id in [chat_id for chat_id, times in missed.items() if times >= SWEEPS_MISSED]:
        if failed.is_waiting("chat", chat_id):
            del missed[chat_id]
            continue
        context.before_request()
        fetched_at = run.clock.now()
        with failed.attempt("chat", chat_id):
            try:
                buffer.put(drop_participants(client.get_chat(chat_id)), fetched_at)
                run.reconciled["chats"] += 1
            except NotFoundError:
                stored = run.warehouse.chats([chat_id]) if run.warehouse else []
                chat = stored[0] if stored else Chat(id=chat_id)
                # A stored message proves that its chat existed. An id that only events name proves nothing.
                if chat.deleted_at is None and (stored or chat_id not in named_by_events):
                    chat.deleted_at = fetched_at
                    buffer.put(chat, fetched_at)
                    run.reconciled["deleted chats"] += 1
        del missed[chat_id]
        run.on_page()
        yield from buffer.flush_full()


def drop_participants(chat: Chat) -> Chat:
    """Return a chat as the list shows it, without participants: a row must not depend on how it was read."""
    chat.extra = drop_fields(chat.extra, ("participants",))
    return chat


def _read_lagging(lagging: dict[str, int], state: ChatsState, context: StreamContext) -> Iterator[Any]:
    run, in_vain, progress = context.run, state.lagging_in_vain, context.run.get_progress("messages")
    if run.missing is None or not lagging or _should_pause(state):
        return
    max_in_vain = max(LAGGING_IN_VAIN, in_vain + 1)
    # The API may have shown an empty list once, so chats that still lag are read again, with growing pauses. One that
    # shows other messages will hardly show the missing one soon.
    state.lagging = {chat_id: at_ms for chat_id, at_ms in state.lagging.items() if lagging.get(chat_id) == at_ms}
    state.lagging_tries = tries = {chat_id: state.lagging_tries.get(chat_id, (0, 0)) for chat_id in state.lagging}
    for chat_id, at_ms in sorted(lagging.items(), key=lambda item: tries.get(item[0], (0, 0))[1]):
        if not _is_due(state, chat_id, at_ms) or in_vain >= max_in_vain:
            continue
        tried, _ = tries.get(chat_id, (0, 0))
        before, listed = run.count_loaded("messages"), progress.rows
        messages = yield from read_chat_messages(context, chat_id, run.settings.start_ms)
        yield from context.buffer.flush()
        has_rows = bool(messages.rejected) or progress.rows > listed
        state.lagging[chat_id] = at_ms
        tries[chat_id] = (max(tried + 1, TRIES_WITHOUT_WAIT if has_rows else 0), state.seen_ms)
        if not messages.is_read:
            continue
        if run.count_loaded("messages") > before:
            run.reconciled["threads"] += 1
            in_vain = 0
        elif not tried or max_in_vain > LAGGING_IN_VAIN:
            in_vain += 1
        state.lagging_in_vain = in_vain


def _should_pause(state: ChatsState) -> bool:
    """Return whether no lagging chat is read now, because so many were read in vain."""
    last_ms = max((at_ms for _, at_ms in state.lagging_tries.values()), default=0)
    return is_waiting(state.lagging_in_vain - LAGGING_IN_VAIN + TRIES_WITHOUT_WAIT, last_ms, state.seen_ms)


def _is_due(state: ChatsState, chat_id: str, at_ms: int) -> bool:
    """Return whether a chat is read because no message of its `last_message_at` is stored."""
    return state.lagging.get(chat_id) != at_ms or not is_waiting(
        *state.lagging_tries.get(chat_id, (0, 0)), state.seen_ms
    )


def _read_for_events(state: ChatsState, context: StreamContext) -> Iterator[Any]:
    """Read the intervals in which events name missing messages, each once for the same events."""
    run, settings = context.run, context.run.settings
    for chat_id, (from_ms, to_ms) in run.missing.known_from_events.items() if run.missing else ():
        # The time of an event may differ from that of its message.
        lo_ms, hi_ms = max(from_ms - settings.lookback_ms, settings.start_ms), to_ms + settings.lookback_ms
        messages = yield from read_chat_messages(context, chat_id, lo_ms, hi_ms)
        read = {**state.read_for_events, chat_id: (from_ms, to_ms)}
        state.read_for_events = dict(list(read.items())[-MAX_READ_FOR_EVENTS:])
        run.reconciled["intervals from events"] += messages.is_read


def _read_participants(state: ChatsState, context: StreamContext) -> None:
    """Ask for the participants of each group of `run.missing`. If the first show none, the next runs ask others."""
    client, buffer, run, failed = context.client, context.buffer, context.run, context.failed
    shown, hidden, failed_before = set[str](), list[str](), {unit.id for unit in failed.list_all("participants")}
    for chat_id, before in run.missing.groups.items() if run.missing else ():
        if failed.is_waiting("participants", chat_id):
            continue
        context.before_request()
        fetched_at = run.clock.now()
        chat: Chat | None = None
        handles: list[str] | None = None
        with failed.attempt("participants", chat_id) as attempt:
            try:
                chat = client.get_chat(chat_id)
                handles = read_participants(chat)
            except NotFoundError:
                state.missed[chat_id] = SWEEPS_MISSED
            if chat is not None and handles is None and (shown or chat_id in failed_before):
                raise PermanentError(NO_PARTICIPANTS)
        run.on_page()
        if chat is None or not attempt.succeeded:
            continue
        if handles is None:
            hidden.append(chat_id)
            if len(hidden) == MAX_HIDDEN:
                break
            continue
        shown.add(chat_id)
        buffer.put(drop_participants(chat), fetched_at)
        # By the API's clock, because it is compared with the API's `updated_at`.
        buffer.put_participants(chat_id, handles, before, from_epoch_ms(state.seen_ms))
        run.reconciled["participant lists"] += 1
    if hidden:
        state.participants_hidden_ms = state.seen_ms
        state.participants_hidden = [*state.participants_hidden, hidden][-MAX_HIDDEN_TRIES:]
    if shown:
        for chat_id in sorted({chat_id for groups in state.participants_hidden for chat_id in groups} - shown):
            failed.record("participants", chat_id, PermanentError(NO_PARTICIPANTS))
        state.participants_hidden = []


def read_overflows(state: ListState, context: StreamContext) -> Iterator[Any]:
    """Read the messages of timestamps that have more than a page shows, chat by chat.

    Chats are read in the order of their ids: when the limit is reached, the next run resumes. The overflow stands if
    one chat alone has too many messages at a timestamp, or if not all chats are known.
    """
    run, spans = context.run, {*state.overflows}
    context = _limit_requests(context)
    try:
        with until("missing rows"):
            for span in _list_unread_overflows(state):
                if span.from_ms is None or span.to_ms is None or run.warehouse is None:
                    continue
                progress = state.overflows_done.setdefault(_name(span), OverflowProgress())
                while ids := run.warehouse.chats_alive_at(span.from_ms, span.to_ms, progress.after_id, CHATS_AT_ONCE):
                    for chat_id in ids:
                        messages = yield from read_chat_messages(context, chat_id, span.from_ms, span.to_ms)
                        progress.after_id = chat_id
                        progress.is_stuck = progress.is_stuck or messages.has_overflow or not messages.is_read
                # Chats that are not known may have messages at this timestamp.
                if progress.is_stuck or run.missing is None or not run.missing.all_chats_known:
                    progress.is_over = True
                else:
                    spans = spans - {span}
                    del state.overflows_done[_name(span)]
                    run.reconciled["tie overflows"] += 1
    finally:
        save_overflows(state, spans, run, "messages")
