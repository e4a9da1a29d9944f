"""Declare groups in a table: review the plan, then apply it.

    python pipelines/groups.py plan groups.csv      # show what would be created, renamed, added and removed
    python pipelines/groups.py apply groups.csv     # do it, after a confirmation

Exit status: 0 done; 1 failed, the next apply continues; 2 wrong usage, configuration or table, nothing was changed;
3 done, but a group failed or operations were not sent; 4 the plan has changes (plan --detailed-exitcode); 75 another
apply is active on the database; 130 stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.plan import ALWAYS_ALLOWED, LIMITS, ChangeLimits

from . import commands
from .main import Script, Session, build_app

PERCENT_HELP = f"Refuse to rename, add or remove more than {ALWAYS_ALLOWED} if that is over N percent of the table."
_limit = partial(typer.Option, min=0, metavar="N")

app = build_app(__doc__)
SCRIPT = Script(app, "stopped at once; every request is recorded, and the next apply finds out the unknown outcomes")


@SCRIPT.command("as_json", needs_version=True)
def plan(
    session: Session,
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE",
            help="A .csv, .yml or .sql file, a dbt model, or a query. [default: groups.table of config.toml]",
        ),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Read the groups from the API first. One request each.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Save the plan to a file.")] = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 4 if the plan has changes.")
    ] = False,
) -> int:
    """Show what apply would change. Makes no request without --refresh."""
    return commands.groups.plan(session, table, refresh=refresh, out=out, detailed_exitcode=detailed_exitcode)


@SCRIPT.command("as_json", "quiet", needs_version=True)
def apply(
    session: Session,
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="As for plan, or a plan.json saved by plan --out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and send nothing.")] = False,
    max_creates: Annotated[int, _limit(help="Refuse to create more groups than this.")] = LIMITS.creates,
    max_renames: Annotated[int, _limit(help="Refuse to rename more groups than this.")] = LIMITS.renames,
    max_adds: Annotated[int, _limit(help="Refuse to add more people than this.")] = LIMITS.adds,
    max_removals: Annotated[int, _limit(help="Refuse to remove more people than this.")] = LIMITS.removals,
    max_percent: Annotated[int, _limit(help=PERCENT_HELP)] = LIMITS.percent,
) -> int:
    """Change the groups to match the table, after a confirmation."""
    limits = ChangeLimits(max_creates, max_renames, max_adds, max_removals, max_percent)
    return commands.groups.apply(session, table, ask=not yes, dry_run=dry_run, limits=limits)


@SCRIPT.command("as_json", needs_version=True, name="import")
def import_(
    session: Session,
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="The key of the group in your table.")] = None,
    chat_id: Annotated[str | None, typer.Argument(metavar="CHAT_ID", help="The id of the group.")] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="The title of the group, in place of its id.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table", metavar="TABLE", help="Import the groups of a table with key and either chat_id or title."
        ),
    ] = None,
) -> int:
    """Assign keys to existing groups. Does not change the groups. One request each."""
    if table is not None and key is None and title is None:
        return commands.groups.import_table(session, table)
    if table is not None or key is None or (chat_id is None) == (title is None):
        raise UsageError("import needs KEY CHAT_ID, or KEY --title TEXT, or --table TABLE")
    return commands.groups.import_group(session, key.strip(), chat_id, title)


@SCRIPT.command("as_json", needs_version=True)
def forget(session: Session, key: Annotated[str, typer.Argument(metavar="KEY", help="The key of the group.")]) -> int:
    """Detach a key from its group. Does not change the group. Makes no request."""
    return commands.groups.forget(session, key)


@SCRIPT.command(needs_version=True)
def read(
    session: Session,
    chats: Annotated[list[str], typer.Argument(metavar="CHAT", help="Ids of chats, or keys of groups.")],
) -> int:
    """Mark chats as read, which sends read receipts. One request each."""
    return commands.groups.send_each(
        session, chats, lambda client, chat_id: client.mark_read(chat_id), "Marked as read"
    )


@SCRIPT.command(needs_version=True)
def typing(
    session: Session,
    chat: Annotated[str, typer.Argument(metavar="CHAT", help="Id of a chat, or key of a group.")],
    on: Annotated[bool | None, typer.Option("--on/--off", help="Show or hide the indicator.")] = None,
) -> int:
    """Show or hide the typing indicator in a chat. It expires by itself. One request."""
    if on is None:
        raise UsageError("typing needs --on or --off: pass --on to show the indicator, or --off to hide it")
    effect = f"Typing indicator {'on' if on else 'off'}"
    return commands.groups.send_each(session, [chat], lambda client, chat_id: client.set_typing(chat_id, on), effect)
