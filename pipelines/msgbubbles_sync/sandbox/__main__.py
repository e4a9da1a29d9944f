"""`python -m msgbubbles_sync.sandbox`: a MsgBubbles account on this machine, until it is told to stop."""

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
from .server import bound, uvicorn_server
from .webhooks import Deliverer


def main(
    state: Annotated[Path | None, typer.Option(help="Where the account is kept; without it, it is forgotten.")] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    chats: Annotated[int, typer.Option(help="Threads of a new account.")] = 240,
    messages: Annotated[int, typer.Option(help="Messages of a new account.")] = 6000,
    days: Annotated[int, typer.Option(help="Days of history of a new account.")] = 120,
    seed_number: Annotated[int, typer.Option("--seed", help="The same seed tells the same story.")] = 7,
    rate_limit: Annotated[int, typer.Option(help="Requests a minute, as the real API allows; 0: no limit.")] = 120,
    until_stdin_closes: Annotated[bool, typer.Option(help="Stop when standard input ends.")] = False,
) -> None:
    """Serve a made-up MsgBubbles account on this machine. Prints its URL and key as a line of JSON."""
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    try:
        account = Account(state)
        knobs = Knobs(rate_limit_per_minute=rate_limit or None)
        deliverer = Deliverer(account, knobs)
        if account.recall("saved_us") is None:
            seed(account, now=now, chats=chats, messages=messages, days=days, seed=seed_number)
        else:
            advance(account, now)
    except sqlite3.DatabaseError as error:
        sys.stderr.write(f"{state} cannot be used ({error}): remove it, and the database that was filled from it\n")
        raise SystemExit(1) from None
    listener, url = bound(port)
    server = uvicorn_server(Api(account, knobs))
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
    # Every change is committed as it is made; what could not be delivered, the next start goes on with.
    deliverer.drained(timeout_seconds=2)
    os._exit(0)


if __name__ == "__main__":
    typer.run(main)
