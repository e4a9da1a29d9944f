from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.group_world import OURS, World
from msgbubbles_sync.sandbox import Account, Knobs, serve
from msgbubbles_sync.workspace import Workspace


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:

        def make(knobs: Knobs | None = None) -> World:
            account = Account()
            stack.callback(account.close)
            account.add_number(OURS, "Support")
            account.add_number("+14155550101", "Sales")
            workspace = Workspace.from_path(tmp_path / "company.duckdb")
            workspace.make_folders()
            return World(stack.enter_context(serve(account, knobs)), workspace)

        yield make


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    return new_world()
