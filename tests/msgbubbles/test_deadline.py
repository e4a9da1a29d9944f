"""Answers that never end: every exchange ends in time, whichever part of it is slow."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from msgbubbles.client import Client
from msgbubbles.errors import ConfigurationError, Interrupted, MsgBubblesError, RetryableError, UnreachableError
from msgbubbles.responses import describe_connection_error
from msgbubbles.transport import Transport

TIMEOUT_SECONDS = 0.3
# An answer takes half a minute; half of that is enough for a busy machine.
DRIPS = 600
LATEST_SECONDS = 15
GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"data": []}'

Handler = Callable[[socket.socket], None]


@contextmanager
def handling(handler: Handler) -> Iterator[int]:
    """Run a handler in a new thread for each connection. Yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handler(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def transport_to(port: int, scheme: str = "http") -> Transport:
    return Transport(f"{scheme}://127.0.0.1:{port}/v1", "sk_1", None, timeout_seconds=TIMEOUT_SECONDS, max_attempts=1)


def drip(begin: bytes, piece: bytes = b" ") -> Handler:
    """Answer with `begin` and then a chunk every 50 ms, for far longer than the deadline."""

    def handler(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(begin)
        for _ in range(DRIPS):
            time.sleep(0.05)
            connection.sendall(piece)

    return handler


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def good_once(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(GOOD)
    drip(GOOD[:-1])(connection)


OK = b"HTTP/1.1 200 OK\r\n"
SLOW = {
    "body": drip(OK + b"Content-Length: 9999\r\n\r\n"),
    "body of an error": drip(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9999\r\n\r\n"),
    "body until the end of the connection": drip(OK + b"\r\n"),
    "chunks": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "compressed": drip(
        OK + b"Content-Encoding: gzip\r\nContent-Length: 9999\r\n\r\n" + gzip.compress(b"", mtime=0)[:10],
        b"\0\0\0\xff\xff",
    ),
    "headers": drip(OK, b"X-A: 1\r\n"),
    "one header": drip(OK + b"X-A: ", b"1"),
    "other answers before": drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "no answer": silent,
}


@pytest.mark.parametrize("part", SLOW)
def test_slow_answer_ends_at_the_deadline(part: str) -> None:
    with handling(SLOW[part]) as port, Client(transport_to(port)) as client:
        began = time.monotonic()
        with pytest.raises(RetryableError, match=r"within 0.3 s \(timeout_seconds\)") as raised:
            client.list_numbers()
        assert time.monotonic() - began < LATEST_SECONDS
        assert not isinstance(raised.value, UnreachableError), "the API is there"


def test_slow_answer_on_a_reused_connection_ends_at_the_deadline() -> None:
    with handling(good_once) as port, Client(transport_to(port)) as client:
        client.list_numbers()
        time.sleep(TIMEOUT_SECONDS + 0.1)  # the previous exchange has timed out
        began = time.monotonic()
        with pytest.raises(RetryableError):
            client.list_numbers()
        assert time.monotonic() - began < LATEST_SECONDS


@pytest.mark.parametrize("handler", [silent, drip(b"\x16\x03\x03\x40\x00", b"\0")])
def test_hanging_handshake_is_a_connection_error(handler: Handler) -> None:
    with handling(handler) as port, Client(transport_to(port, "https")) as client:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1 does not answer; check base_url"):
            client.list_numbers()
        assert time.monotonic() - began < LATEST_SECONDS


def answer_without_tls(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_server_that_cannot_be_trusted_or_speaks_no_tls_is_explained() -> None:
    with (
        handling(answer_without_tls) as port,
        Client(transport_to(port, "https")) as client,
        pytest.raises(UnreachableError, match=r"127.0.0.1 does not speak TLS there .*; check the port in base_url"),
    ):
        client.list_numbers()
    error = ssl.SSLCertVerificationError()
    error.verify_message = "certificate has expired"
    wrapped = httpx.ConnectError("")
    wrapped.__cause__ = error
    described = describe_connection_error(wrapped, "api.example")
    assert described.startswith("the certificate of api.example is not trusted (certificate has expired); check")


def test_stop_ends_the_run_after_a_slow_answer() -> None:
    with handling(SLOW["body"]) as port:
        stop = threading.Event()
        transport = Transport(f"http://127.0.0.1:{port}/v1", "sk_1", None, timeout_seconds=TIMEOUT_SECONDS, stop=stop)
        with Client(transport) as client:
            threading.Timer(0.1, stop.set).start()
            with pytest.raises(Interrupted):
                client.list_numbers()
            assert transport.traffic.total == 1


def compressed(body: bytes, encoding: bytes) -> Handler:
    head = OK + b"Content-Encoding: " + encoding + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    def handler(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head + body)

    return handler


BOMB = gzip.compress(b" " * 20_000_000, mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (BOMB, b"gzip", "over 1000000 bytes"),
        (gzip.compress(BOMB, mtime=0), b"gzip, gzip", "another encoding"),
        (b"data", b"br", "another encoding"),
        (b"data", b"gzip", "could not be reached"),
    ],
)
def test_size_of_a_compressed_answer_is_limited(
    body: bytes, encoding: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgbubbles.responses.MAX_BODY_BYTES", 1_000_000)
    with (
        handling(compressed(body, encoding)) as port,
        Client(transport_to(port)) as client,
        pytest.raises(MsgBubblesError, match=says),
    ):
        client.list_numbers()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="timeout_seconds"):
        Transport("https://127.0.0.1/v1", "sk_1", None, timeout_seconds=seconds)
