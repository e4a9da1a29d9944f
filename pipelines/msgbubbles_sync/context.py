"""The workspace, settings and console of a command: built once in the CLI and passed down."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from msgbubbles.redact import Redactor

from .destinations import Destination, build_destination
from .policy.applied import build_redactor, restore_record
from .settings import Settings
from .workspace import Workspace

if TYPE_CHECKING:
    from msgbubbles.source.run import Run


class Console(Protocol):
    """Where a command reports what it does."""

    def say(self, message: str, /) -> None:
        """Report progress."""

    def fail(self, message: str, /) -> None:
        """Report an error or a warning."""

    def follow(self, run: Run, /) -> AbstractContextManager[None]:
        """Show the progress of a run until the block ends."""


@dataclass(frozen=True)
class Context:
    """One warehouse, its settings, and where progress is reported.

    `cli.session.run_command` builds it, and commands get it as `session.context`. A command that makes requests gets a
    `Connection`, whose `context` has the settings that reach the account: the configured one, or the sandbox. Layers
    above this module take the context; those below (policy, dbt, destinations) take the parts that they need.
    """

    workspace: Workspace
    settings: Settings
    console: Console
    # The reasons why parts of a run failed before the command, by part.
    failed_parts: Mapping[str, str] = field(default_factory=dict)
    # The destination of another context of the warehouse, which may be open; by default, one is built.
    opened: Destination | None = None

    @cached_property
    def destination(self) -> Destination:
        return self.opened or build_destination(self.workspace, self.settings.sync)

    @cached_property
    def redactor(self) -> Redactor:
        """Raises `UsageError` if the stored rows were loaded under another policy, as no run would start then.

        An erasure or a change of the policy needs a new one afterwards: `build_redactor`.
        """
        if restored := restore_record(self.destination):
            self.console.fail(restored)
        return build_redactor(self.workspace, self.settings)

    def check_policy(self) -> None:
        """Raise `UsageError` if the configured policy is not the one of the stored rows."""
        _ = self.redactor


@dataclass(frozen=True)
class Limits:
    """The limits of one run.

    It reads nothing older than `since` (UTC), makes at most `max_requests`, and ends after the request in flight when
    `stop` is set.
    """

    since: datetime | None = None
    max_requests: int | None = None
    with_transform: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
