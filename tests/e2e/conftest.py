from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
            assert "marts.thread_activity 240" in run_demo(new / "demo.duckdb")
            new.rename(folder)
    return folder / "demo.duckdb"


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the file of an account, and a folder in which a job has loaded it. Both are copied."""
    path, folder = tmp_path_factory.mktemp("account") / "account.sqlite", tmp_path_factory.mktemp("loading")
    account = Account(path)
    seed_account(account)
    with serve(account) as server:
        Job(folder, server).run()
    account.close()
    # `check` would find the same account in two folders.
    return path, folder.rename(folder.with_name("loaded"))


def seed_account(
    account: Account, *, chats: int = 150, messages: int = 700, days: int = 60, silence: timedelta = timedelta()
) -> None:
    seed(account, now=datetime.now(UTC) - silence, chats=chats, messages=messages, days=days)


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Make a job on a seeded account (or an empty one) behind a server with the knobs given."""
    with ExitStack() as stack:

        def make(knobs: Knobs | None = None, *, chats: int = 150, **options: Any) -> Job:
            account = Account()
            stack.callback(account.close)
            if chats:
                seed_account(account, chats=chats, **options)
            else:
                account.add_number("+14155550100", "Support")
            return Job(tmp_path, stack.enter_context(serve(account, knobs)))

        yield make


@pytest.fixture
def loaded_job(tmp_path: Path, loaded: tuple[Path, Path]) -> Iterator[Job]:
    """Return a job that has loaded its account once: what `new_job().run()` leaves, in a tenth of the time."""
    source, folder = loaded
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    account = Account(Path(shutil.copy(source, tmp_path.with_name(f"{tmp_path.name}.sqlite"))))
    with serve(account) as server:
        yield Job(tmp_path, server)
    account.close()
