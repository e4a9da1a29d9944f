"""Compares the published warehouse with the API, row by row and field by field, and changes nothing.

What the API shows that is newer than what the last run read is no difference: it is for the next run. The API is paged
by rules of this module (`pages`), not by those of a sync, so that a mistake there shows here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, NotFoundError, PermanentError, is_unit_error
from msgbubbles.models import Attachment, Chat, Message, Page, R, Row
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.buffer import ROWS_PER_TABLE
from msgbubbles.source.compare import Comparison
from msgbubbles.source.config import Settings
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.failed_reads import TRIES_AFTER_A_FAILURE
from msgbubbles.source.page_times import CLOCK_TOLERANCE
from msgbubbles.source.paginate import cursor_ms
from msgbubbles.source.reconcile import as_listed
from msgbubbles.tables import TABLES
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms, from_epoch_ms, to_epoch_ms

from .local_state import Known

if TYPE_CHECKING:
    import pyarrow as pa

# A page goes on from the median of so many rows at its end.
LAST_ROWS = 5
# So many pages in a row without a new row are the end of a list.
PAGES_WITHOUT_NEWS = 3
SHORT_PAGE_COUNTS = 0.2
# So many pages in a row with new rows, and none older, are no list.
MAX_PAGES_WITHOUT_PROGRESS = 200
# Rows of so many pages are remembered to tell which are new.
PAGES_REMEMBERED = 10

TABLE_NAMES: dict[type[Row], str] = {Chat: "chats", Message: "messages", Attachment: "attachments"}


@dataclass(frozen=True)
class Difference:
    """`kind` is missing (in the warehouse), surplus (not in the API), unreadable (a chat, or all messages of one, that
    the API does not answer) or different, and then `fields` are those that are. Ids only: a difference holds no text
    and no handle.
    """

    table: str
    id: str
    kind: str
    fields: tuple[str, ...] = ()
    chat_id: str | None = None

    def __str__(self) -> str:
        fields = f": {', '.join(self.fields)}" if self.fields else ""
        return f"{self.table} {self.id} {self.kind}{fields}"


@dataclass
class Verdict:
    """What was compared, by table, and what is not equal. `newer` rows are for the next run."""

    compared: dict[str, int] = field(default_factory=dict)
    newer: int = 0
    unreadable: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {
            "equal": self.is_equal,
            "compared": self.compared,
            "newer": self.newer,
            "unreadable": self.unreadable,
            "differences": [
                {"table": one.table, "id": one.id, "kind": one.kind, "fields": list(one.fields)}
                for one in self.differences
            ],
        }


class Verifier:
    """Compares what a client reads with what is published. `on_page` is called after every request."""

    def __init__(
        self,
        client: Client,
        database: duckdb.DuckDBPyConnection,
        coverage: dict[str, Coverage],
        settings: Settings,
        on_page: Callable[[], None],
    ) -> None:
        self.verdict = Verdict()
        self._client = client
        self._database = database
        self._settings = settings
        self._on_page = on_page
        # What lies later was not there, or not settled, when the last run read.
        self._known_to_ms = {stream: (one.newest_ms or 0) - settings.lookback_ms for stream, one in coverage.items()}
        self._rows: dict[str, dict[str, Row]] = {table: {} for table in TABLE_NAMES.values()}
        self._chat_of_message: dict[str, str | None] = {}
        self._unreadable: set[str] = set()  # chats whose messages the API does not answer
        self._now_ms = 0  # the API's clock, by the last page
        database.execute("CREATE TEMP TABLE shown (kind VARCHAR, id VARCHAR)")

    def sample(self, count: int, seed: int | None = None) -> None:
        """Compare chats picked at random, by id, and all of their messages."""
        found = self._database.execute(
            "SELECT id FROM msgbubbles.chats WHERE deleted_at IS NULL ORDER BY id"
        ).fetchall()
        ids = [row[0] for row in found]
        for chat_id in random.Random(seed).sample(ids, min(count, len(ids))):  # noqa: S311 - a sample, not a secret
            if not self._ask_for(chat_id):
                continue
            self._read_thread(chat_id)
            self._compare_all()
            self._surplus_messages("conversation_id = ?", chat_id)
            self._database.execute("DELETE FROM shown")

    def full(self, feed: bool) -> None:
        """Walk through everything, and list every difference. `feed` says whether the API answers all messages."""
        start = from_epoch_ms(self._settings.start_ms)
        for page in self._walked(lambda before: self._client.list_chats(before=before)):
            for chat in page.rows:
                self._take(chat, "chats")
            self._compare_full_tables()
        self._compare_all()
        known_to = from_epoch_ms(self._known_to_ms["chats"])
        gone = self._database.execute(
            "SELECT id FROM msgbubbles.chats WHERE deleted_at IS NULL AND last_message_at >= ? AND last_message_at < ? "
            "AND id NOT IN (SELECT id FROM shown WHERE kind = 'chats')",
            [start, known_to],
        ).fetchall()
        for (chat_id,) in gone:
            self._ask_for(chat_id)
        if feed:
            try:
                for page in self._walked(lambda before: self._client.list_messages(before=before)):
                    for message in page.rows:
                        self._take(message, "messages")
                    self._compare_full_tables()
            except ApiError as error:
                if not is_unit_error(error):
                    raise
                feed = False
        if not feed:
            chats = self._database.execute("SELECT DISTINCT id FROM shown WHERE kind = 'chats'").fetchall()
            for (chat_id,) in chats:
                self._read_thread(chat_id)
                self._compare_full_tables()
        self._compare_all()
        deleted = "conversation_id NOT IN (SELECT id FROM msgbubbles.chats WHERE deleted_at IS NOT NULL)"
        self._surplus_messages(f"cursor_at >= ? AND {deleted}", start)

    def _walked(self, fetch: Callable[[str | None], Page[Any]]) -> Iterator[Page[Any]]:
        def counted(before: str | None) -> Page[Any]:
            page = fetch(before)
            self._on_page()
            self._now_ms = to_epoch_ms(page.server_at + CLOCK_TOLERANCE)
            self.verdict.unreadable += len(page.rejected)
            return page

        yield from pages(counted, self._settings.start_ms)

    def _read_thread(self, chat_id: str) -> None:
        try:
            with self._tries():
                for page in self._walked(lambda before: self._client.list_messages(chat_id, before=before)):
                    for message in page.rows:
                        self._take(message, "messages")
        except NotFoundError:
            pass  # gone meanwhile
        except ApiError as error:
            self._note_unreadable(error, "messages", chat_id)

    def _ask_for(self, chat_id: str) -> bool:
        """Compare a chat by its id: one that the list did not show may have moved, or share a timestamp with too many
        others. Returns whether the API has it.
        """
        try:
            with self._tries():
                chat = as_listed(self._client.get_chat(chat_id))
        except NotFoundError:
            self._differs(Difference("chats", chat_id, "surplus"))
            return False
        except ApiError as error:
            self._note_unreadable(error, "chats", chat_id)
            return True
        finally:
            self._on_page()
        self._take(chat, "chats")
        self._compare_all()
        return True

    def _tries(self) -> AbstractContextManager[None]:
        """After the first failure the others are not tried long."""
        return self._client.transport.at_most(TRIES_AFTER_A_FAILURE) if self._unreadable else nullcontext()

    def _note_unreadable(self, error: ApiError, table: str, chat_id: str) -> None:
        if not is_unit_error(error):
            raise error
        self._unreadable.add(chat_id)
        self._differs(Difference(table, chat_id, "unreadable", (), chat_id))

    def _take(self, row: Chat | Message, table: str) -> None:
        at_ms = _listed_ms(row)
        if type(row) not in TABLE_NAMES or (at_ms is not None and at_ms < self._settings.start_ms):
            return  # not to be here, by the privacy policy or by its time
        if min(self._past_ms(row), default=BEGINNING_MS) >= self._known_to_ms[table]:
            self.verdict.newer += 1
            self._database.execute("INSERT INTO shown VALUES (?, ?)", [table, row.key])
            return
        self._rows[table][row.key] = row
        if isinstance(row, Message):
            for attachment in row.attachments or ():
                attachment.message_id = attachment.message_id or row.id
                self._chat_of_message[row.id] = row.conversation_id
                self._rows["attachments"][attachment.key] = attachment

    def _past_ms(self, row: Chat | Message) -> list[int]:
        """The times by which the row was listed, or else shown; a time in the API's future says nothing."""
        shown = [to_epoch_ms(at) for at in (row.updated_at, row.created_at) if at is not None]
        past = [[at for at in times if at <= self._now_ms] for times in (_listed_by_ms(row), shown)]
        return past[0] or past[1]

    def _is_new(self, row: Chat | Message, table: str) -> bool:
        """Whether a row that is not stored came after the last run."""
        return max(self._past_ms(row), default=BEGINNING_MS) >= self._known_to_ms[table]

    def _compare_full_tables(self) -> None:
        if any(len(rows) >= ROWS_PER_TABLE for rows in self._rows.values()):
            self._compare_all()

    def _compare_all(self) -> None:
        for table, rows in self._rows.items():
            if rows:
                self._compare(table, rows)
                rows.clear()
        self._chat_of_message.clear()

    def _compare(self, table: str, rows: dict[str, Row]) -> None:
        fetched_at = from_epoch_ms(0)
        incoming = build_arrow_table(TABLES[table], [(row, fetched_at) for row in rows.values()])
        (key,) = TABLES[table].key
        keys: pa.Table = incoming.select([key])
        self._database.register("incoming_keys", keys)
        try:
            stored = self._database.execute(
                f"SELECT * FROM msgbubbles.{table} WHERE {key} IN (SELECT {key} FROM incoming_keys)"  # noqa: S608
            ).to_arrow_table()
            self._database.execute(f"INSERT INTO shown SELECT '{table}', {key} FROM incoming_keys")  # noqa: S608
        finally:
            self._database.unregister("incoming_keys")
        comparison = Comparison(incoming, stored, TABLES[table])
        differing = comparison.differing()
        newer = 0
        for number, one in enumerate(comparison.keys):
            row = rows[one]
            chat_id = one if table == "chats" else self._chat_of(row)
            if not comparison.is_stored[number]:
                if isinstance(row, Chat | Message) and self._is_new(row, table):
                    self.verdict.newer += 1
                    newer += 1
                    continue
                self._differs(Difference(table, one, "missing", (), chat_id))
                continue
            fields = tuple(name for name, mask in differing.items() if mask[number])
            if fields:
                self._differs(Difference(table, one, "different", fields, chat_id))
        self.verdict.compared[table] = self.verdict.compared.get(table, 0) + len(rows) - newer

    def _chat_of(self, row: Row) -> str | None:
        if isinstance(row, Attachment):
            return self._chat_of_message.get(row.message_id or "")
        return getattr(row, "conversation_id", None)

    def _surplus_messages(self, condition: str, value: Any) -> None:
        found = self._database.execute(
            f"SELECT id, conversation_id FROM msgbubbles.messages WHERE {condition} AND cursor_at < ? "  # noqa: S608
            "AND id NOT IN (SELECT id FROM shown WHERE kind = 'messages')",
            [value, from_epoch_ms(self._known_to_ms["messages"])],
        ).fetchall()
        for message_id, chat_id in found:
            if chat_id not in self._unreadable:
                self._differs(Difference("messages", message_id, "surplus", (), chat_id))

    def _differs(self, difference: Difference) -> None:
        self.verdict.differences.append(difference)


def pages(fetch: Callable[[str | None], Page[R]], start_ms: int) -> Iterator[Page[R]]:
    """Page through a list, newest first, down to `start_ms`; `fetch` asks for the page before an ISO 8601 timestamp.
    Yields the pages with the rows that were not on the pages before.

    A page is asked for above the last rows of the one before (the median of `LAST_ROWS`, so that outliers do not
    count), and has to repeat one of its rows: otherwise their times mislead, and the middle of that page is where to go
    on. The list ends with an empty page, or with `PAGES_WITHOUT_NEWS`. Raises `PermanentError` where an API shows newer
    rows than those asked for, or new ones for ever and none that is older.
    """
    recent: deque[set[str]] = deque(maxlen=PAGES_REMEMBERED)
    before_ms: int | None = None
    repeats: Page[R] | None = None  # the next page repeats a row of this one
    without_news, without_progress = 0.0, 0
    while without_news < PAGES_WITHOUT_NEWS:
        page = fetch(None if before_ms is None else format_ms(before_ms))
        keys = {row.key for row in page.rows}
        new = keys.difference(*recent)
        recent.append(keys)
        yield replace(page, rows=[row for row in page.rows if row.key in new])
        if repeats is not None and not keys & {row.key for row in repeats.rows}:
            times_ms = sorted(filter(None, map(_listed_ms, repeats.rows)))
            before_ms, repeats = times_ms[len(times_ms) // 2] + 1, None
            without_news += 1
            continue
        if len(page) == 0:
            return
        found_ms = [at for row in page.rows if (at := _listed_ms(row)) is not None]
        latest_ms = to_epoch_ms(page.server_at) + DAY_MS if before_ms is None else before_ms
        times_ms = [at for at in found_ms if at <= latest_ms]
        is_end = page.has_more is False and not page.full
        if (times_ms and max(times_ms) < start_ms) or (not times_ms and is_end):
            return
        if found_ms and not times_ms and before_ms is not None:
            raise PermanentError("verify: the API answered with rows that are newer than the `before` it was given")
        if not times_ms and before_ms is not None:
            return  # rows without a time come last
        # A page that is short for no reason may bring more the next time.
        is_short = bool(page.has_more) and not page.full
        without_news = 0 if new else without_news + (SHORT_PAGE_COUNTS if is_short else 1)
        # Rows without a time come first here. Of those that share a timestamp, no more than a page can be reached.
        last_ms = sorted(times_ms[-LAST_ROWS:] if new else times_ms) or [latest_ms]
        oldest_ms = last_ms[0] if is_end else last_ms[len(last_ms) // 2 if new else len(last_ms) // 4]
        next_ms = oldest_ms + (0 if is_end else 1) - int(without_news)
        without_progress = 0 if before_ms is None or next_ms < before_ms else without_progress + 1
        if without_progress > MAX_PAGES_WITHOUT_PROGRESS:
            raise PermanentError("verify: the API shows new rows page after page, and none that is older")
        before_ms, repeats = next_ms, page if new and times_ms and not is_end else None


def _listed_ms(row: Row) -> int | None:
    """The latest time that the API may list a row by."""
    return max(_listed_by_ms(row), default=None)


def _listed_by_ms(row: Row) -> list[int]:
    sent_at = row.sent_at if isinstance(row, Message) else None
    return [at for at in (cursor_ms(row), None if sent_at is None else to_epoch_ms(sent_at)) if at is not None]


def verify(
    known: Known, client: Client, settings: Settings, *, sample: int | None, on_page: Callable[[], None]
) -> Verdict:
    """Compare `sample` chats picked at random, or everything where that is null."""
    coverage = {stream: known.coverage(stream) for stream in ("chats", "messages")}
    feed = known.states().messages.feed is not False
    with known.destination.open_reader() as database:
        verifier = Verifier(client, database, coverage, settings, on_page)
        if sample is None:
            verifier.full(feed)
        else:
            verifier.sample(sample)
        return verifier.verdict
