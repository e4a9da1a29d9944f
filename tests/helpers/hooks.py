"""Deliveries as the API would send them, and the receiver in a thread or in a process that can be killed."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from msgspec import structs

from helpers import process
from helpers.context import build_context
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.webhooks.load import LoadResult, load_events
from msgbubbles_sync.webhooks.receiver import Receiver, build_receiver, build_server, open_listener
from msgbubbles_sync.webhooks.secrets import SecretStore
from msgbubbles_sync.webhooks.spool import Delivery, SpoolWriter, spool_folder
from msgbubbles_sync.workspace import Workspace

WEBHOOKS = Path(__file__).parents[2] / "pipelines" / "webhooks.py"
KEY = b"a key that nobody else has"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
SETTINGS = WebhookSettings(port=0)


def signed(body: bytes, delivery_id: str = "msg_1", *, key: bytes = KEY, at: float | None = None) -> dict[str, str]:
    """Sign a delivery by the Standard Webhooks specification. Returns its headers."""
    timestamp = str(int(time.time() if at is None else at))
    content = f"{delivery_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    return {"webhook-id": delivery_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"}


def typing(number: int, **more: Any) -> bytes:
    event = {"id": f"evt_{number}", "type": "conversation.typing", "conversation_id": "c1", "handle": "+14155550123"}
    return json.dumps(event | {"typing": True, "created_at": "2026-11-23T10:00:00.000Z"} | more).encode()


def spool(workspace: Workspace, bodies: list[bytes]) -> None:
    """Write deliveries to the spool, as a receiver that has ended."""
    writer = SpoolWriter(spool_folder(workspace))
    for body in bodies:
        event = json.loads(body)
        writer.put(Delivery(event["id"], datetime.now(UTC), body.decode())).result()
    writer.close()


def load_all(workspace: Workspace) -> LoadResult:
    """Load the spool, as a sync does."""
    context = build_context(workspace)
    context.destination.prepare()
    return load_events(context)


def workspace_in(folder: Path) -> Workspace:
    workspace = Workspace.from_path(folder / "company.duckdb")
    workspace.make_folders()
    return workspace


@dataclass
class Served:
    """A receiver in a thread."""

    url: str
    receiver: Receiver
    log: list[str]
    http: httpx.Client

    def post(self, body: bytes, **options: Any) -> httpx.Response:
        return self.http.post(self.url, content=body, headers=signed(body, **options))

    def count(self, outcome: str) -> float:
        """Return the number of deliveries with this outcome by `/metrics`."""
        wanted = f'msgbubbles_webhook_deliveries_total{{outcome="{outcome}"}} '
        lines = self.http.get(self.url + "metrics").text.splitlines()
        return next((float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted)), 0.0)


@contextmanager
def receiving(
    workspace: Workspace, settings: WebhookSettings = SETTINGS, secrets_file: Path | None = None, *, port: int = 0
) -> Iterator[Served]:
    """Run a receiver, with the heartbeat of one on this port; it listens where `settings` say."""
    path = secrets_file or workspace.folder / "secrets.toml"
    if not path.exists():
        path.write_text(f'[webhooks]\nsecrets = ["{SECRET}"]\n')
    log: list[str] = []
    receiver = build_receiver(workspace, structs.replace(settings, port=port), SecretStore(path), log.append)
    listener, url = open_listener(settings)
    server = build_server(receiver)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        with httpx.Client(trust_env=False, timeout=30) as http:
            yield Served(url, receiver, log, http)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


class Process:
    """A process of `webhooks.py serve` that can be killed and started again on the same port."""

    def __init__(self, folder: Path, environment: dict[str, str], *options: str) -> None:
        self._folder = folder
        self._environment = {**process.inherited_environment(), **environment}
        self._options = options
        self._port = 0
        self.url = ""
        self.start()

    def start(self) -> None:
        self._process = process.Process(
            [sys.executable, str(WEBHOOKS), "serve", "--json", "--port", str(self._port), *self._options],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        assert line, "the receiver did not start"
        self.url = json.loads(line)["url"]
        self._port = httpx.URL(self.url).port or 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> int:
        """Terminate the process and return its exit status."""
        self._process.terminate()
        self._process.communicate(timeout=60)
        return self._process.returncode

    @property
    def pid(self) -> int:
        return self._process.pid
