"""Read the account's own numbers, all with one request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from msgbubbles.errors import NotFoundError
from msgbubbles.models import Number, Page, fingerprint

from .run import StreamContext
from .state import NumbersState


def read_numbers(state: NumbersState, context: StreamContext) -> Iterator[Any]:
    """Read the numbers, and load those that have changed."""
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
