"""Define what a run reads, in order, and through which client, and read it without dlt."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from msgbubbles.client import Client
from msgbubbles.errors import NotFoundError
from msgbubbles.lazy_pyarrow import pa
from msgbubbles.models import Number, Page, fingerprint
from msgbubbles.private_client import build_client
from msgbubbles.redact import Redactor
from msgbubbles.tables import Table

from .buffer import RowBuffer
from .chats import read_chats
from .coverage import Coverage
from .messages import read_messages
from .run import Run, StreamContext
from .state import NumbersState
from .streams import Read, read_stream

# The parts of the state of the messages that are states of lists.
LISTS = ("by_feed", "by_thread")


def read_numbers(state: NumbersState, context: StreamContext) -> Iterator[Any]:
    """Read the account's own numbers, all with one request, and load those that have changed."""
    if context.failed.is_waiting("numbers", "numbers"):
        return
    page: Page[Number] | None = None
    with context.failed.attempt("numbers", "numbers"), suppress(NotFoundError):  # some APIs answer an empty list so
        page = context.client.list_numbers()
    if page is None:
        return
    context.run.get_progress("numbers").count(page)
    context.buffer.add(page, skip=frozenset(state.seen))
    state.seen = sorted(fingerprint(row) for row in page.rows)
    context.run.on_page()
    yield from context.buffer.flush_full()


# Messages before chats: then the chat of every new message exists when the chats are read.
READERS: tuple[tuple[Read, tuple[str, ...]], ...] = (
    (read_numbers, ("numbers",)),
    (read_messages, ("messages", "attachments")),
    (read_chats, ("chats", "messages", "attachments", "participant_reads", "participant_lists")),
)


def build_run_client(api_key: str, redactor: Redactor, run: Run) -> Client:
    """Build the client of a run."""

    def stored_chats(ids: Sequence[str]) -> Sequence[str]:
        return run.warehouse.read_chats(ids) if run.warehouse else ()

    transport = run.build_transport(api_key, run.settings)
    return build_client(transport, redactor, stored_chats, run.settings.sender_field)


def read_directly(
    api_key: str, redactor: Redactor, run: Run, resources: MutableMapping[str, Any], names: Collection[str]
) -> list[tuple[Table, pa.Table]] | None:
    """Read the resources with these names, or all without any, and return the rows to load.

    Does without dlt, which is most of what a run that finds little would cost. The caller loads the rows and stores the
    state, both or none of them.

    `resources` is dlt's state after the last load, and that of this one afterwards. Returns null if it need not be
    stored: there are no rows, and it would only say when the newest page of each list was read.
    """
    before, requests = {name: _describe(state) for name, state in resources.items()}, run.traffic.total
    pages = {stream: progress.pages for stream, progress in run.streams.items()}
    items: list[tuple[Table, pa.Table]] = []
    with build_run_client(api_key, redactor, run) as client:
        for read, tables in READERS:
            if names and tables[0] not in names:
                continue
            state = resources.setdefault(tables[0], {})
            buffer = RowBuffer(tables, run.warehouse, run.changes, build=lambda table, rows: (table, rows))
            items += read_stream(read, client, buffer, state, run)
    read_pages = [progress.pages - pages.get(stream, 0) for stream, progress in run.streams.items()]
    has_read_more = max(read_pages, default=0) > 1 or run.traffic.total - requests > sum(read_pages)
    is_same = {name: _describe(state) for name, state in resources.items()} == before
    return None if is_same and not items and not has_read_more else items


def _describe(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to be stored of a state: not when which interval was read."""
    described: dict[str, Any] = {
        name: _describe(part) if name in LISTS else part for name, part in state.items() if name != "seen_ms"
    }
    if "covered" in described:
        described["covered"] = Coverage((lo, hi, 0) for lo, hi, _ in described["covered"]).intervals
    return described
