from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from job import Job
from sandbox import Account, Knobs, seed, serve


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Makes a job on a seeded account (or an empty one) behind a server with the knobs given."""
    with ExitStack() as stack:

        def make(knobs: Knobs | None = None, *, chats: int = 150, messages: int = 700) -> Job:
            account = Account()
            stack.callback(account.close)
            if chats:
                seed(account, now=datetime.now(UTC), chats=chats, messages=messages, days=60)
            else:
                account.add_number("+14155550100", "Support")
            return Job(tmp_path, stack.enter_context(serve(account, knobs)))

        yield make
