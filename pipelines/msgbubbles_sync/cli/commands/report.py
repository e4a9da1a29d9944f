"""`chats.py report`: write what happened to an HTML page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.inspect.activity import read_activity, render_activity
from msgbubbles_sync.inspect.local_state import LocalState
from msgbubbles_sync.inspect.status import describe_failed_runs
from msgbubbles_sync.outcome import EXIT_INCOMPLETE


def run(session: Session, *, days: int, number: str | None, out: Path | None) -> int:
    """Write the page of the last days to a file."""
    context = session.context
    path = out or context.workspace.database.with_suffix(".html")
    title = "MsgBubbles" if context.workspace.account is None else f"MsgBubbles {context.workspace.account}"
    with context.destination.open_tables() as connection:
        activity = read_activity(connection, context.settings.transforms.time_zone, days, number)
    failures = describe_failed_runs(LocalState(context).records[-1:])
    page = render_activity(activity, title, datetime.now(UTC), next(iter(failures), None))
    try:
        write_privately(path, page)
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}. Choose a file in a folder that you may write to.") from None
    as_dict = {"file": str(path), "first": str(activity.first), "last": str(activity.last), "missing": activity.missing}
    session.reporter.print_text(as_dict, f"Wrote {path}. It contains your data, and only you can read it.")
    if activity.missing:
        lacks = ", ".join(sorted({*activity.missing.values()}))
        what = ", ".join(activity.missing)
        session.reporter.say(f"not available: {what}. The warehouse lacks {lacks}. Run chats.py to build it.")
        return EXIT_INCOMPLETE
    return 0
