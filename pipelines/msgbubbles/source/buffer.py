"""Gather rows, compare them with the stored ones, and build items for dlt from those that differ.

dlt's `upsert` does not deduplicate within a load. So rows are deduplicated here within one Arrow table, and by
`dedup_sort` among the Arrow tables of a load.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from msgbubbles.decode import reject_row
from msgbubbles.lazy_pyarrow import pa
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
from msgbubbles.tables import CHAT_TITLES, TABLES, Table

from .arrow import build_arrow_table, build_item
from .compare import Comparison, filter_rows
from .message_progress import keep_progress
from .stored import Warehouse, list_locations

REJECTED, TITLES, COVERAGE = "rejected_rows", "chat_titles", "stream_coverage"
PARTICIPANTS, PARTICIPANT_READS = "participant_lists", "participant_reads"
TABLES_BY_MODEL: dict[type[Row], str] = {
    Chat: "chats", Message: "messages", Attachment: "attachments", Number: "numbers",
}  # fmt: skip
# A row, and when it was fetched.
Fetched = tuple[Any, datetime]
# An Arrow table has at most this many rows (100 full pages). Larger ones are hardly faster and cost memory.
ROWS_PER_TABLE = 10_000
# The column of a row's parent, and what that is. Rows with one id and different parents are not versions of one row.
PARENTS = {"messages": ("conversation_id", "chat"), "attachments": ("message_id", "message")}


@dataclass
class Changes:
    """Counts of the rows of one table that were read, compared with the stored ones.

    Without a warehouse, every row is new. `replaced` rows had values that some destination cannot store.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    replaced: int = 0
    # A row that changes back within a load equals the stored row, but has to be loaded again.
    changed_keys: set[str] = field(default_factory=set)

    @property
    def loaded(self) -> int:
        return self.new + self.changed

    def on_replaced(self, rows: int) -> None:
        self.replaced += rows


@dataclass(frozen=True)
class NewChat:
    """A chat that was not stored, or was stored as deleted (`is_back`)."""

    id: str
    is_back: bool
    created_at: datetime | None


class RowBuffer:
    """Gathers the rows of one stream and builds items for dlt.

    `tables` are the tables that the stream fills, its own first. `changes` counts their rows. `on_chats` is called
    with the chats that were not stored before, and `on_twins` with a table and the hashes of rows that were rejected
    because a row with another parent has the same id. `refused` returns which rows of a table the destination refuses.
    `build` builds an item from rows of a table.
    """

    def __init__(
        self,
        tables: tuple[str, ...],
        stored: Warehouse | None = None,
        changes: dict[str, Changes] | None = None,
        build: Callable[[Table, pa.Table], Any] = build_item,
    ) -> None:
        self.stream = tables[0]
        self._build = build
        self.changes = {} if changes is None else changes
        self._stored = stored
        self.on_chats: Callable[[list[NewChat]], None] = lambda _chats: None
        self.on_twins: Callable[[str, set[str]], None] = lambda _table, _hashes: None
        self.refused: Callable[[str, pa.Table], list[bool]] | None = None
        self.refused_rows = 0
        # The parent of each row that was read since the last load, by id.
        self._parents: dict[str, dict[str, str]] = {table: {} for table in PARENTS}
        # Ids that were read with several parents.
        self._twins: dict[str, set[str]] = {table: set() for table in PARENTS}
        # Attachments that their stored message no longer shows.
        self._removed: set[str] = set()
        self._rows: dict[str, dict[str, Fetched]] = {table: {} for table in (*tables, REJECTED, COVERAGE)}
        # The rows of the last items: the next pages repeat some of them.
        self._before: dict[str, dict[str, Fetched]] = {}

    def add(self, page: Page[R], skip: frozenset[str] = frozenset()) -> None:
        """Add the rows of a page, except unchanged ones, whose fingerprints are in `skip`."""
        for row in page.rows:
            if skip and fingerprint(row) in skip:
                self._changes(self.stream).unchanged += 1
                continue
            self.put(row, page.fetched_at)
        self.add_rejected(page)

    def put(self, row: Row, fetched_at: datetime) -> None:
        """Add one row, unless its table is not loaded."""
        table = TABLES_BY_MODEL.get(type(row))
        if table is None:
            return
        self._put(table, self._key(table, row), row, fetched_at)
        if isinstance(row, Message):
            for attachment in row.attachments or ():
                attachment.message_id = attachment.message_id or row.id
                self.put(attachment, fetched_at)

    def _key(self, table: str, row: Row) -> str:
        """Return the key of a row in this buffer: its own, plus its parent if another parent came first."""
        parent = getattr(row, PARENTS[table][0]) if table in PARENTS else None
        if parent is None or self._parents[table].setdefault(row.key, parent) == parent:
            return row.key
        self._twins[table].add(row.key)
        return f"{row.key}\0{parent}"

    def put_participants(
        self, chat_id: str, handles: Sequence[str], before: Sequence[str] | None, at: datetime
    ) -> None:
        """Add the participants of a group. If they are the same as before, only the time of reading is loaded."""
        read = ParticipantRead(chat_id, Raw(msgspec.json.encode(handles)), at)
        self._put(PARTICIPANT_READS, chat_id, read, at)
        if before is None or list(before) != list(handles):
            for handle in handles or (None,):
                participant = Participant(chat_id, handle, at)
                self._put(PARTICIPANTS, participant.id, participant, at)

    def put_coverage(self, coverage: StreamCoverage, fetched_at: datetime) -> None:
        self._put(COVERAGE, coverage.stream, coverage, fetched_at)

    def add_rejected(self, page: Page[Any]) -> None:
        for rejected in page.rejected:
            self._put(REJECTED, rejected.row_hash, rejected, page.fetched_at)

    def _put(self, table: str, key: str, row: Any, fetched_at: datetime) -> None:
        # Pages that were requested at once arrive in any order.
        before = self._rows[table].get(key)
        if before is None or before[1] <= fetched_at:
            self._rows[table][key] = (row, fetched_at)

    def _changes(self, table: str) -> Changes:
        return self.changes.setdefault(table, Changes())

    def flush_full(self) -> Iterator[Any]:
        """Build items from the tables that have enough rows."""
        return self.flush(ROWS_PER_TABLE)

    @property
    def _tables(self) -> list[Table]:
        return [TABLES[name] for name in (*self._rows, *([TITLES] if self.stream == "chats" else ()))]

    @property
    def tables(self) -> list[str]:
        """The tables that this may fill, with the names of their columns."""
        return [f"{table.name}({','.join(table.column_names)})" for table in self._tables]

    def empty_tables(self) -> Iterator[Any]:
        """Build items that make dlt create empty tables, so that they can be queried."""
        return (self._build(table, build_arrow_table(table, ())) for table in self._tables)

    def flush(self, min_rows: int = 1) -> Iterator[Any]:
        """Build items from the tables that have this many rows."""
        for table, rows in self._rows.items():
            if len(rows) < min_rows:
                continue
            before = self._before.get(table, {})
            new_rows = [row for key, row in rows.items() if key not in before or before[key][0] != row[0]]
            self._before[table], self._rows[table] = rows, {}
            if new_rows:
                yield from self._build_changed_items(table, new_rows)

    def _reject_twins(self, table: str, rows: list[Fetched], stored: pa.Table | None) -> list[Fetched]:
        """Reject rows whose id belongs to a row with another parent.

        The stored row stays, or else the one that was read first. But a message that now shows in one other chat only,
        with the same time, has moved there.
        """
        if table not in PARENTS:
            return rows
        owners, (parent_field, parent_name) = self._parents[table], PARENTS[table]
        read = {row.key: getattr(row, parent_field) for row, _ in rows}
        elsewhere = self._stored_elsewhere(table, read, stored)
        twins = (self._twins[table] & read.keys()) | elsewhere.keys()
        if not twins:
            return rows
        parents: dict[str, set[str | None]] = {}
        times: dict[str, set[datetime | None]] = {}
        for row, _ in rows:
            if row.key in twins:
                parents.setdefault(row.key, set()).add(getattr(row, parent_field))
                times.setdefault(row.key, set()).add(row.cursor_at)
        for key, (parent, at) in elsewhere.items():
            is_moved = key in self._removed or (table == "messages" and times[key] == {at})
            if not (is_moved and len(parents[key]) == 1):
                owners[key] = parent
        accepted, hashes = [], set()
        for row, fetched_at in rows:
            if row.key not in twins or getattr(row, parent_field) in (None, owners[row.key]):
                accepted.append((row, fetched_at))
                continue
            twin = reject_row(row, table, f"the id is also that of one of another {parent_name}")
            self._put(REJECTED, twin.row_hash, twin, fetched_at)
            hashes.add(twin.row_hash)
            for attachment in (row.attachments or ()) if isinstance(row, Message) else ():
                self._rows["attachments"].pop(attachment.id, None)
        if hashes:
            self.on_twins(table, hashes)
        return accepted

    def _stored_elsewhere(
        self, table: str, read: dict[str, str | None], stored: pa.Table | None
    ) -> dict[str, tuple[str, datetime | None]]:
        """Find rows that are stored with another parent than was read, or were read with several.

        Return the stored parent and the stored time, by id.
        """
        locations: dict[str, tuple[str | None, datetime | None]] = {}
        if table == "messages":
            locations = list_locations(stored)
            if self._stored is not None:
                # `stored` has only messages with the times that were read.
                locations |= self._stored.message_locations([key for key in read if key not in locations])
        elif stored is not None:
            parents = stored.column(PARENTS[table][0]).to_pylist()
            locations = {
                key: (parent, None) for key, parent in zip(stored.column("id").to_pylist(), parents, strict=True)
            }
        return {
            key: (parent, at)
            for key, (parent, at) in locations.items()
            if key in read and parent is not None and (read[key] not in (None, parent) or key in self._twins[table])
        }

    def _add_removed(self, rows: list[Fetched], stored: pa.Table | None) -> None:
        """Add stored attachments that their messages no longer show, as removed."""
        if self._stored is None or stored is None:
            return
        counts = dict(zip(stored.column("id").to_pylist(), stored.column("attachment_count").to_pylist(), strict=True))
        shown = {
            row.id: ({attachment.id for attachment in row.attachments or ()}, fetched_at)
            for row, fetched_at in rows
            if counts.get(row.id) and row.attachments is not UNSET
        }
        for attachment in self._stored.attachments(list(shown)):
            ids, fetched_at = shown[attachment.message_id or ""]
            if attachment.id not in ids:
                self._removed.add(attachment.id)
                if attachment.id not in self._rows["attachments"]:
                    attachment.removed_at = fetched_at
                    self.put(attachment, fetched_at)

    def _build_changed_items(self, table: str, rows: list[Fetched]) -> Iterator[Any]:
        """Build items from the rows that are new or differ from the stored ones, and from titles that changed."""
        changes = self._changes(table)
        incoming = build_arrow_table(TABLES[table], rows, changes.on_replaced)
        stored = None if self._stored is None else self._stored.rows(table, incoming)
        accepted = self._reject_twins(table, rows, stored)
        if len(accepted) < len(rows):
            rows, incoming = accepted, build_arrow_table(TABLES[table], accepted)
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
        # Rejected rows with one key are equal; the other columns describe the request.
        changed = [False] * incoming.num_rows if table == REJECTED else comparison.changed()
        again = [key in changes.changed_keys for key in comparison.keys]
        changed = [now or before for now, before in zip(changed, again, strict=True)]
        differs = [now or not is_stored for now, is_stored in zip(changed, comparison.is_stored, strict=True)]
        changes.changed_keys.update(key for key, now in zip(comparison.keys, changed, strict=True) if now)
        changes.new += len(differs) - sum(comparison.is_stored)
        changes.changed += sum(changed)
        changes.unchanged += len(differs) - sum(differs)
        if not any(differs):
            return
        yield from self._build_items(table, filter_rows(incoming, differs))
        if table == "chats":
            self._report_new_chats(incoming, comparison)
            yield from self._build_changed_titles(incoming, comparison, again)

    def _report_new_chats(self, incoming: pa.Table, comparison: Comparison) -> None:
        """Report the chats that are not stored, or are stored as deleted."""
        was_deleted = comparison.stored("deleted_at").is_valid().to_pylist()
        columns = (incoming.column(name).to_pylist() for name in ("created_at", "deleted_at"))
        chats = zip(comparison.keys, was_deleted, comparison.is_stored, *columns, strict=True)
        self.on_chats(
            [
                NewChat(key, is_back, created_at)
                for key, is_back, is_stored, created_at, deleted_at in chats
                if deleted_at is None and (is_back or not is_stored)
            ]
        )

    def _build_changed_titles(self, incoming: pa.Table, comparison: Comparison, again: list[bool]) -> Iterator[Any]:
        """Build items from the titles that are new, differ from the stored ones, or are read `again` in this run."""
        differing = comparison.differing(["title"])["title"]
        retitled = filter_rows(incoming, [now or before for now, before in zip(differing, again, strict=True)])
        if retitled.num_rows:
            names = ["id" if name == "chat_id" else name for name in CHAT_TITLES.column_names]
            titles = retitled.select(names).rename_columns(CHAT_TITLES.column_names)
            yield from self._build_items(TITLES, titles)

    def _build_items(self, table: str, rows: pa.Table) -> Iterator[Any]:
        """Build items from the rows that the destination accepts; the others become rejected rows."""
        refused = self.refused(table, rows) if self.refused else []
        if any(refused):
            for row in filter_rows(rows, refused).to_pylist():
                rejected = RejectedRow(table, "the destination refuses it", json.dumps(row, default=str), None)
                self._put(REJECTED, rejected.row_hash, rejected, row["_fetched_at"])
                self.refused_rows += 1
            rows = filter_rows(rows, [not is_refused for is_refused in refused])
        if rows.num_rows:
            yield self._build(TABLES[table], rows)
