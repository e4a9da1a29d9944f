"""What a run of the job works with: built once, in the CLI, and passed down."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from msgbubbles.redact import Redactor

from .destinations import Destination
from .settings import Settings
from .workspace import Workspace

if TYPE_CHECKING:
    from msgbubbles.source.run import Run


class Console(Protocol):
    """Where the job reports what it does."""

    def say(self, message: str, /) -> None:
        """Report progress."""

    def fail(self, message: str, /) -> None:
        """Report an error, or what needs a look."""

    def follow(self, run: Run, /) -> AbstractContextManager[None]:
        """Show how far a run has come until the block ends."""


@dataclass(frozen=True)
class Context:
    """`settings` reach the account: the configured one, or the sandbox."""

    workspace: Workspace
    destination: Destination
    redactor: Redactor
    settings: Settings
    console: Console


@dataclass(frozen=True)
class Limits:
    """What one run may do. It reads nothing older than `since` (UTC), makes at most `max_requests`, and ends after the
    request in flight when `stop` is set. `accept_ties`: nothing is missing at the tie overflows known until now.
    """

    since: datetime | None = None
    max_requests: int | None = None
    accept_ties: bool = False
    with_transform: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
