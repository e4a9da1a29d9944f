"""Serve a simulated MsgBubbles account: `python -m msgbubbles_sync.sandbox`."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from .account import Account
from .app import Api
from .knobs import KEY, Knobs
from .seed import advance, seed
from .server import bind, build_server
from .webhooks import Deliverer


def main(
    state: Annotated[
        Path | None, typer.Option(help="The file of the account. Without it, the account is in memory only.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 0,
    chats: Annotated[int, typer.Option(help="Chats of a new account.")] = 240,
    messages: Annotated[int, typer.Option(help="Messages of a new account.")] = 6000,
    rate_limit: Annotated[int, typer.Option(help="Requests per minute; 0 for no limit.")] = 120,
    until_stdin_closes: Annotated[bool, typer.Option(help="Stop when stdin is closed.")] = False,
) -> None:
    """Serve a simulated MsgBubbles account on this machine, and print its URL and key as a line of JSON."""
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    try:
        account = Account(state)
        knobs = Knobs(rate_limit_per_minute=rate_limit or None)
        deliverer = Deliverer(account, knobs)
        if account.recall("saved_us") is None:
            seed(account, now=now, chats=chats, messages=messages)
        else:
            advance(account, now)
    except sqlite3.DatabaseError as error:
        sys.stderr.write(f"{state} cannot be read ({error}). Remove it, and the database that was synced from it.\n")
        raise SystemExit(1) from None
    listener, url = bind(port)
    server = build_server(Api(account, knobs))
    if until_stdin_closes:
        threading.Thread(target=_exit_with_stdin, args=(deliverer,), daemon=True).start()
    sys.stdout.write(json.dumps({"url": url, "key": KEY}) + "\n")
    sys.stdout.flush()
    listener.listen()
    with deliverer:
        server.run([listener])
    account.close()


def _exit_with_stdin(deliverer: Deliverer) -> None:
    sys.stdin.buffer.read()
    # Every change is committed immediately; the next start continues the deliveries.
    deliverer.wait_until_delivered(timeout_seconds=2)
    os._exit(0)


if __name__ == "__main__":
    typer.run(main)
