"""Compare the published warehouse with the API, row by row and field by field, without changing anything.

Rows that are newer than the last run are no difference: the next run reads them. This module has its own rules for
paging (`paginate`), so that it shows mistakes in those of the sync.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, NotFoundError, PermanentError, UnreachableError, is_unit_error
from msgbubbles.models import Attachment, Chat, Message, Page, R, Row
from msgbubbles.settings import SourceSettings
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.buffer import ROWS_PER_TABLE
from msgbubbles.source.compare import Comparison
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.failed_reads import ATTEMPTS_AFTER_A_FAILURE
from msgbubbles.source.page_times import CLOCK_TOLERANCE
from msgbubbles.source.paginate import cursor_ms
from msgbubbles.source.reconcile import drop_participants
from msgbubbles.tables import TABLES
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms, from_epoch_ms, to_epoch_ms

from .local_state import LocalState

# The next page is requested from the median of this many rows at the end of a page.
LAST_ROWS = 5
# A list ends after this many pages in a row without a new row. A short page may be an exception, so it counts less.
PAGES_WITHOUT_NEWS = 3
SHORT_PAGE_COUNTS = 0.2
# An API that shows this many pages in a row with new rows, and none older, is refused.
MAX_PAGES_WITHOUT_PROGRESS = 200
# A row is new if it is not on one of this many pages before.
PAGES_REMEMBERED = 10

TABLE_NAMES: dict[type[Row], str] = {Chat: "chats", Message: "messages", Attachment: "attachments"}


@dataclass(frozen=True)
class Difference:
    """A row that is not the same in the warehouse and in the API. It holds ids only, no texts and no handles.

    `kind` is `missing` (in the warehouse), `surplus` (not in the API), `unreadable` (a chat, or all messages of a chat,
    for which the API returns an error) or `different`, in these `fields`.
    """

    table: str
    id: str
    kind: str
    fields: tuple[str, ...] = ()
    chat_id: str | None = None

    def __str__(self) -> str:
        fields = f": {', '.join(self.fields)}" if self.fields else ""
        return f"{self.table} {self.id or '(the list)'} {self.kind}{fields}"


@dataclass
class VerifyResult:
    """How many rows were compared, by table, and their differences. The next run reads the `newer` ones."""

    compared: dict[str, int] = field(default_factory=dict)
    newer: int = 0
    unreadable: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, object]:
        return {
            "equal": self.is_equal,
            "compared": self.compared,
            "newer": self.newer,
            "unreadable": self.unreadable,
            "differences": [
                {name: value for name, value in vars(difference).items() if name != "chat_id"}
                for difference in self.differences
            ],
        }


class Verifier:
    """Compares what a client reads with the published tables. Calls `on_page` after every request."""

    def __init__(
        self,
        client: Client,
        database: duckdb.DuckDBPyConnection,
        coverage: dict[str, Coverage],
        settings: SourceSettings,
        on_page: Callable[[], None],
    ) -> None:
        self.result = VerifyResult()
        self._client = client
        self._database = database
        self._settings = settings
        self._on_page = on_page
        # Later rows did not exist, or could still change, when the last run read.
        self._final_to_ms = {stream: (read.newest_ms or 0) - settings.lookback_ms for stream, read in coverage.items()}
        self._rows: dict[str, dict[str, Row]] = {table: {} for table in TABLE_NAMES.values()}
        self._chat_of_message: dict[str, str | None] = {}
        self._unreadable: set[str] = set()  # chats that the API returns an error for
        self._now_ms = 0  # the API's clock, by the last page
        database.execute("CREATE TEMP TABLE shown (kind VARCHAR, id VARCHAR)")
        # A row from an event has not been read. An older warehouse has no such rows.
        self._was_read = dict.fromkeys(TABLE_NAMES.values(), "true")
        for table in ("chats", "messages"):
            query = f"SELECT * FROM msgbubbles.{table} LIMIT 0"  # noqa: S608
            if "from_event_at" in database.sql(query).columns:
                self._was_read[table] = "from_event_at IS NULL"

    def sample(self, count: int, seed: int | None = None) -> None:
        """Compare chats picked at random, by id, and all of their messages. Chats of the next run are left out."""
        query = (
            f"SELECT id FROM msgbubbles.chats WHERE deleted_at IS NULL AND {self._was_read['chats']} "  # noqa: S608
            "AND coalesce(last_message_at < ?, true) ORDER BY id"
        )
        final_to = from_epoch_ms(self._final_to_ms["chats"])
        ids = [chat_id for (chat_id,) in self._database.execute(query, [final_to]).fetchall()]
        for chat_id in random.Random(seed).sample(ids, min(count, len(ids))):  # noqa: S311 - a sample, not a secret
            if not self._compare_by_id(chat_id):
                continue
            self._read_thread(chat_id)
            self._compare_all()
            self._surplus_messages("conversation_id = ?", chat_id)
            self._database.execute("DELETE FROM shown")

    def full(self, *, feed: bool) -> None:
        """Compare everything. `feed` is whether the API lists the messages of all chats together."""
        start = from_epoch_ms(self._settings.start_ms)
        has_list = True
        try:
            self._read_list("chats", lambda before: self._client.list_chats(before=before))
        except ApiError as error:
            if not feed or isinstance(error, UnreachableError):
                raise
            has_list = False
            self.result.differences.append(Difference("chats", "", "unreadable"))
        self._compare_all()
        not_listed = self._database.execute(
            f"SELECT id FROM msgbubbles.chats WHERE deleted_at IS NULL AND {self._was_read['chats']} "  # noqa: S608
            "AND last_message_at >= ? AND last_message_at < ? "
            "AND id NOT IN (SELECT id FROM shown WHERE kind = 'chats')",
            [start, from_epoch_ms(self._final_to_ms["chats"])],
        ).fetchall()
        for (chat_id,) in not_listed if has_list else ():
            self._compare_by_id(chat_id)
        if feed:
            try:
                self._read_list("messages", lambda before: self._client.list_messages(before=before))
            except ApiError as error:
                if not (has_list and is_unit_error(error)):
                    raise
                feed = False
        if not feed:
            chats = self._database.execute("SELECT DISTINCT id FROM shown WHERE kind = 'chats'").fetchall()
            for (chat_id,) in chats:
                self._read_thread(chat_id)
        self._compare_all()
        deleted = "conversation_id NOT IN (SELECT id FROM msgbubbles.chats WHERE deleted_at IS NOT NULL)"
        self._surplus_messages(f"cursor_at >= ? AND {deleted}", start)

    def _read_list(self, table: str, fetch: Callable[[str | None], Page[Any]]) -> None:
        def fetch_page(before: str | None) -> Page[Any]:
            page = fetch(before)
            self._on_page()
            self._now_ms = to_epoch_ms(page.server_at + CLOCK_TOLERANCE)
            self.result.unreadable += len(page.rejected)
            return page

        for page in paginate(fetch_page, self._settings.start_ms):
            for row in page.rows:
                self._add(row, table)
            if any(len(rows) >= ROWS_PER_TABLE for rows in self._rows.values()):
                self._compare_all()

    def _read_thread(self, chat_id: str) -> None:
        try:
            with self._limit_attempts():
                self._read_list("messages", lambda before: self._client.list_messages(chat_id, before=before))
        except NotFoundError:
            pass  # it was deleted meanwhile
        except ApiError as error:
            self._add_unreadable(error, "messages", chat_id)

    def _compare_by_id(self, chat_id: str) -> bool:
        """Compare a chat by its id, and return whether the API has it.

        A chat that the list did not show may have moved, or share its timestamp with too many others.
        """
        try:
            with self._limit_attempts():
                chat = drop_participants(self._client.get_chat(chat_id))
        except NotFoundError:
            self.result.differences.append(Difference("chats", chat_id, "surplus"))
            return False
        except ApiError as error:
            self._add_unreadable(error, "chats", chat_id)
            return True
        finally:
            self._on_page()
        self._add(chat, "chats")
        self._compare_all()
        return True

    def _limit_attempts(self) -> AbstractContextManager[None]:
        """Retry less often once a read has failed."""
        return self._client.transport.at_most(ATTEMPTS_AFTER_A_FAILURE) if self._unreadable else nullcontext()

    def _add_unreadable(self, error: ApiError, table: str, chat_id: str) -> None:
        if not is_unit_error(error):
            raise error
        self._unreadable.add(chat_id)
        self.result.differences.append(Difference(table, chat_id, "unreadable", (), chat_id))

    def _add(self, row: Chat | Message, table: str) -> None:
        at_ms = _find_listed_ms(row)
        if type(row) not in TABLE_NAMES or (at_ms is not None and at_ms < self._settings.start_ms):
            return  # the privacy policy drops it, or it is too old
        if min(self._find_past_ms(row), default=BEGINNING_MS) >= self._final_to_ms[table]:
            self.result.newer += 1
            self._database.execute("INSERT INTO shown VALUES (?, ?)", [table, row.key])
            return
        self._rows[table][row.key] = row
        if isinstance(row, Message):
            for attachment in row.attachments or ():
                attachment.message_id = attachment.message_id or row.id
                self._chat_of_message[row.id] = row.conversation_id
                self._rows["attachments"][attachment.key] = attachment

    def _find_past_ms(self, row: Chat | Message) -> list[int]:
        """Return the times that the row may be listed by, or else its other times; none in the API's future."""
        others = [to_epoch_ms(at) for at in (row.updated_at, row.created_at) if at is not None]
        past = [[at for at in times if at <= self._now_ms] for times in (_list_times_ms(row), others)]
        return past[0] or past[1]

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
        keys = incoming.select([key])
        self._database.register("incoming_keys", keys)
        try:
            stored = self._database.execute(
                f"SELECT * FROM msgbubbles.{table} WHERE {key} IN (SELECT {key} FROM incoming_keys) "  # noqa: S608
                f"AND {self._was_read[table]}"
            ).to_arrow_table()
            self._database.execute(f"INSERT INTO shown SELECT '{table}', {key} FROM incoming_keys")  # noqa: S608
        finally:
            self._database.unregister("incoming_keys")
        comparison = Comparison(incoming, stored, TABLES[table])
        differing = comparison.differing()
        newer = 0
        for number, row_key in enumerate(comparison.keys):
            row = rows[row_key]
            chat_id = row_key if table == "chats" else self._find_chat_id(row)
            fields = tuple(name for name, mask in differing.items() if mask[number])
            if comparison.is_stored[number]:
                if fields:
                    self.result.differences.append(Difference(table, row_key, "different", fields, chat_id))
            elif isinstance(row, Chat | Message) and (
                max(self._find_past_ms(row), default=BEGINNING_MS) >= self._final_to_ms[table]
            ):
                newer += 1  # it was added after the last run
            else:
                self.result.differences.append(Difference(table, row_key, "missing", (), chat_id))
        self.result.newer += newer
        self.result.compared[table] = self.result.compared.get(table, 0) + len(rows) - newer

    def _find_chat_id(self, row: Row) -> str | None:
        if isinstance(row, Attachment):
            return self._chat_of_message.get(row.message_id or "")
        return getattr(row, "conversation_id", None)

    def _surplus_messages(self, condition: str, value: Any) -> None:
        surplus = self._database.execute(
            f"SELECT id, conversation_id FROM msgbubbles.messages WHERE {condition} AND cursor_at < ? "  # noqa: S608
            f"AND id NOT IN (SELECT id FROM shown WHERE kind = 'messages') AND {self._was_read['messages']}",
            [value, from_epoch_ms(self._final_to_ms["messages"])],
        ).fetchall()
        self.result.differences += [
            Difference("messages", message_id, "surplus", (), chat_id)
            for message_id, chat_id in surplus
            if chat_id not in self._unreadable
        ]


def paginate(fetch: Callable[[str | None], Page[R]], start_ms: int) -> Iterator[Page[R]]:
    """Page through a list, newest first, down to `start_ms`, and yield the pages without repeated rows.

    `fetch` requests the page before an ISO 8601 timestamp. A page is requested above the last rows of the page before
    (the median of `LAST_ROWS`, so that outliers do not count), and has to repeat one of its rows. If it does not, the
    times of these rows mislead, and paging continues from the middle of that page. The list ends with an empty page,
    or with `PAGES_WITHOUT_NEWS`. Raises `PermanentError` if the API returns newer rows than requested, or new rows
    without end and none that is older.
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
            times_ms = sorted(filter(None, map(_find_listed_ms, repeats.rows)))
            before_ms, repeats = times_ms[len(times_ms) // 2] + 1, None
            without_news += 1
            continue
        if len(page) == 0:
            return
        all_ms = [at for row in page.rows if (at := _find_listed_ms(row)) is not None]
        latest_ms = to_epoch_ms(page.server_at) + DAY_MS if before_ms is None else before_ms
        times_ms = [at for at in all_ms if at <= latest_ms]
        is_end = page.has_more is False and not page.full
        if (times_ms and max(times_ms) < start_ms) or (not times_ms and is_end):
            return
        if all_ms and not times_ms and before_ms is not None:
            raise PermanentError("verify: the API returned rows that are newer than the `before` of the request")
        if not times_ms and before_ms is not None:
            return  # rows without a time come last
        # A page that is short for no reason may have more rows the next time.
        is_short = bool(page.has_more) and not page.full
        without_news = 0 if new else without_news + (SHORT_PAGE_COUNTS if is_short else 1)
        # Rows without a time are listed first here. Of rows that share a timestamp, only a page can be reached.
        last_ms = sorted(times_ms[-LAST_ROWS:] if new else times_ms) or [latest_ms]
        oldest_ms = last_ms[0] if is_end else last_ms[len(last_ms) // 2 if new else len(last_ms) // 4]
        next_ms = oldest_ms + (0 if is_end else 1) - int(without_news)
        without_progress = 0 if before_ms is None or next_ms < before_ms else without_progress + 1
        if without_progress > MAX_PAGES_WITHOUT_PROGRESS:
            raise PermanentError("verify: the API returns new rows on page after page, and none that is older")
        before_ms, repeats = next_ms, page if new and times_ms and not is_end else None


def _find_listed_ms(row: Row) -> int | None:
    """Return the latest time that the API may list a row by."""
    return max(_list_times_ms(row), default=None)


def _list_times_ms(row: Row) -> list[int]:
    """Return the times that the API may list a row by."""
    sent_at = row.sent_at if isinstance(row, Message) else None
    return [at for at in (cursor_ms(row), None if sent_at is None else to_epoch_ms(sent_at)) if at is not None]


def verify(local: LocalState, client: Client, *, sample: int | None, on_page: Callable[[], None]) -> VerifyResult:
    """Compare `sample` chats picked at random, or everything if that is null."""
    coverage = {stream: local.load_coverage(stream) for stream in ("chats", "messages")}
    with local.destination.open_tables() as database:
        verifier = Verifier(client, database, coverage, local.settings.source, on_page)
        if sample is None:
            verifier.full(feed=local.states.messages.feed is not False)
        else:
            verifier.sample(sample)
        return verifier.result
