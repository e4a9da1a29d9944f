"""`webhooks.py load`, `register`, `list`, `rotate` and `remove`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgbubbles.client import Client
from msgbubbles_sync.cli.connection import connect
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.outcome import EXIT_INCOMPLETE
from msgbubbles_sync.webhooks.endpoints import listed, registered, rotated
from msgbubbles_sync.webhooks.events import KNOWN_TYPES
from msgbubbles_sync.webhooks.load import load_events
from msgbubbles_sync.webhooks.secrets import SecretStore

# For --json, and for people.
Answer = tuple[Any, str]


def load(session: Session) -> int:
    """Load the events of the spool, and publish them."""
    workspace, destination = session.context.workspace, session.context.destination
    check_version(workspace, destination)
    claim(workspace, destination, sandbox=session.sandbox, say=session.reporter.fail)
    with hold_lock(workspace.folder):
        loaded = load_events(workspace)
        if loaded.deliveries:
            destination.publish()
    session.reporter.print_text(loaded.as_dict(), str(loaded))
    return EXIT_INCOMPLETE if loaded.malformed else 0


def register(session: Session, url: str, events: list[str] | None, *, show: bool, secrets_file: Path | None) -> int:
    """Create an endpoint, and store its secret."""

    def answer(client: Client) -> Answer:
        secrets = _secret_store(session, secrets_file, show=show)
        endpoint = registered(client, url, events or list(KNOWN_TYPES), secrets)
        return endpoint.as_dict(), str(endpoint)

    return _ask(session, answer)


def show_endpoints(session: Session) -> int:
    """Print the endpoints."""

    def answer(client: Client) -> Answer:
        endpoints = listed(client)
        lines = "\n".join(map(str, endpoints)) or "No endpoints: webhooks.py register URL makes one."
        return [endpoint.as_dict() for endpoint in endpoints], lines

    return _ask(session, answer)


def rotate(session: Session, webhook_id: str, *, show: bool, secrets_file: Path | None) -> int:
    """Replace an endpoint by one with a new secret."""

    def answer(client: Client) -> Answer:
        endpoint = rotated(client, webhook_id, _secret_store(session, secrets_file, show=show))
        return endpoint.as_dict(), str(endpoint)

    return _ask(session, answer)


def remove(session: Session, webhook_id: str) -> int:
    """Remove an endpoint."""

    def answer(client: Client) -> Answer:
        client.delete_webhook(webhook_id)
        return {"removed": webhook_id}, f"Removed {webhook_id}."

    return _ask(session, answer)


def _ask(session: Session, answer: Callable[[Client], Answer]) -> int:
    with connect(session) as connection, stopped_by_signals(connection.run.stop), connection.client() as client:
        as_dict, text = answer(client)
    session.reporter.print_text(as_dict, text)
    return 0


def _secret_store(session: Session, path: Path | None, *, show: bool) -> SecretStore | None:
    """Return where the secret is stored; null where it is only shown."""
    return None if show else SecretStore.of(session.context.workspace, sandbox=session.sandbox, path=path)
