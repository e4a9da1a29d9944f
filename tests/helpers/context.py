"""Build the context that the CLI would build."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from msgbubbles.source.run import Run
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.settings import Settings, load_settings
from msgbubbles_sync.workspace import Workspace


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
