"""`webhooks.py serve` and `test`. Imports no dlt, so that a receiver starts quickly."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from msgspec import structs

from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.output import limit_waiting
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.destinations.version import refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.outcome import EXIT_FAILED
from msgbubbles_sync.webhooks.probe import build_local_url, send_test_event
from msgbubbles_sync.webhooks.receiver import build_receiver, build_server, open_listener, write_log
from msgbubbles_sync.webhooks.secrets import SecretStore
from msgbubbles_sync.webhooks.spool import spool_folder


def run(session: Session, *, host: str | None, port: int | None, secrets_file: Path | None) -> int:
    """Receive events until a signal arrives."""
    limit_waiting()  # a delivery waits for each line of the log
    workspace = session.context.workspace
    workspace.make_folders()
    refuse_newer(workspace.version, str(workspace.folder))
    settings = session.context.settings.webhooks
    settings = structs.replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    secrets = _open_secrets(session, secrets_file)
    listener, url = open_listener(settings)
    server = build_server(build_receiver(workspace, settings, secrets, write_log))
    session.reporter.print_text({"url": url}, f"Receiving on {url}")
    sys.stdout.flush()

    class Stop(threading.Event):
        """Stops the server after a signal that came before uvicorn handles signals itself."""

        def set(self) -> None:
            super().set()
            server.should_exit = True

    with stopped_by_signals(Stop()):
        server.run([listener])
    return 0


def send_test(session: Session, url: str | None, *, secrets_file: Path | None) -> int:
    """Send a test event, signed with the newest secret."""
    settings, spool = session.context.settings.webhooks, spool_folder(session.context.workspace)
    secret = _open_secrets(session, secrets_file).secrets[-1]
    result = send_test_event(url or build_local_url(settings), settings, secret, spool)
    session.reporter.print_text(result.as_dict(), str(result))
    return 0 if result.fix is None else EXIT_FAILED


def _open_secrets(session: Session, path: Path | None) -> SecretStore:
    secrets = SecretStore.from_context(session.context, sandbox=session.sandbox, path=path)
    if not secrets.secrets:
        raise UsageError(
            f"{secrets.path} has no signing secret. Run webhooks.py register URL, which stores one, or set "
            'secrets = ["whsec_..."] in its section [webhooks], or WEBHOOKS__SECRETS.'
        )
    return secrets
