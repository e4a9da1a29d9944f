"""Serve a new account with made-up chats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from msgbubbles_sync.sandbox import Account, Knobs, Server, seed, serve


@contextmanager
def serve_seeded(knobs: Knobs | None = None, *, chats: int, messages: int) -> Iterator[Server]:
    """Serve an account of 20 days until the block ends."""
    with closing(Account()) as account:
        seed(account, now=datetime.now(UTC), chats=chats, messages=messages, days=20)
        with serve(account, knobs) as server:
            yield server
