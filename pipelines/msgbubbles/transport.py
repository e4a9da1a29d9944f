"""One request to the API: paced, retried, and with its failures sorted by what can be done about them.

Every method is safe to repeat (writes that create carry an `Idempotency-Key`), so every request is retried.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

import httpx
import msgspec
import tenacity
from tenacity import RetryCallState

from .api_time import ApiTime
from .deadline import deadline, enforce_deadlines
from .environment import check_certificates, check_proxies
from .errors import (
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    Interrupted,
    NotFoundError,
    PermanentError,
    RateLimitedError,
    RequestsSpent,
    RetryableError,
    UnreachableError,
)
from .mentions import has_handle
from .page_size import PageSize
from .rate_limit import WINDOW_SECONDS, RateLimiter
from .settings import DEFAULTS, MAX_TIMEOUT_SECONDS

T = TypeVar("T")


def _without_handles(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            re.sub("/participants/[^/?#]+", "/participants/:handle", str(arg)) if isinstance(arg, httpx.URL) else arg
            for arg in record.args
        )
    return True


# At INFO httpx logs whole URLs, and a participant's URL ends with a handle; so also where its level is set elsewhere.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpx").addFilter(_without_handles)

VERSION = "0.1.0"
USER_AGENT = f"msgbubbles-sync/{VERSION}"
# Of about how many answers the latency is the mean.
LATENCY_MEMORY = 5
# A page of 100 messages with long texts is well under a megabyte. What is far over it is not an answer of this API.
MAX_BODY_BYTES = 64 * 1024 * 1024
# Both expand a read of 64 KB to that size at most. What others, or several together, make of it has no such bound.
ENCODINGS = "gzip, deflate"


class Clock:
    """Wall time that never goes back: which of two readings of a row is the newer must not depend on a clock that was
    set back in between. `wall` gives the time, UTC. `api` is what is known of the API's clock."""

    def __init__(self, wall: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.api = ApiTime()
        self._wall = wall
        self._last_at = datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            self._last_at = max(self._wall(), self._last_at + timedelta(microseconds=1))
            return self._last_at


@dataclass
class Traffic:
    """What was sent and what came back, for progress and the run record. `answered` requests got what they asked for.
    `window_requests` are the requests of all
    processes in the current window; without a budget it is 0. `retry_after` is whether a 429 said how long to wait,
    null where there was none. `latency_seconds` is how long the last requests took to be answered. `page_sizes` are
    those that the API can make, by endpoint."""

    requests: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    rate_limited: int = 0
    retry_after: bool | None = None
    retries: int = 0
    received_bytes: int = 0
    paced_seconds: float = 0.0
    window_requests: int = 0
    window_limit: int = 0
    latency_seconds: float = 0.0
    page_sizes: dict[str, PageSize] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.requests.total()


@dataclass(frozen=True)
class Answer:
    """A successful response. `read_at` is when it was asked for, `server_at` the API's clock then, and `date` what the
    response says of that, null if nothing that can be read (all UTC)."""

    status: int
    body: bytes
    request_id: str | None
    fetched_at: datetime
    server_at: datetime
    date: datetime | None = None


class _ErrorBody(msgspec.Struct):
    error: str | None = None
    message: str | None = None
    request_id: str | None = None


class Transport:
    """Sends requests with one key to one base URL.

    It may be used by several threads. `stop` interrupts every wait, and keeps another request from being sent. Requests
    are counted in `traffic`, which may be shared; `max_requests` bounds that count, retries included.
    `timeout_seconds` is for a whole exchange, from connecting to the last byte of the answer. `max_attempts` bounds the
    tries of one request; answers of 429 do not count as tries, but are waited for no longer than
    `rate_limit_patience_seconds` together.
    `last_answer` is the last success, for who wants to know its status and request id. `last_error_message` is what the
    API said
    for humans to the last request, if that failed: it may quote anything, so it is in no error.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        rate_limiter: RateLimiter | None,
        *,
        timeout_seconds: float = DEFAULTS.timeout_seconds,
        max_attempts: int = DEFAULTS.max_attempts,
        max_backoff_seconds: float = 30.0,
        rate_limit_patience_seconds: float = 600.0,
        traffic: Traffic | None = None,
        max_requests: int | None = None,
        stop: threading.Event | None = None,
        on_wait: Callable[[str, float], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        url = check_base_url(base_url)
        _check_key(api_key)
        if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise ConfigurationError(
                f"timeout_seconds is {timeout_seconds}; set it to more than 0 and at most {MAX_TIMEOUT_SECONDS:.0f}"
            )
        self.traffic = traffic or Traffic()
        self.max_attempts = max_attempts
        self.max_requests = max_requests
        self.last_answer: Answer | None = None
        self.last_error_message: str | None = None
        self._rate_limiter = rate_limiter
        self._stop = stop or threading.Event()
        self._on_wait = on_wait or (lambda _why, _seconds: None)
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = rate_limit_patience_seconds
        self._counting = threading.Lock()
        self._backoff = tenacity.wait_random_exponential(multiplier=0.5, max=max_backoff_seconds)
        self.clock = clock or Clock()
        if not is_loopback(url.host):
            check_proxies()
        self._http = httpx.Client(
            base_url=url,
            headers={
                "Authorization": f"Bearer {api_key}",
                "Accept": "application/json",
                "Accept-Encoding": ENCODINGS,
                "User-Agent": USER_AGENT,
            },
            timeout=timeout_seconds,
            verify=_build_ssl_context(),
            # The key goes to the configured host and to no other.
            follow_redirects=False,
            # A proxy from the environment is for the way out, not for this machine.
            trust_env=not is_loopback(url.host),
        )
        enforce_deadlines(self._http)

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        if self._rate_limiter:
            self._rate_limiter.close()

    @contextmanager
    def at_most(self, attempts: int) -> Iterator[None]:
        """Try each request no more often than this until the block ends."""
        configured = self.max_attempts
        self.max_attempts = min(configured, attempts)
        try:
            yield
        finally:
            self.max_attempts = configured

    def request(
        self,
        method: str,
        path: str,
        *,
        endpoint: str,
        decode: Callable[[Answer], T],
        params: Callable[[], Mapping[str, str | int]] = dict,
        on_failure: Callable[[RetryableError], None] = lambda _error: None,
        max_attempts: int | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
    ) -> T:
        """Send one request until it succeeds, and decode its answer.

        `endpoint` is the route's template, under which the request is counted. `decode` raises
        `msgspec.DecodeError` for a malformed body; the request is then tried again. `params` gives the query of each
        try, which may depend on what `on_failure` learned from the tries before. `max_attempts` is the transport's by
        default.

        Raises the errors of `errors`; `RetryableError` when the tries are used up.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        content = None
        if json is not None:
            content = msgspec.json.encode(json)
            headers = {**(headers or {}), "Content-Type": "application/json"}
        waited = _Patience(max_attempts or self.max_attempts, self._patience_seconds)

        def attempt() -> T:
            try:
                return send()
            except RetryableError as error:
                on_failure(error)
                raise

        def send() -> T:
            query = params() or None
            request = None
            with suppress(httpx.InvalidURL, UnicodeEncodeError):
                request = self._http.build_request(method, path, params=query, content=content, headers=headers)
            if request is None:
                # An id of 100,000 characters. Raised here, because httpx's error may quote it.
                raise PermanentError(f"{endpoint}: an id is no part of a URL; the API cannot be asked for it")
            self._admit(endpoint)
            answer = self._send(request)
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                decoded = decode(answer)
                self.traffic.answered += 1
                return decoded
            # Raised here and not where the decoder's error is handled: that one may quote the body.
            raise RetryableError(f"{endpoint}: malformed answer", status=answer.status, request_id=answer.request_id)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetryableError),
            stop=waited.is_over,
            wait=self._seconds_before_retry,
            sleep=self._sleep,
            before_sleep=self._note_retry,
            reraise=True,
        )
        return retrying(attempt)

    def _admit(self, endpoint: str) -> None:
        """Count a request, once it may be sent."""
        while True:
            if self._stop.is_set():
                raise Interrupted("stopped")
            with self._counting:
                if self.max_requests is not None and self.traffic.total >= self.max_requests:
                    raise RequestsSpent(f"the {self.max_requests} requests allowed to this run are used up")
                wait = self._rate_limiter.acquire() if self._rate_limiter else 0.0
                if wait <= 0:
                    self.traffic.requests[endpoint] += 1
                    break
            self._on_wait("request budget", wait)
            self.traffic.paced_seconds += wait
            self._sleep(wait)
        if self._rate_limiter:
            self.traffic.window_requests = self._rate_limiter.count_requests()
            self.traffic.window_limit = self._rate_limiter.limit

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Interrupted("stopped")

    def _send(self, request: httpx.Request) -> Answer:
        fetched_at = self.clock.now()
        self.last_error_message = None
        fault, kind = "", RetryableError
        try:
            began = time.monotonic()
            with deadline(self._timeout_seconds):
                response = self._http.send(request, stream=True)
                try:
                    body = self._read_body(response)
                finally:
                    response.close()
            self._note_latency(time.monotonic() - began)
        except httpx.ReadTimeout:
            fault = f"the API gave no whole answer within {self._timeout_seconds:g} s (timeout_seconds)"
        except (httpx.TransportError, httpx.DecodingError) as error:
            fault = f"the API could not be reached: {_unreachable(error, request.url.host)}"
            kind = UnreachableError if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else RetryableError
        if fault:
            # Raised here and not from httpx's error, which knows the URL and may quote a header.
            raise kind(fault)
        request_id = _id_of(response.headers.get("X-Request-Id"))
        if response.is_success:
            date = _server_time(response)
            at = self.clock.api.at(date, fetched_at)
            answer = Answer(response.status_code, body, request_id, fetched_at, at, date)
            self.last_answer = answer
            return answer
        self.last_error_message = _error_of(body).message
        raise _failure(response, body, request_id)

    def _note_latency(self, seconds: float) -> None:
        """Learn of one answer how long they take; a single slow one says little."""
        before = self.traffic.latency_seconds or seconds
        self.traffic.latency_seconds = before + (min(seconds, 2 * before) - before) / LATENCY_MEMORY

    def _read_body(self, response: httpx.Response) -> bytes:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", *ENCODINGS.split(", ")):
            raise RetryableError(f"the answer is encoded otherwise than asked for, which was {ENCODINGS}")
        chunks = []
        size = 0
        for chunk in response.iter_bytes():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise RetryableError(f"an answer over {MAX_BODY_BYTES} bytes was cut off")
            chunks.append(chunk)
        self.traffic.received_bytes += size
        return b"".join(chunks)

    def _seconds_before_retry(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, RateLimitedError):
            return self._backoff(state)
        self.traffic.retry_after = error.retry_after_seconds is not None
        seconds = WINDOW_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
        if self._rate_limiter:
            self._rate_limiter.note_rate_limited(seconds)
        return seconds

    def _note_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        limited = isinstance(error, RateLimitedError)
        self.traffic.rate_limited += limited
        self.traffic.retries += not limited
        self._on_wait("429 from the API" if limited else "retry", state.upcoming_sleep)


@cache
def _build_ssl_context() -> ssl.SSLContext:
    """The certificates to trust. Reading them takes some 40 ms, and a run makes several clients."""
    check_certificates()
    return httpx.create_ssl_context()


class _Patience:
    """Ends the tries of one request: by number for faults, by time for 429."""

    def __init__(self, max_attempts: int, patience_seconds: float) -> None:
        self._attempts_left = max_attempts
        self._patience_seconds = patience_seconds
        self._limited_since: float | None = None

    def is_over(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimitedError):
            self._limited_since = self._limited_since or time.monotonic()
            return time.monotonic() + state.upcoming_sleep > self._limited_since + self._patience_seconds
        self._attempts_left -= 1
        return self._attempts_left <= 0


def check_base_url(base_url: str) -> httpx.URL:
    """The base URL, if a key may be sent there: https, or http to this machine."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        raise ConfigurationError("base_url is not a URL; expected one like https://api.msgbubbles.com/v1") from None
    if url.scheme == "https" and url.host:
        return url
    if url.scheme == "http" and is_loopback(url.host):
        return url
    raise ConfigurationError(
        f"base_url must begin with https:// (http:// only to this machine), not {url.scheme or 'nothing'}://: "
        "the key would travel in the clear"
    )


def _check_key(api_key: str) -> None:
    # httpx would quote it where it cannot be a header.
    if not re.fullmatch("[!-~]+", api_key):
        raise ConfigurationError("api_key is empty, or holds spaces or other characters that no key has")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unreachable(error: BaseException, host: str) -> str:
    """What kept an answer from coming, by its kind, and what to look at where that is plain."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"there is no host {host}; check base_url and the network"
        if isinstance(cause, ConnectionRefusedError):
            return f"nothing listens on {host}; check base_url"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__} ({host})"


def _server_time(response: httpx.Response) -> datetime | None:
    return _http_date(response.headers.get("Date"))


def _http_date(value: str | None) -> datetime | None:
    try:
        at = parsedate_to_datetime(value) if value else None
    except (ValueError, OverflowError):
        return None
    if at is None:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _failure(response: httpx.Response, body: bytes, request_id: str | None) -> Exception:
    status = response.status_code
    said = _error_of(body)
    # A stable code is a short word; anything else there is not one, and may hold anything.
    is_code = said.error and said.error.isidentifier() and len(said.error) <= 64 and not has_handle(said.error)
    code = said.error if is_code else None
    request_id = request_id or _id_of(said.request_id)
    # Not the reason phrase that was sent: it may say anything.
    message = f"the API answered {status} {code or httpx.codes.get_reason_phrase(status)}".rstrip()
    if status == 429:
        limited = RateLimitedError(message, status=status, code=code, request_id=request_id)
        now = _server_time(response) or datetime.now(UTC)
        limited.retry_after_seconds = retry_after_seconds(response.headers.get("Retry-After"), now)
        return limited
    if status == 401:
        return AuthenticationError(f"{message}: check the API key", status=status, code=code, request_id=request_id)
    if status == 403:
        hint = "the key is fine; this is closed to it, or the account is not active: ask MsgBubbles"
        return ForbiddenError(f"{message}: {hint}", status=status, code=code, request_id=request_id)
    if response.is_redirect:
        return PermanentError(
            f"{message}: redirects are not followed with the key; mend base_url",
            status=status,
            request_id=request_id,
        )
    kinds: dict[int, type[PermanentError]] = {404: NotFoundError, 409: ConflictError}
    is_passing = (status >= 500 and status != 501) or status in (408, 425)
    kind = RetryableError if is_passing else kinds.get(status, PermanentError)
    return kind(message, status=status, code=code, request_id=request_id)


def _error_of(body: bytes) -> _ErrorBody:
    try:
        return msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorBody()


def _id_of(value: str | None) -> str | None:
    """A request id, which errors and rejected rows quote; null if it is more than that."""
    return value if value and re.fullmatch("[A-Za-z0-9_-]{1,128}", value) else None


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a `Retry-After` header, one at least; null if it says nothing that can be read.

    It is a number of seconds, or an HTTP date to be compared with `now`, the API's clock.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        at = _http_date(value)
        if at is None:
            return None
        seconds = (at - now).total_seconds()
    return max(seconds, 1.0) if math.isfinite(seconds) else None
