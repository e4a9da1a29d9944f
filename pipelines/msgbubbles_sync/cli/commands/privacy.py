"""`chats.py erase`, `privacy apply` and `privacy lookup`."""

from __future__ import annotations

from msgbubbles_sync.cli.console import check_terminal, confirm
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.outcome import EXIT_INCOMPLETE, EXIT_STOPPED
from msgbubbles_sync.policy import applied
from msgbubbles_sync.privacy import erase as erasing
from msgbubbles_sync.privacy import reapply
from msgbubbles_sync.privacy.files import purge_files
from msgbubbles_sync.text import format_count


def erase(session: Session, people: list[str], *, ask: bool) -> int:
    context, folder = session.context, session.context.workspace.folder
    if ask:
        check_terminal()
        if not confirm(f"Erase {format_count(len(people), 'person')} for good?"):
            return EXIT_STOPPED
    with hold_lock(folder), hold_lock(folder, "apply"), context.destination.lock():
        certificate = erasing.erase(context, people)
    session.reporter.print_text(certificate.as_dict(), str(certificate))
    return EXIT_INCOMPLETE if context.workspace.is_pending("privacy_files") else 0


def apply_policy(session: Session) -> int:
    context, folder = session.context, session.context.workspace.folder
    with hold_lock(folder), hold_lock(folder, "apply"), context.destination.lock():
        changed = reapply.apply(context)
        if context.workspace.is_pending("erase"):
            context.console.say("finishing an interrupted erasure")
            erasing.purge(context)
        failures = purge_files(context)[1]
    counts = ", ".join(f"{count:,} of {table}" for table, count in sorted(changed.items()))
    session.reporter.print_text({"apply": dict(changed)}, f"Changed values: {counts or 'none'}.")
    for why in failures:
        session.reporter.fail(f"{why}. Every run tries again until it succeeds")
    return EXIT_INCOMPLETE if failures else 0


def look_up(session: Session, names: list[str]) -> int:
    """Print the handle of each pseudonym, and the pseudonym of each handle."""
    results = applied.look_up(names, session.context.settings)
    lines = "\n".join(f"{name}  {result or 'unknown'}" for name, result in results.items())
    session.reporter.print_text(results, lines)
    return 0 if all(results.values()) else EXIT_INCOMPLETE
