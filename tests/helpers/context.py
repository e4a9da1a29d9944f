"""Build the context that the CLI would build, and serve an account to a job in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from msgbubbles.source.run import Run
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.sandbox import Account, Server, seed, serve
from msgbubbles_sync.settings import Settings, load_settings
from msgbubbles_sync.workspace import RELIED_ON, Workspace


@dataclass
class RecordingConsole:
    """A console that stores what is reported."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.lines.append(message)

    def fail(self, message: str) -> None:
        self.errors.append(message)

    def follow(self, _run: Run) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class LoggingConsole(RecordingConsole):
    """Calls `on_line` with each line of progress."""

    on_line: Callable[[str], None] = lambda _line: None

    def say(self, message: str) -> None:
        super().say(message)
        self.on_line(message)


def build_context(
    workspace: Workspace, settings: Settings | None = None, console: RecordingConsole | None = None
) -> Context:
    """Build a context, by default with the configured settings."""
    return Context(workspace, settings or load_settings(workspace.account), console or RecordingConsole())


def build_destination(workspace: Workspace) -> Destination:
    """Build the destination of a workspace, with the configured settings."""
    return build_context(workspace).destination


@contextmanager
def serve_to_this_process(*, chats: int, messages: int, requests_per_minute: int = 0) -> Iterator[Server]:
    """Serve an account, and set the environment in which a job of this process reads it."""
    account = Account()
    seed(account, now=datetime.now(UTC), chats=chats, messages=messages, days=60)
    with pytest.MonkeyPatch.context() as patch, serve(account) as server:
        patch.setenv("SOURCES__MSGBUBBLES__API_KEY", server.key)
        patch.setenv("SOURCES__MSGBUBBLES__BASE_URL", server.url)
        patch.setenv("SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE", str(requests_per_minute))
        for name, value in RELIED_ON.items():
            patch.setenv(name, value)
        yield server
    account.close()
