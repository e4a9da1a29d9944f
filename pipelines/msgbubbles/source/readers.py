"""What a run reads, in order, and through which client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from msgbubbles.client import Client
from msgbubbles.errors import NotFoundError
from msgbubbles.models import Number, Page, fingerprint
from msgbubbles.private_client import build_client
from msgbubbles.redact import Redactor

from .chats import read_chats
from .messages import read_messages
from .run import Run, StreamContext
from .state import NumbersState
from .streams import Read


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
