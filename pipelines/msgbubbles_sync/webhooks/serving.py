"""A receiver for a warehouse, and the socket it listens on."""

from __future__ import annotations

import socket
from collections.abc import Callable

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.workspace import Workspace

from .heartbeat import Heartbeat
from .receiver import Receiver
from .redact import CurrentPolicy
from .secrets import SecretStore
from .spool import SpoolWriter, folder_of, spool_of


def receiver_of(
    workspace: Workspace, settings: WebhookSettings, secrets: SecretStore, say: Callable[[str], None]
) -> Receiver:
    folder = folder_of(workspace)
    folder.mkdir(mode=0o700, exist_ok=True)
    left_of = CurrentPolicy(workspace).left_of
    return Receiver(settings, secrets, SpoolWriter(spool_of(workspace)), Heartbeat(folder), say, left_of=left_of)


def listening(settings: WebhookSettings) -> tuple[socket.socket, str]:
    """A socket that takes connections already, and its URL. Raises `UsageError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once instead of waiting 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise UsageError(f"{where} cannot be listened on ({error.strerror}); choose another --port or --host") from None
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    return listener, f"http://{host}:{listener.getsockname()[1]}{settings.path}"
