"""Receive webhook events, store each of them once, and load them into the warehouse.

    python pipelines/webhooks.py serve                            # receive; answers 2xx once an event is on disk
    python pipelines/webhooks.py register https://example.com/    # create an endpoint at the API
    python pipelines/webhooks.py load                             # load stored events; a sync does this, too

Exit status: 0 done; 1 failed, nothing is lost, or a test event was not accepted; 2 wrong usage or configuration;
3 done, but lines that are not events were stored as dead letters, a part of a load failed, or an endpoint could not be
read or removed; 75 another job is active on the database; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from . import commands
from .main import Script, Session, build_app, parse_time

app = build_app(__doc__)
SCRIPT = Script(app, "stopped at once; answered events are on disk, and the next load continues")

SecretsFile = Annotated[
    Path | None,
    typer.Option(
        "--secrets-file", metavar="FILE", help="File of the signing secrets. [default: dlt_config/secrets.toml]"
    ),
]
Show = Annotated[bool, typer.Option("--show", help="Print the secret once instead of storing it.")]
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The id of the endpoint, as list shows it.")]


@SCRIPT.command("as_json", uses_dlt=False)
def serve(
    session: Session,
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Address to listen on. [default: webhooks.host]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 takes a free one. [default: webhooks.port]"),
    ] = None,
    secrets_file: SecretsFile = None,
) -> int:
    """Receive events until SIGTERM or Ctrl-C."""
    return commands.serve.run(session, host=host, port=port, secrets_file=secrets_file)


@SCRIPT.command("as_json", "quiet", needs_version=True)
def load(session: Session) -> int:
    """Load received events into the warehouse and publish it. The next sync updates the marts."""
    return commands.webhooks.load(session)


@SCRIPT.command("as_json", needs_version=True)
def replay(
    session: Session,
    since: Annotated[
        datetime | None,
        typer.Option(
            help="Also load the events again that were received since this time (UTC).",
            metavar="YYYY-MM-DD[THH:MM]",
            parser=lambda text: parse_time(text, "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"),
        ),
    ] = None,
) -> int:
    """Load dead letters again, and events since a time. The next sync updates the marts."""
    return commands.webhooks.replay_events(session, since)


@SCRIPT.command("as_json")
def register(
    session: Session,
    url: Annotated[str, typer.Argument(metavar="URL", help="The public URL of your receiver.")],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="A type of event; repeatable. [default: all known types]"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Accept unknown types of events, and a second endpoint for the URL.")
    ] = False,
    show: Show = False,
    secrets_file: SecretsFile = None,
) -> int:
    """Create an endpoint at the API and store its signing secret."""
    return commands.webhooks.register(session, url, event, ask=not yes, show=show, secrets_file=secrets_file)


@SCRIPT.command("as_json", name="list")
def list_(session: Session) -> int:
    """List the endpoints, and what the receiver got and refused."""
    return commands.webhooks.show_endpoints(session)


@SCRIPT.command("as_json", uses_dlt=False, name="test")
def send_test(
    session: Session,
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="The URL of your receiver. [default: the receiver on this machine]"),
    ] = None,
    secrets_file: SecretsFile = None,
) -> int:
    """Send a signed test event to your own receiver."""
    return commands.serve.send_test(session, url, secrets_file=secrets_file)


@SCRIPT.command("as_json")
def rotate(session: Session, webhook_id: WebhookId, show: Show = False, secrets_file: SecretsFile = None) -> int:
    """Replace the signing secret of an endpoint without losing events."""
    return commands.webhooks.rotate(session, webhook_id, show=show, secrets_file=secrets_file)


@SCRIPT.command("as_json")
def remove(session: Session, webhook_id: WebhookId) -> int:
    """Remove an endpoint. Its stored secret stays."""
    return commands.webhooks.remove(session, webhook_id)
