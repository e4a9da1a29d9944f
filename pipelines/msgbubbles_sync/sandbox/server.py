"""Serve the sandbox on a port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from .account import Account
from .app import Api, Done, Seen
from .knobs import KEY, Knobs
from .listing import Truth, truth
from .webhooks import Deliverer


class Server:
    """A running sandbox. `url` is the base URL, with `/v1`; `requests` are those since it started."""

    def __init__(self, api: Api, url: str, deliverer: Deliverer) -> None:
        self.deliverer = deliverer
        self.account = api.account
        self.knobs = api.knobs
        self.url = url
        self.key = KEY
        self._api = api

    @property
    def requests(self) -> list[Seen]:
        return self._api.requests

    @property
    def operations(self) -> list[Done]:
        """The operations on groups since it started."""
        return self._api.operations

    def truth(self) -> Truth:
        return truth(self.account, self.knobs)


def bound(port: int = 0) -> tuple[socket.socket, str]:
    """Return a socket on the loopback address, and its base URL."""
    # With an explicit protocol, asyncio sends small answers without waiting 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def uvicorn_server(api: Api) -> uvicorn.Server:
    config = uvicorn.Config(
        api.app(), log_level="critical", log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)


@contextmanager
def serve(account: Account, knobs: Knobs | None = None) -> Iterator[Server]:
    """Serve an account in a thread until the block ends."""
    listener, url = bound()
    api = Api(account, knobs or Knobs())
    server = uvicorn_server(api)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.005)
        with Deliverer(account, api.knobs) as deliverer:
            yield Server(api, url, deliverer)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
