"""`chats.py privacy lookup`. Imports no dlt."""

from __future__ import annotations

from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.outcome import EXIT_INCOMPLETE
from msgbubbles_sync.policy.applied import look_up


def run(session: Session, names: list[str]) -> int:
    """Print the handle of each pseudonym, and the pseudonym of each handle."""
    results = look_up(names, session.context.settings)
    lines = "\n".join(f"{name}  {result or 'unknown'}" for name, result in results.items())
    session.reporter.print_text(results, lines)
    return 0 if all(results.values()) else EXIT_INCOMPLETE
