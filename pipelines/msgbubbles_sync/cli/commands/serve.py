"""`webhooks.py serve`. Imports no dlt, so that a receiver starts quickly."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from msgspec import structs

from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.destinations.version import refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.webhooks.receiver import build_receiver, build_server, open_listener, write_log
from msgbubbles_sync.webhooks.secrets import SecretStore


def run(session: Session, *, host: str | None, port: int | None, secrets_file: Path | None) -> int:
    """Receive events until a signal arrives."""
    workspace = session.context.workspace
    workspace.make_folders()
    refuse_newer(workspace.version, str(workspace.folder))
    settings = session.context.settings.webhooks
    settings = structs.replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    secrets = SecretStore.from_context(session.context, sandbox=session.sandbox, path=secrets_file)
    if not secrets.secrets:
        raise UsageError(
            f"{secrets.path} has no signing secret. Run webhooks.py register URL, which stores one, or set "
            'secrets = ["whsec_..."] in its section [webhooks], or WEBHOOKS__SECRETS.'
        )
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
