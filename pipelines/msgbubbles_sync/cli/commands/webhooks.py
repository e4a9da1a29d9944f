"""`webhooks.py load`, `replay`, `register`, `list`, `rotate` and `remove`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from msgbubbles.client import Client
from msgbubbles.errors import ApiError, NotFoundError
from msgbubbles_sync import job
from msgbubbles_sync.cli.connection import connect_until_stopped
from msgbubbles_sync.cli.console import confirm
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.sync_report import print_incomplete
from msgbubbles_sync.context import Context, Limits
from msgbubbles_sync.destinations.claims import claim
from msgbubbles_sync.destinations.version import refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.outcome import EXIT_INCOMPLETE, EXIT_STOPPED
from msgbubbles_sync.webhooks.endpoints import (
    endpoint_dict,
    read_delivery_fields,
    refuse_second_endpoint,
    register_endpoint,
    rotate_secret,
)
from msgbubbles_sync.webhooks.events import KNOWN_TYPES
from msgbubbles_sync.webhooks.health import ReceiverState
from msgbubbles_sync.webhooks.load import LoadResult, load_events
from msgbubbles_sync.webhooks.replay import replay
from msgbubbles_sync.webhooks.secrets import SecretStore


def load(session: Session) -> int:
    return _load(session, load_events)


def replay_events(session: Session, since: datetime | None) -> int:
    return _load(session, partial(replay, since=since and since.replace(tzinfo=UTC)))


def _load(session: Session, load: Callable[[Context], LoadResult]) -> int:
    """Load events, publish as a sync does, and print what was loaded."""
    context, reporter = session.context, session.reporter
    claim(context.destination, sandbox=session.sandbox, say=reporter.fail)
    with hold_lock(context.workspace.folder), context.destination.stay_open():
        context.check_policy()
        report = job.load_webhooks(context, Limits(with_transform=False), load)
    if report.failure is not None:
        raise report.failure
    reporter.print_text(report.events.as_dict(), str(report.events))
    print_incomplete(reporter, report)
    return EXIT_INCOMPLETE if report.events.is_incomplete else report.outcome.exit_status


def register(
    session: Session, url: str, events: list[str] | None, *, ask: bool, show: bool, secrets_file: Path | None
) -> int:
    if not re.match(r"https://[^/]|http://(127\.0\.0\.1|localhost)[:/]", url):
        raise UsageError(f"the URL must begin with https://, as in https://hooks.example.com/, not {url!r}.")
    events = events or list(KNOWN_TYPES)
    if ask and not _confirm_types(events):
        return EXIT_STOPPED
    with _connect(session) as client:
        if ask:
            refuse_second_endpoint(client, url)
        endpoint = register_endpoint(client, url, events, _open_store(session, secrets_file, show=show))
    session.reporter.print_text(endpoint.as_dict(), str(endpoint))
    return 0


def _confirm_types(types: list[str]) -> bool:
    """Ask about types of events that are not documented. Raises `UsageError` if nobody can answer."""
    for name in types:
        if name not in KNOWN_TYPES:
            close = get_close_matches(name, KNOWN_TYPES, 1)
            hint = f"Did you mean {close[0]}?" if close else f"Known types: {', '.join(KNOWN_TYPES)}."
            if not sys.stdin.isatty():
                raise UsageError(f'unknown event type "{name}". {hint} Pass --yes to register it anyway.')
            if not confirm(f'Unknown event type "{name}". {hint} Register it anyway?'):
                return False
    return True


def show_endpoints(session: Session) -> int:
    receiver = ReceiverState.read(session.context.workspace)
    try:
        with _connect(session) as client:
            page = client.list_webhooks()
    except ApiError:
        session.reporter.print_text([{"receiver": receiver.as_dict()}], str(receiver))
        raise
    lines = []
    for webhook in page.rows:
        fields = "".join(f"  {name}: {value}" for name, value in read_delivery_fields(webhook).items())
        lines.append(f"{webhook.id}  {webhook.url}  {', '.join(webhook.events or ())}{fields}")
    lines = lines or ["No endpoints. Create one with: webhooks.py register URL"]
    rows = [endpoint_dict(webhook) | {"receiver": receiver.as_dict()} for webhook in page.rows]
    session.reporter.print_text(rows, "\n".join([*lines, str(receiver)]))
    for rejected in page.rejected:
        session.reporter.fail(f"an endpoint in the API's answer cannot be read: {rejected.reason}")
    return EXIT_INCOMPLETE if page.rejected else 0


def rotate(session: Session, webhook_id: str, *, show: bool, secrets_file: Path | None) -> int:
    with _connect(session) as client:
        endpoint = rotate_secret(client, webhook_id, _open_store(session, secrets_file, show=show))
    session.reporter.print_text(endpoint.as_dict(), str(endpoint))
    if endpoint.failure:
        session.reporter.fail(endpoint.failure)
    return EXIT_INCOMPLETE if endpoint.failure else 0


def remove(session: Session, webhook_id: str) -> int:
    with _connect(session) as client:
        try:
            client.delete_webhook(webhook_id)
        except NotFoundError:
            raise UsageError(f"the API has no endpoint {webhook_id}. Check webhooks.py list.") from None
    session.reporter.print_text({"removed": webhook_id}, f"Removed {webhook_id}.")
    return 0


@contextmanager
def _connect(session: Session) -> Iterator[Client]:
    """Connect to the API. The warehouse is not needed: its server may be down."""
    refuse_newer(session.context.workspace.version, str(session.context.workspace.folder))
    with connect_until_stopped(session) as connection, connection.client() as client:
        yield client


def _open_store(session: Session, path: Path | None, *, show: bool) -> SecretStore | None:
    """Return the store of the secret; null if the secret is only shown."""
    return None if show else SecretStore.from_context(session.context, sandbox=session.sandbox, path=path)
