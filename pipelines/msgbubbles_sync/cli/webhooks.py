"""Webhooks: events received once, kept whatever happens, and brought into the warehouse.

    python pipelines/webhooks.py serve                            # receives; 2xx once an event is on disk
    python pipelines/webhooks.py register https://example.com/    # tells the API where to send events
    python pipelines/webhooks.py load                             # spool -> msgbubbles.webhook_events; a sync does too

Exit status: 0 done; 3 done, but something needs a look (lines that are no events were kept aside); 1 failed, nothing
is lost; 2 wrong usage or configuration; 75 another job runs on the database; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import commands
from .console import Reporter
from .main import Script, build_app
from .options import Account, AsJson, Database, Destination, Sandbox

SCRIPT = Script(
    "webhooks.py", "stopped at once; what was answered is on disk, and the next load brings it into the warehouse"
)

app = build_app(__doc__)

SecretsFile = Annotated[
    Path | None,
    typer.Option("--secrets-file", help="The file with the signing secrets. [default: dlt_config/secrets.toml]"),
]
Show = Annotated[bool, typer.Option("--show", help="Print the secret, once, and store it nowhere.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: webhooks.host]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [default: webhooks.port]")
    ] = None,
    secrets_file: SecretsFile = None,
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Receive events until SIGTERM or Ctrl-C. Answers 2xx once an event is on disk."""
    SCRIPT.run(
        lambda session: commands.serve.run(session, host=host, port=port, secrets_file=secrets_file),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox, uses_dlt=False,
    )  # fmt: skip


@app.command()
def load(
    database: Database = None,
    account: Account = None,
    destination: Destination = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Bring the events of the spool into the warehouse, and publish it. The marts follow with the next sync."""
    SCRIPT.run(
        lambda session: commands.webhooks.load(session),
        Reporter(as_json=as_json), database, account, destination, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def register(
    url: Annotated[str, typer.Argument(help="Where the API sends events to: your receiver, as seen from outside.")],
    event: Annotated[list[str] | None, typer.Option("--event", help="A kind of event; again for more.")] = None,
    show: Show = False,
    secrets_file: SecretsFile = None,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Tell the API where to send events, and store the signing secret. Without --event: all kinds that are known."""
    SCRIPT.run(
        lambda session: commands.webhooks.register(session, url, event, show=show, secrets_file=secrets_file),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command("list")
def list_(
    database: Database = None, account: Account = None, sandbox: Sandbox = False, as_json: AsJson = False
) -> None:
    """Show the endpoints that the API sends events to."""
    SCRIPT.run(
        lambda session: commands.webhooks.show_endpoints(session),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def rotate(
    webhook_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    show: Show = False,
    secrets_file: SecretsFile = None,
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Get a new signing secret, without losing an event: a new endpoint like this one, then this one is removed."""
    SCRIPT.run(
        lambda session: commands.webhooks.rotate(session, webhook_id, show=show, secrets_file=secrets_file),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip


@app.command()
def remove(
    webhook_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Stop events from being sent to an endpoint. Its secret stays where it is stored."""
    SCRIPT.run(
        lambda session: commands.webhooks.remove(session, webhook_id),
        Reporter(as_json=as_json), database, account, sandbox=sandbox,
    )  # fmt: skip
