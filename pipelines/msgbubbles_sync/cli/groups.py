"""Groups declared in a table, brought about through the API: look at the plan, then apply it.

    python pipelines/groups.py plan groups.csv      # what would be created, renamed, added, removed; sends nothing
    python pipelines/groups.py apply groups.csv     # does it, once you have said yes

Exit status: 0 done; 3 done, but something needs a look (a group failed, or operations were left); 1 failed, the next
apply goes on; 2 wrong usage, configuration or table, nothing was changed; 75 another apply runs on the database; 130
stopped by Ctrl-C or SIGTERM, nothing is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msgbubbles_sync.groups.plan import MAX_CREATES, MAX_REMOVALS

from . import commands
from .console import Reporter
from .main import Script, build_app
from .options import Account, AsJson, Database, Quiet, Sandbox

if TYPE_CHECKING:
    pass

SCRIPT = Script(
    "groups.py", "stopped at once; what was asked is on record, and the next apply finds out what came of it"
)

app = build_app(__doc__)

Table = Annotated[
    str | None,
    typer.Argument(
        help="A .csv, .yml or .sql file, a dbt model, or a query. [default: groups.table of dlt_config/config.toml]"
    ),
]
MaxCreates = Annotated[int, typer.Option("--max-creates", min=0, help="Refuse to create more groups than this.")]
MaxRemovals = Annotated[int, typer.Option("--max-removals", min=0, help="Refuse to remove more people than this.")]


@app.command()
def plan(
    table: Table = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the plan, to be applied as it is.")] = None,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Say what has to be done so that the groups are as the table says. Makes no request."""
    SCRIPT.run(
        lambda session: commands.groups.plan(session, table, out=out),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def apply(
    table: Annotated[
        str | None, typer.Argument(help="As for plan; or a plan.json that was saved, to be applied as it is.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for schedules.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and send nothing.")] = False,
    max_creates: MaxCreates = MAX_CREATES,
    max_removals: MaxRemovals = MAX_REMOVALS,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the groups what the table says. Asks before it changes anything."""
    SCRIPT.run(
        lambda session: commands.groups.apply(
            session, table, ask=not yes, dry_run=dry_run, max_creates=max_creates, max_removals=max_removals
        ),
        Reporter(quiet=quiet, as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command("import")
def import_(
    key: Annotated[str, typer.Argument(help="What the group is called in your table.")],
    chat_id: Annotated[str, typer.Argument(help="The group's id.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Adopt a group that exists already: from now on it is the one with this key. Changes nothing in the group."""
    SCRIPT.run(
        lambda session: commands.groups.adopt(session, key, chat_id),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def read(
    chats: Annotated[list[str], typer.Argument(metavar="CHAT...", help="Ids of chats, or keys of groups.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
) -> None:
    """Mark threads as read on our side; the other people see the receipt (iMessage, WhatsApp). A request each."""
    SCRIPT.run(
        lambda session: commands.groups.send_each(session, chats, lambda client, chat_id: client.mark_read(chat_id)),
        Reporter(), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def typing(
    chat: Annotated[str, typer.Argument(metavar="CHAT", help="Id of a chat, or key of a group.")],
    on: Annotated[bool, typer.Option("--on/--off", help="Show the typing sign, or hide it.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
) -> None:
    """Show the typing sign in a thread, or hide it; it expires by itself. One request."""
    SCRIPT.run(
        lambda session: commands.groups.send_each(
            session, [chat], lambda client, chat_id: client.set_typing(chat_id, on)
        ),
        Reporter(), database, account, sandbox=sandbox,
    )  # fmt: skip
