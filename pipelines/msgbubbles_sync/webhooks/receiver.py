"""The HTTP side: takes a delivery, checks it, and answers 2xx once it is on disk.

Everything that a sender can make large or slow has a limit: connections, the time for the head and for the body of a
request, a body, and what is in memory of all bodies together. No line that is logged holds anything of a body.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import WebhookSettings
from msgbubbles_sync.workspace import Workspace

from .bodies import TooLong, decompress
from .deliveries import split_deliveries
from .heartbeat import Heartbeat
from .metrics import Metrics
from .redact import CurrentPolicy, RedactDelivery
from .secrets import SecretStore
from .signature import Refusal, Scheme, check_request, signed_timestamp
from .spool import SpoolWriter, list_segments, spool_folder, webhooks_folder

MAX_CONNECTIONS = 500
HEAD_SECONDS = 5.0
BODY_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15
STOP_SECONDS = 10
HEARTBEAT_SECONDS = 5.0
# Of all requests at once.
MAX_BODIES_BYTES = 64 * 1024 * 1024
# A body that is too long is read this much further and thrown away, so that its sender sees the answer.
READ_TO_REFUSE = 8
SECONDS_BETWEEN_LINES = 60.0
STALE_SECRETS = "the secrets cannot be read; those that were known stay"


class Busy(Exception):  # noqa: N818 - says what to answer
    """There is no room for another body."""


@dataclass(frozen=True)
class Signed:
    """What the API has signed of a request. `body` is without its content encoding; `delivery_id` is null and
    `timestamp` empty where the scheme does not sign them.
    """

    body: bytes
    delivery_id: str | None
    timestamp: str


class Receiver:
    """Takes deliveries for one warehouse. `say` gets lines for the log."""

    def __init__(
        self,
        settings: WebhookSettings,
        secrets: SecretStore,
        spool: SpoolWriter,
        heartbeat: Heartbeat,
        say: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        left_of: RedactDelivery = lambda delivery: delivery,
    ) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._scheme = Scheme(
            settings.signature_header.lower(),
            settings.timestamp_header.lower(),
            settings.id_header.lower(),
            settings.signed_content,
            settings.digest,
            settings.tolerance_seconds,
        )
        self._secrets = secrets
        self._spool = spool
        self._heartbeat = heartbeat
        self._say = say
        self._now = now
        self._left_of = left_of
        self._bodies_bytes = 0
        self._said: dict[str, float] = {}

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route(self._settings.path, self.receive, methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    async def receive(self, request: Request) -> Response:
        began = time.perf_counter()
        held = 0
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body, held = await self._body(request)
            except TimeoutError:
                return self._refused("slow", 408)
            except TooLong:
                return self._refused("too_long", 413)
            except Busy:
                return self._refused("busy", 503)
            except ClientDisconnect:
                return self._refused("cut_off", 400)
            return await self._received(request, body, began)
        finally:
            self._hold(-held)

    async def _received(self, request: Request, body: bytes, began: float) -> Response:
        now = self._now()
        try:
            signed = self._signed(request, body, now)
        except TooLong:
            return self._refused("too_long", 413)
        if isinstance(signed, Refusal):
            return self._refused(signed.value, 401, self._hint(request) if signed is Refusal.UNSIGNED else "")
        more = 0 if signed.body is body else len(signed.body)
        if more and self._bodies_bytes + more > MAX_BODIES_BYTES:
            return self._refused("busy", 503)
        self._hold(more)
        try:
            return await self._kept(signed, now, began)
        finally:
            self._hold(-more)

    async def _kept(self, signed: Signed, now: datetime, began: float) -> Response:
        deliveries = split_deliveries(signed.body, signed.delivery_id, signed.timestamp, now)
        try:
            left = [one for one in map(self._left_of, deliveries) if one is not None]
        except UsageError:
            return self._refused("privacy", 503, "the privacy settings are not those of the warehouse; run a sync")
        except (OSError, sqlite3.Error) as error:
            return self._refused("disk", 503, f"the vault cannot be written ({type(error).__name__})")
        if len(left) < len(deliveries):
            self.metrics.deliveries.labels("erased").inc(len(deliveries) - len(left))
        outcomes = [asyncio.wrap_future(self._spool.put(one)) for one in left]
        for outcome in await asyncio.gather(*outcomes, return_exceptions=True):
            if isinstance(outcome, OSError):
                # Those that are stored are duplicates when all come again.
                return self._refused("disk", 503, f"the spool cannot be written: {outcome.strerror}")
            if isinstance(outcome, BaseException):
                raise outcome
            self.metrics.deliveries.labels(outcome).inc()
        if left:
            self._heartbeat.saw(now)
            self.metrics.seconds.observe(time.perf_counter() - began)
        return Response(status_code=204)

    async def health(self, _request: Request) -> Response:
        """200 while deliveries can be stored, as far as the last one tells."""
        is_well = self._spool.is_alive
        content = json.dumps({"status": "ok" if is_well else "the spool cannot be written"})
        return Response(content, 200 if is_well else 503, media_type="application/json")

    async def show_metrics(self, _request: Request) -> Response:
        waiting = list_segments(self._spool.folder)
        self.metrics.spool_segments.set(len(waiting))
        self.metrics.spool_bytes.set(sum(_size(path) for path in waiting))
        self.metrics.bodies_bytes.set(self._bodies_bytes)
        self.metrics.syncs.set(self._spool.syncs)
        if self._heartbeat.last_event_at is not None:
            self.metrics.last_event.set(self._heartbeat.last_event_at.timestamp())
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _body(self, request: Request) -> tuple[bytes, int]:
        """The body, and how many bytes of memory it holds. What is held is let go of when this raises."""
        limit = self._settings.max_body_bytes
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit * READ_TO_REFUSE:
            raise TooLong
        chunks: list[bytes] = []
        size = held = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit * READ_TO_REFUSE:
                    raise TooLong
                if size > limit:
                    chunks.clear()
                    self._hold(-held)
                    held = 0
                    continue
                if self._bodies_bytes + len(chunk) > MAX_BODIES_BYTES:
                    raise Busy
                self._hold(len(chunk))
                held += len(chunk)
                chunks.append(chunk)
            if size > limit:
                raise TooLong
        except BaseException:
            self._hold(-held)
            raise
        return b"".join(chunks), held

    def _hold(self, size: int) -> None:
        self._bodies_bytes += size

    def _signed(self, request: Request, body: bytes, now: datetime) -> Signed | Refusal:
        """What is signed of a request: the body as it came over the wire, or without its content encoding. Raises
        `TooLong`.
        """
        names = (self._scheme.signature_header, self._scheme.timestamp_header)
        headers = dict(request.headers) | {
            name: "\n".join(request.headers.getlist(name)) for name in names if name in request.headers
        }
        refusal, signed_body = self._refusal(headers, body, now), body
        if refusal is Refusal.UNSIGNED or refusal is Refusal.STALE:
            return refusal
        plain = decompress(body, headers.get("content-encoding", ""), self._settings.max_body_bytes)
        if refusal is not None and plain is not None:
            refusal, signed_body = self._refusal(headers, plain, now), plain
        if refusal is not None:
            return refusal
        return Signed(
            body if plain is None else plain,
            # An id that nobody has signed may be anybody's.
            headers.get(self._scheme.id_header) if self._scheme.signs("id") else None,
            signed_timestamp(self._scheme, self._secrets.secrets, headers, signed_body) or "",
        )

    def _refusal(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Refusal | None:
        def checked() -> Refusal | None:
            return check_request(self._scheme, self._secrets.secrets, headers, body, now.timestamp())

        refusal = checked()
        if refusal is Refusal.FORGED and self._changed_secrets():
            refusal = checked()
        return refusal

    def _changed_secrets(self) -> bool:
        """A secret that was added while this runs is known when it is first needed."""
        try:
            return self._secrets.changed()
        except Exception:
            self._say(STALE_SECRETS)
            return False

    def _refused(self, reason: str, status: int, hint: str = "") -> Response:
        self.metrics.deliveries.labels(reason).inc()
        self._say_at_times(reason, f"refused with {status}: {reason}{f'; {hint}' if hint else ''}")
        # What is left of the request is not waited for.
        headers = {"Connection": "close"} if status != 401 else None
        return Response(json.dumps({"error": reason}), status, headers, media_type="application/json")

    def _say_at_times(self, what: str, line: str) -> None:
        now = time.monotonic()
        if now - self._said.get(what, -SECONDS_BETWEEN_LINES) >= SECONDS_BETWEEN_LINES:
            self._said[what] = now
            self._say(f"{line} (said once a minute)")

    def _hint(self, request: Request) -> str:
        """Which headers came instead: a scheme that is not the configured one is found out by them."""
        names = [name for name in request.headers if re.fullmatch(r"[a-z0-9-]{1,40}", name)][:20]
        return f"expected {', '.join(self._scheme.headers)}, came with {', '.join(names)}"

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                await asyncio.to_thread(self._beat)  # it waits for the disk
                await asyncio.sleep(HEARTBEAT_SECONDS)

        beating = asyncio.create_task(beat())
        yield
        beating.cancel()
        await asyncio.to_thread(self._spool.close)
        self._beat()

    def _beat(self) -> None:
        try:
            self._heartbeat.beat()
        except OSError as error:
            # The next one may be written.
            self._say_at_times("heartbeat", f"the sign of life cannot be written: {error.strerror}")


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which waits for the head of a request as long as it takes, with a limit to that."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._forget_timer()
        elif self._head_timer is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self._is_answering():
            self.transport.abort()


def server_of(receiver: Receiver) -> uvicorn.Server:
    """Stops at SIGTERM or SIGINT: takes nothing new, answers what it has taken, and closes the spool."""
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


def _size(path: Any) -> int:
    try:
        return int(path.stat().st_size)
    except FileNotFoundError:
        return 0


def to_log(line: str) -> None:
    with suppress(OSError):  # a log on a full disk costs the line, and nothing else
        sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
        sys.stderr.flush()


def build_receiver(
    workspace: Workspace, settings: WebhookSettings, secrets: SecretStore, say: Callable[[str], None]
) -> Receiver:
    folder = webhooks_folder(workspace)
    folder.mkdir(mode=0o700, exist_ok=True)
    left_of = CurrentPolicy(workspace).redact_delivery
    return Receiver(settings, secrets, SpoolWriter(spool_folder(workspace)), Heartbeat(folder), say, left_of=left_of)


def open_listener(settings: WebhookSettings) -> tuple[socket.socket, str]:
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
