"""Serve the sandbox on a port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from .account import Account
from .app import Api
from .knobs import KEY, Knobs
from .listing import Truth, truth
from .webhooks import Deliverer


@dataclass(kw_only=True)
class Server(Api):
    """A running sandbox. `url` is the base URL, with `/v1`."""

    url: str
    deliverer: Deliverer
    key: str = KEY

    def truth(self) -> Truth:
        return truth(self.account, self.knobs)


def bind(port: int = 0) -> tuple[socket.socket, str]:
    """Return a socket on the loopback address, and its base URL."""
    # With an explicit protocol, asyncio sends small answers without waiting 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def build_server(api: Api) -> uvicorn.Server:
    config = uvicorn.Config(
        api.app(), log_level="critical", log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


@contextmanager
def serve(account: Account, knobs: Knobs | None = None) -> Iterator[Server]:
    """Serve an account in a thread until the block ends."""
    listener, url = bind()
    knobs = knobs or Knobs()
    server = Server(account, knobs, url=url, deliverer=Deliverer(account, knobs))
    http = build_server(server)
    thread = threading.Thread(target=http.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not http.started:
            if not thread.is_alive():
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.005)
        with server.deliverer:
            yield server
    finally:
        http.should_exit = True
        thread.join(10)
        listener.close()
