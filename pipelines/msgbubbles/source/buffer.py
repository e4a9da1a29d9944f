"""Gather rows, compare them with the stored ones, and turn what differs into items for dlt.

dlt's own `upsert` does not deduplicate within a load, so rows are deduplicated here within a table, and by
`dedup_sort` between the tables of one load.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw

from msgbubbles.decode import reject_row
from msgbubbles.models import (
    Attachment,
    Chat,
    Message,
    Number,
    Page,
    Participant,
    ParticipantRead,
    R,
    RejectedRow,
    Row,
    StreamCoverage,
    fingerprint,
)
from msgbubbles.tables import CHAT_TITLES, TABLES

from .arrow import build_arrow_table, build_item
from .compare import Comparison, filter_rows
from .lazy_pyarrow import pa
from .progress import keep_progress

REJECTED, TITLES, COVERAGE = "rejected_rows", "chat_titles", "stream_coverage"
PARTICIPANTS, PARTICIPANT_READS = "participant_lists", "participant_reads"
MODELS: dict[str, type[Row]] = {"chats": Chat, "messages": Message, "attachments": Attachment, "numbers": Number}
# A row, and when it was read.
Read = tuple[Any, datetime]
# One Arrow table holds this many rows at most: 100 full pages. Larger ones are hardly faster and cost memory.
ROWS_PER_TABLE = 10_000


# The parent of a row: where two rows with one id have different ones, neither is a newer reading of the other.
PARENTS = {"messages": ("conversation_id", "chat"), "attachments": ("message_id", "message")}


class StoredRows(Protocol):
    """Queries of the warehouse, so that only rows that are new or have changed are loaded."""

    def rows(self, table: str, incoming: pa.Table) -> pa.Table | None:
        """Return the stored rows that have the keys of `incoming`; null when the table is missing."""

    def message_locations(self, ids: Sequence[str]) -> dict[str, tuple[str | None, datetime | None]]:
        """Return the chat and the time of stored messages, by their ids."""

    def attachments(self, message_ids: Sequence[str]) -> list[Attachment]:
        """Return the stored attachments of these messages that are not removed."""


@dataclass
class Changes:
    """Counts of the rows of one table that were read, compared with the stored ones. Without a warehouse, every row
    is new.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    # With values that some destination cannot store, and that were replaced.
    replaced: int = 0
    # A row that changes back within one load is as it is stored, and not as it is about to be.
    changed_keys: set[str] = field(default_factory=set)

    @property
    def loaded(self) -> int:
        return self.new + self.changed

    def on_replaced(self, rows: int) -> None:
        self.replaced += rows


@dataclass(frozen=True)
class NewChat:
    """A chat that the warehouse did not have, or had as a deleted one (`is_back`)."""

    id: str
    is_back: bool
    created_at: datetime | None


class RowBuffer:
    """Gathers the rows of one stream and turns them into items for dlt.

    `tables` are the tables that the stream fills, its own first. `changes` counts their rows. `on_chats` gets
    the chats that were not stored before. `on_twins` gets the table and the hashes of rows that are in `rejected_rows`
    because another chat's message, or another message's attachment, has their id.
    """

    def __init__(
        self,
        tables: tuple[str, ...],
        stored: StoredRows | None = None,
        changes: dict[str, Changes] | None = None,
    ) -> None:
        self.stream = tables[0]
        self.changes = {} if changes is None else changes
        self._stored = stored
        self.on_chats: Callable[[list[NewChat]], None] = lambda _chats: None
        self.on_twins: Callable[[str, set[str]], None] = lambda _table, _hashes: None
        # Which parent the row with an id has, for what was read since the last load.
        self._parents: dict[str, dict[str, str]] = {table: {} for table in PARENTS}
        # Ids that were read with several parents.
        self._twins: dict[str, set[str]] = {table: set() for table in PARENTS}
        # Attachments that their stored message no longer shows.
        self._removed: set[str] = set()
        # Which rows of a table the destination refuses, where it has refused some.
        self.refused: Callable[[str, pa.Table], list[bool]] | None = None
        self.refused_rows = 0
        self._rows: dict[str, dict[str, tuple[Any, datetime]]] = {table: {} for table in (*tables, REJECTED, COVERAGE)}
        # What was turned into items last: the edge of the next pages repeats some of it.
        self._before: dict[str, dict[str, tuple[Any, datetime]]] = {}

    def add(self, page: Page[R], skip: frozenset[str] = frozenset()) -> None:
        """Take the rows of a page, except those whose fingerprint is in `skip`: they are as they were."""
        for row in page.rows:
            if skip and fingerprint(row) in skip:
                self._changes(self.stream).unchanged += 1
                continue
            self.put(row, page.fetched_at)
        self.add_rejected(page)

    def put(self, row: Row, fetched_at: datetime) -> None:
        """Take one row, unless its table is not loaded."""
        table = _TABLES.get(type(row))
        if table is None:
            return
        self._put(table, self._key(table, row), row, fetched_at)
        if isinstance(row, Message):
            for attachment in row.attachments or ():
                attachment.message_id = attachment.message_id or row.id
                self._put("attachments", self._key("attachments", attachment), attachment, fetched_at)

    def _key(self, table: str, row: Row) -> str:
        """Return the key of a row until it is loaded: its own, with its parent where that is not the first one."""
        parent = getattr(row, PARENTS[table][0]) if table in PARENTS else None
        if parent is None or self._parents[table].setdefault(row.key, parent) == parent:
            return row.key
        self._twins[table].add(row.key)
        return f"{row.key}\0{parent}"

    def put_participants(
        self, chat_id: str, handles: Sequence[str], before: Sequence[str] | None, at: datetime
    ) -> None:
        """Take the participants of a group. If they are the same as before, only the time of reading is loaded."""
        read = ParticipantRead(chat_id, Raw(msgspec.json.encode(handles)), at)
        self._put(PARTICIPANT_READS, chat_id, read, at)
        if before is None or list(before) != list(handles):
            for handle in handles or (None,):
                one = Participant(chat_id, handle, at)
                self._put(PARTICIPANTS, one.id, one, at)

    def put_coverage(self, coverage: StreamCoverage, fetched_at: datetime) -> None:
        """Take the interval that a stream has been read in."""
        self._put(COVERAGE, coverage.stream, coverage, fetched_at)

    def add_rejected(self, page: Page[Any]) -> None:
        """Take only the rows of a page that could not be read."""
        for rejected in page.rejected:
            self._put(REJECTED, rejected.row_hash, rejected, page.fetched_at)

    def _put(self, table: str, key: str, row: Any, fetched_at: datetime) -> None:
        # Pages that were asked for at once come in any order.
        known = self._rows[table].get(key)
        if known is None or known[1] <= fetched_at:
            self._rows[table][key] = (row, fetched_at)

    def _changes(self, table: str) -> Changes:
        return self.changes.setdefault(table, Changes())

    def flush_full(self) -> Iterator[Any]:
        """Build items for dlt of the tables that have enough rows."""
        return self._items(ROWS_PER_TABLE)

    def flush(self) -> Iterator[Any]:
        """Build items for dlt of all rows that are left."""
        return self._items(1)

    @property
    def tables(self) -> list[str]:
        """All tables that this may fill, with the names of their columns."""
        tables = [*self._rows, TITLES] if self.stream == "chats" else [*self._rows]
        return [f"{table}({','.join(TABLES[table].column_names)})" for table in tables]

    def empty_tables(self) -> Iterator[Any]:
        """Build items that make dlt create the tables, so that a query finds an empty one."""
        names = (table.partition("(")[0] for table in self.tables)
        return (build_item(table, build_arrow_table(TABLES[table], ())) for table in names)

    def _items(self, at_least: int) -> Iterator[Any]:
        for table, rows in self._rows.items():
            if len(rows) < at_least:
                continue
            before = self._before.get(table, {})
            taken_rows = [row for key, row in rows.items() if key not in before or before[key][0] != row[0]]
            self._before[table], self._rows[table] = rows, {}
            if taken_rows:
                yield from self._build_changed_items(table, taken_rows)

    def _without_twins(self, table: str, rows: list[Read], stored: pa.Table | None) -> list[Read]:
        """Reject rows whose id is that of a row with another parent. The stored row stays, else the one that was read
        first; but a message that now shows in one other chat only, with the same time, has moved there.
        """
        if table not in PARENTS:
            return rows
        owners, (parent_field, parent_name) = self._parents[table], PARENTS[table]
        read = {row.key: getattr(row, parent_field) for row, _ in rows}
        elsewhere = self._stored_elsewhere(table, read, stored)
        twins = (self._twins[table] & read.keys()) | elsewhere.keys()
        if not twins:
            return rows
        places: dict[str, set[Any]] = {}
        for row, _ in rows:
            if row.key in twins:
                places.setdefault(row.key, set()).add((getattr(row, parent_field), row.cursor_at))
        for key, (parent, at) in elsewhere.items():
            is_moved = key in self._removed or (table == "messages" and {one for _, one in places[key]} == {at})
            if not (is_moved and len({one for one, _ in places[key]}) == 1):
                owners[key] = parent
        kept, hashes = [], set()
        for row, fetched_at in rows:
            if row.key not in twins or getattr(row, parent_field) in (None, owners[row.key]):
                kept.append((row, fetched_at))
                continue
            twin = reject_row(row, table, f"the id is also that of one of another {parent_name}")
            self._put(REJECTED, twin.row_hash, twin, fetched_at)
            hashes.add(twin.row_hash)
            for one in (row.attachments or ()) if isinstance(row, Message) else ():
                self._rows["attachments"].pop(one.id, None)
        if hashes:
            self.on_twins(table, hashes)
        return kept

    def _stored_elsewhere(
        self, table: str, read: dict[str, str | None], stored: pa.Table | None
    ) -> dict[str, tuple[str, datetime | None]]:
        """Find rows whose stored parent is not the only one that was read. Returns it and the stored time, by id."""
        twins = self._twins[table]
        found: dict[str, tuple[str, datetime | None]] = {}
        known: set[str] = set()
        if stored is not None:
            keys = stored.column("id").to_pylist()
            known = set(keys)
            for place, parent in enumerate(stored.column(PARENTS[table][0]).to_pylist()):
                one = read.get(keys[place])
                if one is not None and parent is not None and (one != parent or keys[place] in twins):
                    at = stored.column("cursor_at")[place].as_py() if table == "messages" else None
                    found[keys[place]] = (parent, at)
        if table == "messages" and self._stored is not None:
            # The stored rows are only those of the same time.
            for key, (parent, at) in self._stored.message_locations([key for key in read if key not in known]).items():
                if parent is not None and (read[key] not in (None, parent) or key in twins):
                    found[key] = (parent, at)
        return found

    def _add_removed(self, rows: list[Read], stored: pa.Table | None) -> None:
        """Take stored attachments that their messages no longer show, as removed."""
        if self._stored is None or stored is None:
            return
        counts = dict(zip(stored.column("id").to_pylist(), stored.column("attachment_count").to_pylist(), strict=True))
        shown = {
            row.id: ({one.id for one in row.attachments or ()}, fetched_at)
            for row, fetched_at in rows
            if counts.get(row.id) and row.attachments is not UNSET
        }
        for one in self._stored.attachments(list(shown)):
            ids, fetched_at = shown[one.message_id or ""]
            if one.id not in ids:
                self._removed.add(one.id)
                if one.id not in self._rows["attachments"]:
                    one.removed_at = fetched_at
                    self._put("attachments", self._key("attachments", one), one, fetched_at)

    def _build_changed_items(self, table: str, rows: list[Read]) -> Iterator[Any]:
        """Build items for dlt of the rows that are new or differ from the stored ones, and of titles that changed."""
        changes = self._changes(table)
        incoming = build_arrow_table(TABLES[table], rows, changes.on_replaced)
        stored = None if self._stored is None else self._stored.rows(table, incoming)
        kept = self._without_twins(table, rows, stored)
        if len(kept) < len(rows):
            rows, incoming = kept, build_arrow_table(TABLES[table], kept)
        if table == "messages":
            self._add_removed(rows, stored)
        if self._stored is None:
            changes.new += incoming.num_rows
            yield from self._build_items(table, incoming)
            return
        comparison = Comparison(incoming, stored, TABLES[table])
        if table == "messages" and any(comparison.is_stored):
            ahead = keep_progress(incoming, comparison)
            if ahead is not incoming:
                incoming, comparison = ahead, Comparison(ahead, stored, TABLES[table])
        # A rejected row is its own key; what came with it is of the request.
        changed = [False] * incoming.num_rows if table == REJECTED else comparison.changed()
        again = [key in changes.changed_keys for key in comparison.keys]
        changed = [now or before for now, before in zip(changed, again, strict=True)]
        differs = [now or not known for now, known in zip(changed, comparison.is_stored, strict=True)]
        changes.changed_keys.update(key for key, now in zip(comparison.keys, changed, strict=True) if now)
        changes.new += len(differs) - sum(comparison.is_stored)
        changes.changed += sum(changed)
        changes.unchanged += len(differs) - sum(differs)
        if not any(differs):
            return
        yield from self._build_items(table, filter_rows(incoming, differs))
        if table == "chats":
            gone = comparison.stored("deleted_at").is_valid().to_pylist()
            self.on_chats(
                [
                    NewChat(key, was_gone, created_at)
                    for key, was_gone, is_stored, created_at, deleted_at in zip(
                        comparison.keys,
                        gone,
                        comparison.is_stored,
                        incoming.column("created_at").to_pylist(),
                        incoming.column("deleted_at").to_pylist(),
                        strict=True,
                    )
                    if deleted_at is None and (was_gone or not is_stored)
                ]
            )
            differing = comparison.differing(["title"])["title"]
            retitled = filter_rows(incoming, [now or before for now, before in zip(differing, again, strict=True)])
            if retitled.num_rows:
                names = ["id" if name == "chat_id" else name for name in CHAT_TITLES.column_names]
                titles = retitled.select(names).rename_columns(CHAT_TITLES.column_names)
                yield from self._build_items(TITLES, titles)

    def _build_items(self, table: str, rows: pa.Table) -> Iterator[Any]:
        """Build items for dlt of the rows that the destination accepts; the others become rejected rows."""
        refused = self.refused(table, rows) if self.refused else []
        if any(refused):
            for row in filter_rows(rows, refused).to_pylist():
                rejected = RejectedRow(table, "the destination refuses it", json.dumps(row, default=str), None)
                self._put(REJECTED, rejected.row_hash, rejected, row["_fetched_at"])
                self.refused_rows += 1
            rows = filter_rows(rows, [not one for one in refused])
        if rows.num_rows:
            yield build_item(table, rows)


_TABLES = {model: table for table, model in MODELS.items()}
