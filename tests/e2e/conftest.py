from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers.job import Job, run_demo
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage, Server, seed, serve


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """Return a function that has a folder made once for all workers."""
    own = tmp_path_factory.getbasetemp()

    def share(name: str, make: Callable[[Path], None]) -> Path:
        folder = (own if worker_id == "master" else own.parent) / name
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                new = folder.with_suffix(".new")  # one that fails is none for the next test
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                make(new)
                new.rename(folder)
        return folder

    return share


@pytest.fixture(scope="session")
def demo(shared: Callable[..., Path]) -> Path:
    """Return what `make demo` publishes. A test that changes it copies its folder first."""

    def make(folder: Path) -> None:
        assert "marts.thread_activity 240" in run_demo(folder / "demo.duckdb")

    return shared("demo", make) / "demo.duckdb"


@pytest.fixture(scope="session")
def loaded(shared: Callable[..., Path]) -> Path:
    """Return a folder with the file of an account, and a folder in which a job has loaded it. Both are copied."""

    def make(folder: Path) -> None:
        account = Account(folder / "account.sqlite")
        seed_account(account)
        (folder / "job").mkdir()
        with serve(account) as server:
            Job(folder / "job", server).run()
        account.close()

    return shared("loaded", make)


@pytest.fixture(scope="session")
def built(shared: Callable[..., Path], loaded: Path) -> Path:
    """Return what `loaded` does, after a build of all marts and an increment by dbt: the next run is a planned one."""

    def make(folder: Path) -> None:
        shutil.copytree(loaded / "job", folder / "job")
        with serve_copy(loaded, folder / "account.sqlite") as server:
            job = Job(folder / "job", server)
            job.run(transform=True)
            write_a_message(server.account)
            job.run(transform=True)

    return shared("built", make)


@contextmanager
def serve_copy(folder: Path, path: Path) -> Iterator[Server]:
    """Serve a copy of the account in a folder that tests copy."""
    account = Account(Path(shutil.copy(folder / "account.sqlite", path)))
    with serve(account) as server:
        yield server
    account.close()


def write_a_message(account: Account) -> None:
    chat = account.all("SELECT id FROM chats ORDER BY last_us DESC LIMIT 1")[0]["id"]
    account.add_message(NewMessage(chat, "inbound", "hello", datetime.now(UTC), "received"))


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
def loaded_job(tmp_path: Path, loaded: Path) -> Iterator[Job]:
    """Return a job that has loaded its account once: what `new_job().run()` leaves, in a tenth of the time."""
    shutil.copytree(loaded / "job", tmp_path, dirs_exist_ok=True)
    with serve_copy(loaded, tmp_path.with_name(f"{tmp_path.name}.sqlite")) as server:
        yield Job(tmp_path, server)


@pytest.fixture
def built_job(tmp_path: Path, built: Path) -> Iterator[Job]:
    """Return a job that has also built the marts, which takes dbt seconds. Its next run needs no dbt."""
    shutil.copytree(built / "job", tmp_path, dirs_exist_ok=True)
    with serve_copy(built, tmp_path.with_name(f"{tmp_path.name}.sqlite")) as server:
        yield Job(tmp_path, server)
