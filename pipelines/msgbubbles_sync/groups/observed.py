"""Derive the state of the groups that have a key from the ledger and the published warehouse.

Evidence is ordered by time, and the later counts: operations that the network confirmed, observations of the chat, and
rows that the sync has read (titles, deletes, and participant lists if the API shows them).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from shlex import quote

from msgbubbles.decode import read_participants
from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles.models import Chat
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations.claims import SANDBOX, read_claim
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.workspace import CLAIM_FILE, Workspace

from .ledger import LEDGER, Entry, Ledger, Observation, Rendering, build_record
from .model import ObservedGroup, fold_title

# The fields of `Entry` and `Observation`. An unknown outcome cannot be found out without the lost file.
RECORDED_OPERATIONS = """
SELECT operation_id, plan_id, key, operation, chat_id, NULL, handles, title, NULL, NULL, requested_at,
    coalesce(finished_at, requested_at), finished_at, if(outcome = 'unknown', 'failed', outcome),
    http_status, error_code, error_message, request_id
FROM msgbubbles.group_operations ORDER BY requested_at"""
RECORDED_OBSERVATIONS = """
SELECT key, chat_id, from_handle, title, handles, is_gone, seen_at FROM msgbubbles.group_sightings"""

Evidence = tuple[datetime, Entry | Observation]
Change = Callable[[ObservedGroup], ObservedGroup]


@dataclass(frozen=True)
class PublishedChat:
    """A chat in the published warehouse, each fact with the time it was read."""

    from_handle: str | None = None
    title: tuple[datetime, str | None] | None = None
    gone_at: datetime | None = None
    participants: tuple[datetime, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Published:
    """The groups in the published warehouse. `numbers` are the account's own; null if none were ever read."""

    chats: Mapping[str, PublishedChat] = field(default_factory=dict)
    numbers: frozenset[str] | None = None


def observe_groups(ledger: Ledger, published: Published) -> dict[str, ObservedGroup]:
    """Return the groups that have a key, by key.

    An operation of unknown outcome counts as done: its outcome is found out before any other operation is sent. Of an
    observation and an operation at one time, the operation counts.
    """
    histories: dict[str, list[Evidence]] = {}
    for observation in filter(lambda observation: observation.chat_id, ledger.list_observations()):
        histories.setdefault(observation.key, []).append((observation.seen_at, observation))
    for entry in ledger.list_entries():
        if entry.key is not None and entry.outcome != "failed":
            histories.setdefault(entry.key, []).append((entry.finished_at or datetime.now(UTC), entry))
    renderings: dict[str, list[Rendering]] = {}
    for rendering in ledger.list_renderings():
        renderings.setdefault(rendering.chat_id, []).append(rendering)
    groups = {}
    for key, history in histories.items():
        group = _observe_group(key, sorted(history, key=lambda evidence: evidence[0]), published.chats)
        groups[key] = _undo_renderings(group, renderings.get(group.chat_id or "", ()))
    return groups


def _undo_renderings(group: ObservedGroup, renderings: Iterable[Rendering]) -> ObservedGroup:
    """Replace the titles and handles that the network shows by those that were requested."""
    titles = {fold_title(rendering.shown): rendering.asked for rendering in renderings if rendering.field == "title"}
    handles = {fold_handle(rendering.shown): rendering.asked for rendering in renderings if rendering.field == "handle"}
    return replace(
        group,
        title=titles.get(fold_title(group.title), group.title),
        members=frozenset(handles.get(fold_handle(member), member) for member in group.members),
    )


def _observe_group(key: str, history: list[Evidence], chats: Mapping[str, PublishedChat]) -> ObservedGroup:
    # A key stands for the chat that was created or imported under it last.
    chat_id = next((record.chat_id for _, record in reversed(history) if record.chat_id is not None), None)
    records = [(at, record) for at, record in history if record.chat_id == chat_id or record.chat_id is None]
    chat = chats.get(chat_id or "", PublishedChat())
    numbers = [record.from_handle for _, record in records if record.from_handle is not None]
    from_handle = numbers[-1] if numbers else chat.from_handle
    changes = [*((at, _build_change(record)) for at, record in records), *_build_read_changes(chat, from_handle)]
    group = ObservedGroup(key, chat_id, from_handle, None, frozenset())
    for _, change in sorted(changes, key=lambda change: change[0]):
        group = change(group)
    return group


def _build_change(record: Entry | Observation) -> Change:
    if isinstance(record, Entry):
        return lambda group: group.after(record.operation, record.handles, record.title)
    if record.is_gone:
        return lambda group: replace(group, is_gone=True)

    def change(group: ObservedGroup) -> ObservedGroup:
        members = group.members if record.handles is None else frozenset(record.handles)
        return replace(group, title=record.title, members=members, is_gone=False)

    return change


def _build_read_changes(chat: PublishedChat, from_handle: str | None) -> Iterator[tuple[datetime, Change]]:
    if chat.title is not None:
        at, title = chat.title
        yield at, lambda group: replace(group, title=title)
    if chat.participants is not None:
        at, handles = chat.participants
        members = frozenset(normalize_members(handles, from_handle))
        yield at, lambda group: replace(group, members=members)
    if chat.gone_at is not None:
        yield chat.gone_at, lambda group: replace(group, is_gone=True)


def normalize_members(handles: Iterable[str], from_handle: str | None) -> tuple[str, ...]:
    """Return the members of a group in canonical form, each once, without our own number."""
    ours = None if from_handle is None else fold_handle(from_handle)
    members = {fold_handle(handle): parse_handle(handle) or handle for handle in sorted(handles)}
    return tuple(sorted(handle for folded, handle in members.items() if folded != ours))


def read_shown_members(group: Chat) -> tuple[str, ...] | None:
    """Return the members of a group that was read by id, in canonical form; null if the API does not show them."""
    shown = read_participants(group)
    return None if shown is None else normalize_members(shown, group.from_handle)


# -- the published tables


def read_published(context: Context) -> Published:
    """Read the groups of the published warehouse; none before the first sync."""
    with context.destination.open_query() as fetch:
        chats: dict[str, PublishedChat] = {}
        for chat_id, from_handle, title, read_at, gone_at in fetch(
            "SELECT id, from_handle, title, _fetched_at, deleted_at FROM msgbubbles.chats WHERE is_group "
            # Not those that only an event shows, perhaps without a title. Older tables lack the column.
            "AND (to_json(chats) ->> 'from_event_at') IS NULL"
        ):
            chats[chat_id] = PublishedChat(from_handle, (read_at, title), gone_at)
        lists: dict[str, tuple[datetime, list[str]]] = {}
        for chat_id, read_at, handle in fetch(
            "SELECT chat_id, _fetched_at, handle FROM msgbubbles.participant_lists "
            "QUALIFY rank() OVER (PARTITION BY chat_id ORDER BY _fetched_at DESC) = 1"
        ):
            handles = lists.setdefault(chat_id, (read_at, []))[1]
            if handle is not None:
                handles.append(handle)
        for chat_id, (read_at, handles) in lists.items():
            chat = chats.get(chat_id, PublishedChat())
            chats[chat_id] = replace(chat, participants=(read_at, tuple(handles)))
        numbers = frozenset(handle for (handle,) in fetch("SELECT handle FROM msgbubbles.numbers"))
    return Published(chats, numbers or None)


def read_members(context: Context, chat_id: str, from_handle: str | None) -> tuple[str, ...]:
    """Read the members of a group from the published marts, which do not know silent members."""
    with context.destination.open_query() as fetch:
        rows = fetch("SELECT handle FROM marts.group_membership WHERE chat_id = ?", chat_id)
    return normalize_members((handle for (handle,) in rows), from_handle)


def find_chat_ids(context: Context, names: Collection[str]) -> set[str]:
    """Return the names that are ids of published chats."""
    with context.destination.open_query() as fetch:
        rows = fetch("SELECT id FROM msgbubbles.chats WHERE list_contains(?, id)", list(names))
    return {chat_id for (chat_id,) in rows}


@contextmanager
def open_ledger(context: Context) -> Iterator[Ledger]:
    """Open the ledger. If its file was lost, it is restored from the copy in the published warehouse.

    Raises `UsageError` if the ledger is in the workspace of another destination: an empty one would create every group
    a second time. Also if a change of the privacy policy has to be finished.
    """
    if context.workspace.is_pending("former_ledger"):
        raise UsageError(
            "the ledger is from before a change of the privacy policy: run chats.py first, which removes it"
        )
    with Ledger.open(context.workspace.folder) as ledger:
        if ledger.is_new():
            ledger.restore(*_read_ledger(context))
        if ledger.is_new():
            _refuse_second_ledger(context.workspace)
        yield ledger


def _refuse_second_ledger(workspace: Workspace) -> None:
    for folder in workspace.other_folders:
        claim = read_claim(folder / CLAIM_FILE) or {}
        if not (folder / LEDGER).exists() or claim.get("account") == SANDBOX:
            continue
        with Ledger.open(folder) as other:
            if not other.is_new():
                move = f"mv {quote(str(folder / LEDGER))}* {quote(str(workspace.folder))}/"
                raise UsageError(
                    f"the ledger of {workspace.database.stem} is in {folder}. If --destination {workspace.destination} "
                    f"has the same account, move it:\n\n  {move}\n\n"
                    "Otherwise choose another --database"
                )


def _read_ledger(context: Context) -> tuple[list[Entry], list[Observation]]:
    with context.destination.open_query() as fetch:
        entries, observations = fetch(RECORDED_OPERATIONS), fetch(RECORDED_OBSERVATIONS)
    names, observed = ([field.name for field in fields(kind)] for kind in (Entry, Observation))
    return (
        [build_record(Entry, dict(zip(names, row, strict=True))) for row in entries],
        [build_record(Observation, dict(zip(observed, row, strict=True))) for row in observations],
    )
