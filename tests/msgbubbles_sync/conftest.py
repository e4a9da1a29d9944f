"""Provide a warehouse after its first run, and the account that it read."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.context import build_context, serve_to_this_process
from helpers.hooks import workspace_in
from msgbubbles.source.run import Run
from msgbubbles_sync import job
from msgbubbles_sync.context import Limits
from msgbubbles_sync.load_streams import StreamLoader
from msgbubbles_sync.report import RunReport
from msgbubbles_sync.sandbox import Server
from msgbubbles_sync.workspace import Workspace


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Sync a small account for the first time, once for all workers. Returns the folder."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "first_run"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            new = folder.with_suffix(".new")
            new.mkdir()
            with serve_to_this_process(chats=60, messages=300) as server:
                report = job.run(build_context(workspace_in(new)), Limits(with_transform=False))
                assert report.record["outcome"] == "complete"
                with closing(sqlite3.connect(new / "account.sqlite")) as account:
                    server.account._database.backup(account)
            new.rename(folder)
    return folder


@pytest.fixture
def copy_first_run(first_run: Path) -> Callable[[Path, Server], Workspace]:
    """Return a function that copies the warehouse after its first run, and gives the server the account it read."""

    def copy(folder: Path, server: Server) -> Workspace:
        shutil.copytree(first_run, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("account.sqlite"))
        with closing(sqlite3.connect(first_run / "account.sqlite")) as account:
            account.backup(server.account._database)
        context, limits = build_context(workspace_in(folder)), Limits(with_transform=False)
        # It was at another address.
        StreamLoader(context, RunReport(context, Run()), job._adjust_source(context, limits))._record_load()
        return context.workspace

    return copy
