"""Connect a command to its account: the configured one, or the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from msgbubbles.client import Client
from msgbubbles.private_client import build_client
from msgbubbles.redact import Redactor
from msgbubbles.source.run import Run
from msgbubbles_sync.context import Context
from msgbubbles_sync.destinations.claims import SANDBOX_FILE
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace

from .main import Session
from .signals import stopped_by_signals

NO_KEY = """No API key. Set api_key in dlt_config/secrets.toml (copy secrets.toml.example), or in the environment:

  export SOURCES__MSGBUBBLES__API_KEY=sk_live_...

To try a simulated account without a key, add --sandbox."""


@dataclass(frozen=True)
class Connection:
    """An account that a command reaches with the settings of `context`. `run` counts the requests, and stops them."""

    context: Context
    run: Run = field(default_factory=Run)

    def client(self, redactor: Redactor | None = None, *, max_attempts: int | None = None) -> Client:
        """Build a client; with a redactor, one that applies the privacy policy. Raises `UsageError` without a key."""
        settings, source = self.context.settings, self.context.settings.source
        check_api_key(settings)
        if max_attempts is not None:
            source = structs.replace(source, max_attempts=max_attempts)
        transport = self.run.build_transport(settings.api_key, source)
        return build_client(transport, redactor or Redactor(), sender_field=source.sender_field)


def check_api_key(settings: Settings) -> None:
    """Raise `UsageError` without an API key, or with the placeholder of an example."""
    if not settings.api_key:
        raise UsageError(NO_KEY)
    if settings.placeholder:
        raise UsageError(settings.placeholder)


@contextmanager
def connect(session: Session, *, serve: bool = True) -> Iterator[Connection]:
    """Connect a command to its account. With `--sandbox`, start the sandbox if it makes requests (`serve`)."""
    context = session.context
    if session.sandbox and serve:
        with _sandbox(context.workspace, context.settings) as served:
            yield Connection(replace(context, settings=served, opened=context.destination))
    else:
        yield Connection(context)


@contextmanager
def connect_until_stopped(session: Session, *, serve: bool = True) -> Iterator[Connection]:
    """Connect as `connect` does. A signal stops the requests, and waits for the API are reported."""
    with connect(session, serve=serve) as connection, stopped_by_signals(connection.run.stop):

        def report(reason: str, seconds: float) -> None:
            if reason == "rate limit":  # reported for every request that waits
                session.reporter.progress("", seconds, reason)
            else:
                session.reporter.say(f"{reason}; next attempt in {max(seconds, 1):.0f} s")

        connection.run.on_wait = report
        yield connection


@contextmanager
def _sandbox(workspace: Workspace, settings: Settings) -> Iterator[Settings]:
    """Serve a simulated account in a child process. Yields the settings that reach it."""
    command = [
        sys.executable,
        "-m",
        "msgbubbles_sync.sandbox",
        "--until-stdin-closes",
        "--state",
        str(workspace.folder / SANDBOX_FILE),
    ]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        start_new_session=True,  # Ctrl-C is for the job
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise UsageError("the sandbox did not start; its error is above")
            account = json.loads(line)
            # The sandbox's rate limit is shared with no other process.
            source = structs.replace(settings.source, base_url=account["url"], budget_dir=str(workspace.folder))
            yield replace(settings, source=source, api_key=account["key"], placeholder=None)
        finally:
            if process.stdin:
                process.stdin.close()
