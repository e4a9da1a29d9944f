"""Real S3 endpoints on loopback, and a proxy that breaks them."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

KEY, SECRET = "canary-of-the-access-key", "canary-of-the-secret-key"
# What becomes of a request: the answer 503; that the key has expired, to it and all that follow; its body cut in the
# middle; or no answer to it and all that follow.
Fault = Literal["slow down", "expire", "cut", "die"]
ERRORS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "expire": (400, "ExpiredToken", "The provided token has expired."),
}


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens on a port."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("the endpoint did not start")


@contextmanager
def serving(command: list[str], port: int) -> Iterator[int]:
    """Run an endpoint that listens on a port, and yield the port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running(folder: Path | None = None) -> Iterator[int]:
    """Yield the port of an endpoint: one in memory, or one with the buckets in a folder, which checks keys."""
    port, rclone = find_free_port(), Path(sys.executable).with_name("rclone")
    in_memory = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    address = f"127.0.0.1:{port}"
    with_keys = [str(rclone), "serve", "s3", "--addr", address, "--auth-key", f"{KEY},{SECRET}", str(folder)]
    with serving(with_keys if folder else in_memory, port):
        yield port


def create_bucket(port: int, name: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(
        "PUT", f"/{name}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3"}
    )
    assert connection.getresponse().status == 200
    connection.close()


def _choose_none(_method: str, _path: str) -> None:
    return None


@dataclass
class Proxy:
    """Passes requests on to an endpoint, except for those that `choose` breaks, given the method and the path."""

    port: int
    choose: Callable[[str, str], Fault | None] = _choose_none
    requests: list[tuple[str, str]] = field(default_factory=list)
    lasting: Fault | None = None

    def revive(self) -> None:
        """Pass all requests on again."""
        self.choose, self.lasting = _choose_none, None


@contextmanager
def proxy_before(upstream: int) -> Iterator[Proxy]:
    """Yield a proxy before the endpoint on this port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            proxy.requests.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.lasting or proxy.choose(self.command, self.path)
            if fault in ("die", "expire"):
                proxy.lasting = fault
            if fault == "die":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault in ERRORS:
                status, code, message = ERRORS[fault]
                error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
                self._send(status, {"Content-Type": "application/xml"}, error.encode())
                return
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            if fault == "cut":
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body[: len(body) // 2])
                connection.close()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            self._send(answer.status, dict(answer.getheaders()), answer.read())
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: object) -> None:
            """Print nothing: clients and faults close connections."""

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = Proxy(server.server_port)
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
