from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.job import Job, run_demo
from msgbubbles_sync.sandbox import Account, Knobs, seed, serve


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return what `make demo` publishes, made once for all workers. A test that changes it copies its folder first."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "demo"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            new = folder.with_suffix(".new")  # one that fails is no demo for the next test
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            assert "marts.thread_activity 240" in run_demo(new / "demo.duckdb", start_anew=True)
            new.rename(folder)
    return folder / "demo.duckdb"


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Make a job on a seeded account (or an empty one) behind a server with the knobs given."""
    with ExitStack() as stack:

        def make(
            knobs: Knobs | None = None, *, chats: int = 150, messages: int = 700, silence: timedelta = timedelta()
        ) -> Job:
            account = Account()
            stack.callback(account.close)
            if chats:
                seed(account, now=datetime.now(UTC) - silence, chats=chats, messages=messages, days=60)
            else:
                account.add_number("+14155550100", "Support")
            return Job(tmp_path, stack.enter_context(serve(account, knobs)))

        yield make
