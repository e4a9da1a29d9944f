"""What is known of the groups that have a key, from all who know something: the ledger, and the published warehouse.

Evidence is put in the order of its time, and the later one counts: what the network confirmed to us, what a look at the
chat showed, and what the sync has read since (titles, deletes, and participant lists where the API shows them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import duckdb

from msgbubbles.handles import fold_handle, parse_handle
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.workspace import Workspace

from .ledger import Entry, Ledger, Observation, Rendering
from .model import ObservedGroup, fold_title

Change = Callable[[ObservedGroup], ObservedGroup]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Reading:
    """What the published warehouse says of a chat."""

    from_handle: str | None = None
    title: tuple[datetime, str | None] | None = None
    gone_at: datetime | None = None
    participants: tuple[datetime, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Published:
    """What the published warehouse knows. `numbers` are the account's own, null where none were ever read."""

    readings: Mapping[str, Reading] = field(default_factory=dict)
    numbers: frozenset[str] | None = None


def observe_groups(ledger: Ledger, published: Published) -> dict[str, ObservedGroup]:
    """The groups that have a key, by key. An operation without a verdict counts as done: it is settled before anything
    else is.
    """
    histories: dict[str, list[tuple[datetime, Entry | Observation]]] = {}
    for entry in ledger.entries():
        if entry.key is not None and entry.outcome != "failed":
            histories.setdefault(entry.key, []).append((entry.finished_at or datetime.now(UTC), entry))
    for observation in ledger.observations():
        histories.setdefault(observation.key, []).append((observation.seen_at, observation))
    renderings: dict[str, list[Rendering]] = {}
    for rendering in ledger.renderings():
        renderings.setdefault(rendering.chat_id, []).append(rendering)
    found = {}
    for key, history in histories.items():
        group = _group(key, sorted(history, key=lambda one: one[0]), published.readings)
        if group is not None:
            found[key] = as_asked(group, renderings.get(group.chat_id or "", ()))
    return found


def as_asked(group: ObservedGroup, renderings: Iterable[Rendering]) -> ObservedGroup:
    """The group in the words in which the network was asked for it, where it is known to show others."""
    titles = {fold_title(one.shown): one.asked for one in renderings if one.field == "title"}
    handles = {fold_handle(one.shown): one.asked for one in renderings if one.field == "handle"}
    return replace(
        group,
        title=titles.get(fold_title(group.title), group.title),
        members=frozenset(handles.get(fold_handle(one), one) for one in group.members),
    )


def _group(
    key: str, history: list[tuple[datetime, Entry | Observation]], readings: Mapping[str, Reading]
) -> ObservedGroup | None:
    # A key stands for the chat that was created or adopted under it last.
    chat_id = next((one.chat_id for _, one in reversed(history) if one.chat_id is not None), None)
    ours = [(at, one) for at, one in history if one.chat_id == chat_id or one.chat_id is None]
    reading = readings.get(chat_id or "", Reading())
    numbers = [one.from_handle for _, one in ours if one.from_handle is not None]
    from_handle = numbers[-1] if numbers else reading.from_handle
    changes = [*((at, _change(one)) for at, one in ours), *_changes_read(reading, from_handle)]
    group = ObservedGroup(key, chat_id, from_handle, None, frozenset())
    for _, change in sorted(changes, key=lambda one: one[0]):
        group = change(group)
    return group


def _change(one: Entry | Observation) -> Change:
    if isinstance(one, Entry):
        return lambda group: group.after(one.operation, one.handles, one.title)
    if one.is_gone:
        return lambda group: replace(group, is_gone=True)

    def seen(group: ObservedGroup) -> ObservedGroup:
        members = group.members if one.handles is None else frozenset(one.handles)
        return replace(group, title=one.title, members=members, is_gone=False)

    return seen


def _changes_read(reading: Reading, from_handle: str | None) -> Iterator[tuple[datetime, Change]]:
    if reading.title is not None:
        at, title = reading.title
        yield at, lambda group: replace(group, title=title)
    if reading.participants is not None:
        at, handles = reading.participants
        members = frozenset(normalize_members(handles, from_handle))
        yield at, lambda group: replace(group, members=members)
    if reading.gone_at is not None:
        yield reading.gone_at, lambda group: replace(group, is_gone=True)


def normalize_members(handles: Iterable[str], from_handle: str | None) -> tuple[str, ...]:
    """The participants of a group in their one form, each once, and without our own number."""
    ours = None if from_handle is None else fold_handle(from_handle)
    found = {fold_handle(handle): parse_handle(handle) or handle for handle in sorted(handles)}
    return tuple(sorted(handle for folded, handle in found.items() if folded != ours))


# -- the published file, which is opened to read and closed again


def read_published(workspace: Workspace) -> Published:
    """What the published warehouse knows; nothing, where there is none yet."""
    with _queries(workspace) as rows:
        readings: dict[str, Reading] = {}
        for chat_id, from_handle, title, read_at, gone_at in rows(
            "SELECT id, from_handle, title, _fetched_at, deleted_at FROM msgbubbles.chats WHERE is_group"
        ):
            readings[chat_id] = Reading(from_handle, (read_at, title), gone_at)
        lists: dict[str, tuple[datetime, list[str]]] = {}
        for chat_id, read_at, handle in rows(
            "SELECT chat_id, _fetched_at, handle FROM msgbubbles.participant_lists "
            "QUALIFY rank() OVER (PARTITION BY chat_id ORDER BY _fetched_at DESC) = 1"
        ):
            handles = lists.setdefault(chat_id, (read_at, []))[1]
            if handle is not None:
                handles.append(handle)
        for chat_id, (read_at, handles) in lists.items():
            readings[chat_id] = replace(readings.get(chat_id, Reading()), participants=(read_at, tuple(handles)))
        numbers = frozenset(handle for (handle,) in rows("SELECT handle FROM msgbubbles.numbers"))
    return Published(readings, numbers or None)


def read_members(workspace: Workspace, chat_id: str, from_handle: str | None) -> tuple[str, ...]:
    """Who is in a group as far as the published marts know: a silent member is not among them."""
    with _queries(workspace) as rows:
        found = rows("SELECT handle FROM marts.group_membership WHERE chat_id = ?", chat_id)
    return normalize_members((handle for (handle,) in found), from_handle)


def restore(ledger: Ledger, workspace: Workspace) -> None:
    """Fill a ledger that is new from its copy in the published warehouse, where there is one: the file was lost."""
    if not ledger.is_new():
        return
    with _queries(workspace) as rows:
        entries = [
            Entry(
                operation_id=row[0], plan_id=row[1], key=row[2], operation=row[3], chat_id=row[4], from_handle=None,
                handles=tuple(json.loads(row[5])), title=row[6], message=None, idempotency_key=None,
                requested_at=row[7], finished_at=row[8] or row[7], happened_at=row[8],
                # What had no verdict cannot be settled without the lost file: the groups are looked at instead.
                outcome="failed" if row[9] == "unknown" else row[9],
                http_status=row[10], error_code=row[11], error_message=row[12], request_id=row[13],
            )
            for row in rows(
                "SELECT operation_id, plan_id, key, operation, chat_id, handles, title, requested_at, finished_at, "
                "outcome, http_status, error_code, error_message, request_id FROM msgbubbles.group_operations "
                "ORDER BY requested_at"
            )
        ]  # fmt: skip
        observations = [
            Observation(row[0], row[1], row[2], row[3], None if row[4] is None else tuple(json.loads(row[4])), *row[5:])
            for row in rows(
                "SELECT key, chat_id, from_handle, title, handles, is_gone, seen_at FROM msgbubbles.group_sightings"
            )
        ]
    ledger.restore(entries, observations)


@contextmanager
def _queries(workspace: Workspace) -> Iterator[Callable[..., list[Any]]]:
    """A function that asks the published file; a table that is not there has no rows."""
    if not workspace.database.exists():
        yield lambda _sql, *_values: []
        return
    with build_destination(workspace).open_reader() as database:

        def rows(sql: str, *values: Any) -> list[Any]:
            try:
                return database.execute(sql, values).fetchall()
            except (duckdb.CatalogException, duckdb.BinderException):
                return []

        yield rows
