"""Webhooks: events received once, kept whatever happens, and brought into the warehouse.

    python pipelines/webhooks.py serve                            # receives; 2xx once an event is on disk
    python pipelines/webhooks.py register https://example.com/    # tells the API where to send events
    python pipelines/webhooks.py load                             # spool -> msgbubbles.webhook_events; a sync does too

Exit status: 0 done; 3 done, but something needs a look (lines that are no events were kept aside); 1 failed, nothing
is lost; 2 wrong usage or configuration; 75 another job runs on the database; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.destinations.version import check_version, refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

from .console import Reporter
from .options import (
    EXIT_INCOMPLETE,
    Account,
    Database,
    Into,
    Sandbox,
    app_of,
    begun,
    ended,
    readable_configuration,
    stopped_by_signals,
    workspace_of,
)

if TYPE_CHECKING:
    from msgbubbles.client import Client
    from msgbubbles_sync.webhooks.secrets import SecretStore

SCRIPT = "webhooks.py"
STOPPED = "stopped at once; what was answered is on disk, and the next load brings it into the warehouse"

app = app_of(__doc__)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
SecretsFile = Annotated[
    Path | None,
    typer.Option("--secrets-file", help="The file with the signing secrets. [default: dlt_config/secrets.toml]"),
]
# For --json, and for people.
Answer = tuple[Any, str]
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
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Receive events until SIGTERM or Ctrl-C. Answers 2xx once an event is on disk."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        # Not dlt: a receiver that was killed should be back at once.
        from msgbubbles_sync.webhooks.receiver import build_receiver, open_listener, server_of, to_log
        from msgbubbles_sync.webhooks.secrets import SecretStore

        workspace.make_folders()
        refuse_newer(workspace.version, str(workspace.folder))
        settings = load_settings(workspace.account).webhooks
        settings = structs.replace(settings, host=host or settings.host, port=settings.port if port is None else port)
        secrets = SecretStore.of(workspace, sandbox=sandbox, path=secrets_file)
        if not secrets.secrets:
            raise UsageError(
                f"no signing secret in {secrets.path}: webhooks.py register gets one and puts it there, or set "
                'secrets = ["whsec_..."] in its section [webhooks], or WEBHOOKS__SECRETS'
            )
        listener, url = open_listener(settings)
        server = server_of(build_receiver(workspace, settings, secrets, to_log))
        reporter.print({"url": url}, lambda console: console.print(f"Receiving on {url}", soft_wrap=True))
        sys.stdout.flush()

        class Stop(threading.Event):
            """A signal from before uvicorn minds them itself; it raises each once more when it is done."""

            def set(self) -> None:
                super().set()
                server.should_exit = True

        with stopped_by_signals(Stop()):
            server.run([listener])
        return 0

    ended(body, lambda: workspace_of(database, account, destination, sandbox=sandbox), reporter, STOPPED)


@app.command()
def load(
    database: Database = None,
    account: Account = None,
    destination: Into = "duckdb",
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Bring the events of the spool into the warehouse, and publish it. The marts follow with the next sync."""
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        workspace.make_folders()
        workspace.configure_dlt()
        with readable_configuration():
            import dlt  # noqa: F401

            from msgbubbles_sync.webhooks.load import load_events
        destination = build_destination(workspace)
        check_version(workspace, destination)
        claim(workspace, destination, sandbox=sandbox, say=reporter.fail)
        with hold_lock(workspace.folder):
            landed = load_events(workspace)
            if landed.deliveries:
                destination.publish()
        reporter.print(landed.as_dict(), lambda console: console.print(str(landed), soft_wrap=True))
        return EXIT_INCOMPLETE if landed.malformed else 0

    ended(body, lambda: workspace_of(database, account, destination, sandbox=sandbox), reporter, STOPPED)


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

    def answer(workspace: Workspace, client: Client) -> Answer:
        from msgbubbles_sync.webhooks.endpoints import registered
        from msgbubbles_sync.webhooks.events import KNOWN_TYPES

        store = _store(workspace, secrets_file, sandbox=sandbox, show=show)
        made = registered(client, url, event or list(KNOWN_TYPES), store)
        return made.as_dict(), str(made)

    _ask(answer, database, account, sandbox=sandbox, as_json=as_json)


@app.command("list")
def list_(
    database: Database = None, account: Account = None, sandbox: Sandbox = False, as_json: AsJson = False
) -> None:
    """Show the endpoints that the API sends events to."""

    def answer(_workspace: Workspace, client: Client) -> Answer:
        from msgbubbles_sync.webhooks.endpoints import listed

        found = listed(client)
        lines = "\n".join(map(str, found)) or "No endpoints: webhooks.py register URL makes one."
        return [one.as_dict() for one in found], lines

    _ask(answer, database, account, sandbox=sandbox, as_json=as_json)


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

    def answer(workspace: Workspace, client: Client) -> Answer:
        from msgbubbles_sync.webhooks.endpoints import rotated

        made = rotated(client, webhook_id, _store(workspace, secrets_file, sandbox=sandbox, show=show))
        return made.as_dict(), str(made)

    _ask(answer, database, account, sandbox=sandbox, as_json=as_json)


@app.command()
def remove(
    webhook_id: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    database: Database = None,
    account: Account = None,
    sandbox: Sandbox = False,
    as_json: AsJson = False,
) -> None:
    """Stop events from being sent to an endpoint. Its secret stays where it is stored."""

    def answer(_workspace: Workspace, client: Client) -> Answer:
        client.delete_webhook(webhook_id)
        return {"removed": webhook_id}, f"Removed {webhook_id}."

    _ask(answer, database, account, sandbox=sandbox, as_json=as_json)


def _ask(
    answer: Callable[[Workspace, Client], Answer],
    database: Path | None,
    account: str | None,
    *,
    sandbox: bool,
    as_json: bool,
) -> None:
    reporter = Reporter(quiet=False, as_json=as_json)

    def body(workspace: Workspace) -> int:
        with begun(workspace, SCRIPT, sandbox=sandbox) as command, command.client() as client:
            as_data, as_text = answer(workspace, client)
        reporter.print(as_data, lambda console: console.print(as_text, markup=False, soft_wrap=True))
        return 0

    ended(body, lambda: workspace_of(database, account, sandbox=sandbox), reporter, STOPPED)


def _store(workspace: Workspace, path: Path | None, *, sandbox: bool, show: bool) -> SecretStore | None:
    from msgbubbles_sync.webhooks.secrets import SecretStore

    return None if show else SecretStore.of(workspace, sandbox=sandbox, path=path)
