"""The HTTP receiver: verifies a delivery and answers 2xx once it is on disk.

Everything that a sender can make large or slow has a limit: the connections, the time for the head and the body of a
request, a body, and all bodies in memory. Nothing of a body is logged.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvicorn
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from msgbubbles.errors import ConfigurationError
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.workspace import Workspace

from .bodies import BodyTooLongError, decompress
from .deliveries import TEST_EVENT, split_deliveries
from .heartbeat import Heartbeat
from .metrics import Metrics
from .redact import CurrentPolicy, RedactDelivery
from .secrets import SecretStore
from .signature import Refusal, check_request, find_signed_timestamp, is_signed, list_required_headers
from .spool import SpoolWriter, spool_folder, stat_segments, webhooks_folder

MAX_CONNECTIONS = 500
HEAD_SECONDS = 5.0
BODY_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15
STOP_SECONDS = 10
HEARTBEAT_SECONDS = 5.0
# Of all requests together.
MAX_BODIES_BYTES = 64 * 1024 * 1024
# A body is read up to this multiple of the limit and dropped, so that its sender gets the answer.
DRAIN_FACTOR = 8
LOG_INTERVAL_SECONDS = 60.0
STALE_SECRETS = "the secrets cannot be read; the previous ones stay in use"


class BusyError(Exception):
    """The limit of all bodies in memory is reached."""


@dataclass(frozen=True)
class Signed:
    """The signed parts of a request.

    `body` is decompressed. `delivery_id` is null and `timestamp` empty if the scheme does not sign them.
    """

    body: bytes
    delivery_id: str | None
    timestamp: str


@dataclass
class Receiver:
    """Receives the deliveries of one warehouse. `say` writes a line to the log."""

    settings: WebhookSettings
    secrets: SecretStore
    spool: SpoolWriter
    heartbeat: Heartbeat
    say: Callable[[str], None]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    redact: RedactDelivery = lambda delivery: delivery
    metrics: Metrics = field(default_factory=Metrics)
    bodies_bytes: int = 0
    logged_at: dict[str, float] = field(default_factory=dict)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route(self.settings.path, self.receive, methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    async def receive(self, request: Request) -> Response:
        began = time.perf_counter()
        try:
            with self._memory() as take:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await self._read_body(request, take)
                now = self.now()
                signed = self._verify(request, body, now)
                if isinstance(signed, Refusal):
                    return self._refuse(signed.value, 401, self._suggest(request) if signed is Refusal.UNSIGNED else "")
                take(0 if signed.body is body else len(signed.body))
                return await self._store(signed, now, began)
        except TimeoutError:
            return self._refuse("slow", 408)
        except BodyTooLongError:
            return self._refuse("too_long", 413)
        except BusyError:
            return self._refuse("busy", 503)
        except ClientDisconnect:
            return self._refuse("cut_off", 400)

    @contextmanager
    def _memory(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes of memory until the block ends. It raises `BusyError` at the limit."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > 0 and self.bodies_bytes + size > MAX_BODIES_BYTES:
                raise BusyError
            self.bodies_bytes += size
            taken += size

        try:
            yield take
        finally:
            self.bodies_bytes -= taken

    async def _store(self, signed: Signed, now: datetime, began: float) -> Response:
        deliveries = split_deliveries(signed.body, signed.delivery_id, signed.timestamp, now)
        try:
            redacted = [delivery for delivery in map(self.redact, deliveries) if delivery is not None]
        except ConfigurationError:
            return self._refuse("privacy", 503, "the configured policy is not that of the warehouse; run a sync")
        except (OSError, sqlite3.Error) as error:
            return self._refuse("disk", 503, f"the vault cannot be written ({type(error).__name__})")
        if len(redacted) < len(deliveries):
            self.metrics.deliveries.labels("erased").inc(len(deliveries) - len(redacted))
        outcomes = [asyncio.wrap_future(self.spool.put(delivery)) for delivery in redacted]
        for outcome in await asyncio.gather(*outcomes, return_exceptions=True):
            if isinstance(outcome, OSError):
                # The sender retries all; those that were stored are then duplicates.
                return self._refuse("disk", 503, f"the spool cannot be written: {outcome.strerror}")
            if isinstance(outcome, BaseException):
                raise outcome
            self.metrics.deliveries.labels(outcome).inc()
        if any(not delivery.event_id.startswith(TEST_EVENT) for delivery in redacted):
            self.heartbeat.last_event_at = now
        if redacted:
            self.metrics.seconds.observe(time.perf_counter() - began)
        return Response(status_code=204)

    async def health(self, _request: Request) -> Response:
        """Answer 200 if the last delivery could be stored, else 503."""
        is_healthy = self.spool.is_alive
        content = json.dumps({"status": "ok" if is_healthy else "the spool cannot be written"})
        return Response(content, 200 if is_healthy else 503, media_type="application/json")

    async def show_metrics(self, _request: Request) -> Response:
        waiting = stat_segments(self.spool.folder)
        self.metrics.spool_segments.set(len(waiting))
        self.metrics.spool_bytes.set(sum(segment.st_size for segment in waiting))
        self.metrics.bodies_bytes.set(self.bodies_bytes)
        self.metrics.syncs.set(self.spool.syncs)
        if self.heartbeat.last_event_at is not None:
            self.metrics.last_event.set(self.heartbeat.last_event_at.timestamp())
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _read_body(self, request: Request, take: Callable[[int], None]) -> bytes:
        limit = self.settings.max_body_bytes
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit * DRAIN_FACTOR:
            raise BodyTooLongError
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit * DRAIN_FACTOR:
                raise BodyTooLongError
            if size > limit:
                take(-sum(map(len, chunks)))
                chunks.clear()
            else:
                take(len(chunk))
                chunks.append(chunk)
        if size > limit:
            raise BodyTooLongError
        return b"".join(chunks)

    def _verify(self, request: Request, body: bytes, now: datetime) -> Signed | Refusal:
        """Verify the signature over the body as sent, or else as decompressed. Raises `BodyTooLongError`."""
        names = (self.settings.signature_header, self.settings.timestamp_header)
        headers = dict(request.headers) | {
            name: "\n".join(request.headers.getlist(name)) for name in names if name in request.headers
        }
        refusal, signed_body = self._check(headers, body, now), body
        if refusal is Refusal.UNSIGNED or refusal is Refusal.STALE:
            return refusal
        plain = decompress(body, headers.get("content-encoding", ""), self.settings.max_body_bytes)
        if refusal is not None and plain is not None:
            refusal, signed_body = self._check(headers, plain, now), plain
        if refusal is not None:
            return refusal
        return Signed(
            body if plain is None else plain,
            # An unsigned id could be forged.
            headers.get(self.settings.id_header) if is_signed(self.settings, "id") else None,
            find_signed_timestamp(self.settings, self.secrets.secrets, headers, signed_body) or "",
        )

    def _check(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Refusal | None:
        refusal = check_request(self.settings, self.secrets.secrets, headers, body, now.timestamp())
        if refusal is Refusal.FORGED and self._reload_secrets():
            refusal = check_request(self.settings, self.secrets.secrets, headers, body, now.timestamp())
        return refusal

    def _reload_secrets(self) -> bool:
        try:
            return self.secrets.reload()
        except Exception:
            self.say(STALE_SECRETS)
            return False

    def _refuse(self, reason: str, status: int, hint: str = "") -> Response:
        self.metrics.deliveries.labels(reason).inc()
        self.heartbeat.record_refusal(reason)
        self._log(reason, f"refused with {status}: {reason}{f'; {hint}' if hint else ''}")
        # Do not wait for the rest of the request.
        headers = {"Connection": "close"} if status != 401 else None
        return Response(json.dumps({"error": reason}), status, headers, media_type="application/json")

    def _log(self, topic: str, line: str) -> None:
        """Log a line, at most once a minute for each topic."""
        now = time.monotonic()
        if now - self.logged_at.get(topic, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
            self.logged_at[topic] = now
            self.say(f"{line} (logged once a minute)")

    def _suggest(self, request: Request) -> str:
        """List the headers of a request, from which the right configuration can be found out."""
        names = [name for name in request.headers if re.fullmatch(r"[a-z0-9-]{1,40}", name)][:20]
        return f"expected {', '.join(list_required_headers(self.settings))}, got {', '.join(names)}"

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                await asyncio.to_thread(self._beat)

        await asyncio.to_thread(self._beat)  # a receiver that answers is shown as running
        beating = asyncio.create_task(beat())
        yield
        beating.cancel()
        await asyncio.to_thread(self.spool.close)
        self._beat(self.heartbeat.close)

    def _beat(self, write: Callable[[], None] | None = None) -> None:
        try:
            (write or self.heartbeat.beat)()
        except OSError as error:
            self._log("heartbeat", f"the heartbeat cannot be written: {error.strerror}")


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with limits for the number of connections and the time for the head of a request."""

    _head_timer: asyncio.TimerHandle | None = None
    _connected_at: float = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._connected_at = time.monotonic()
        self._start_timer()
        connections = [one for one in self.connections if isinstance(one, PatientProtocol) and one.is_open]
        if len(connections) > MAX_CONNECTIONS:
            # A sender needs milliseconds for a request, so the oldest connection without one is nobody's loss.
            waiting = [one for one in connections if not one.has_request]
            min(waiting, key=lambda one: one._connected_at).transport.abort()

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    @property
    def has_request(self) -> bool:
        """Whether a request has arrived whole, and is being answered."""
        return self.cycle is not None and self._is_answering() and not self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._cancel_timer()
        elif self._head_timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort)

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort(self) -> None:
        self._head_timer = None
        if not self._is_answering():
            self.transport.abort()


def build_server(receiver: Receiver) -> uvicorn.Server:
    """Build a server that on SIGTERM or SIGINT accepts nothing new, answers open requests, and closes the spool."""
    config = uvicorn.Config(
        receiver.app(),
        http=PatientProtocol,
        ws="none",
        log_level="critical",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)


def write_log(line: str) -> None:
    with suppress(OSError):  # the log may be on a full disk
        sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
        sys.stderr.flush()


def build_receiver(
    workspace: Workspace, settings: WebhookSettings, secrets: SecretStore, say: Callable[[str], None]
) -> Receiver:
    folder = webhooks_folder(workspace)
    folder.mkdir(mode=0o700, exist_ok=True)
    redact, heartbeat = CurrentPolicy(workspace).redact_delivery, Heartbeat(folder, settings.port)
    return Receiver(settings, secrets, SpoolWriter(spool_folder(workspace)), heartbeat, say, redact=redact)


def open_listener(settings: WebhookSettings) -> tuple[socket.socket, str]:
    """Open a socket that accepts connections. Returns it and its URL. Raises `UsageError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # If the protocol is given, asyncio sets TCP_NODELAY, which saves small answers 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        address = f"{settings.host}:{settings.port}"
        raise UsageError(f"cannot listen on {address} ({error.strerror}). Choose another --port or --host.") from None
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    return listener, f"http://{host}:{listener.getsockname()[1]}{settings.path}"
