"""Send requests to the API: pace them, retry them, and raise failures as the errors of `errors`.

All requests are retried, because all are safe to repeat: those that create something send an `Idempotency-Key`.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import httpx
import msgspec
import tenacity
from tenacity import RetryCallState

from . import responses
from .api_time import Clock
from .deadline import deadline, enforce_deadlines
from .environment import check_certificates, check_proxies
from .errors import (
    ConfigurationError,
    Interrupted,
    LimitReached,
    PermanentError,
    RateLimitedError,
    RetryableError,
    UnreachableError,
)
from .page_size import PageSize
from .rate_limit import WINDOW_SECONDS, RateLimiter
from .responses import Answer
from .settings import BASE_URL_HELP, DEFAULTS, MAX_TIMEOUT_SECONDS, is_base_url
from .version import VERSION

T = TypeVar("T")


def _redact_handles(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            re.sub("/participants/[^/?#]+", "/participants/:handle", str(arg)) if isinstance(arg, httpx.URL) else arg
            for arg in record.args
        )
    return True


# At INFO, httpx logs whole URLs, and a participant's URL ends with a handle. The filter applies at any log level.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpx").addFilter(_redact_handles)

USER_AGENT = f"msgbubbles-sync/{VERSION}"
# The latency is the mean of about this many answers.
LATENCY_MEMORY = 5


@dataclass
class Traffic:
    """Counts of requests and answers, for progress and the run record.

    Attributes:
        answered: Requests that succeeded.
        window_requests: Requests of all processes in the current window, out of `window_limit`; 0 without a limiter.
        retry_after: Whether a 429 had a `Retry-After`; null before the first 429.
        latency_seconds: A moving mean.
        page_sizes: The page sizes that work, by endpoint.
    """

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


class Transport:
    """Sends requests with one key to one base URL. It is thread-safe.

    `stop` interrupts every wait and prevents further requests. `traffic`, which may be shared, counts the requests;
    `max_requests` limits that count, retries included. `timeout_seconds` applies to a whole exchange, from connecting
    to the last byte. `max_attempts` limits the attempts of one request. A 429 is no attempt: waiting for those ends
    after `rate_limit_patience_seconds` in total.

    `last_answer` is the last success. `last_error_message` is the API's text for people about the last request, if that
    failed. It may quote anything, so no error contains it.
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
                "Accept-Encoding": responses.ENCODINGS,
                "User-Agent": USER_AGENT,
            },
            timeout=timeout_seconds,
            verify=_build_ssl_context(),
            # The key goes to the configured host and to no other.
            follow_redirects=False,
            # Proxies from the environment do not apply to this machine.
            trust_env=not is_loopback(url.host),
        )
        enforce_deadlines(self._http)

    def close(self) -> None:
        self._http.close()
        if self._rate_limiter:
            self._rate_limiter.close()

    @contextmanager
    def at_most(self, attempts: int, patience_seconds: float = math.inf) -> Iterator[None]:
        """Limit the attempts of each request, and the time that it is repeated after 429, until the block ends."""
        configured = self.max_attempts, self._patience_seconds
        self.max_attempts = min(self.max_attempts, attempts)
        self._patience_seconds = min(self._patience_seconds, patience_seconds)
        try:
            yield
        finally:
            self.max_attempts, self._patience_seconds = configured

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

        `endpoint` is the template of the route, under which requests are counted. If `decode` raises
        `msgspec.DecodeError`, the request is repeated. `params` returns the query of each attempt, which may depend on
        earlier calls of `on_failure`. `max_attempts` is the transport's by default.

        Raises the errors of `errors`; `RetryableError` after the last attempt.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        content = None
        if json is not None:
            content = msgspec.json.encode(json)
            headers["Content-Type"] = "application/json"
        limit = _RetryLimit(max_attempts or self.max_attempts, self._patience_seconds)

        def attempt() -> T:
            request = None
            query = params() or None
            with suppress(httpx.InvalidURL, UnicodeEncodeError):
                request = self._http.build_request(method, path, params=query, content=content, headers=headers)
            if request is None:
                # An id of 100,000 characters. Raised here, because httpx's error may quote it.
                raise PermanentError(f"{endpoint}: an id cannot be part of a URL")
            try:
                self._wait_for_turn(endpoint)
                return self._decode(self._send(request), decode, endpoint)
            except RetryableError as error:
                on_failure(error)
                raise

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetryableError),
            stop=limit.is_reached,
            wait=self._seconds_before_retry,
            sleep=self._sleep,
            before_sleep=self._note_retry,
            reraise=True,
        )
        return retrying(attempt)

    def _wait_for_turn(self, endpoint: str) -> None:
        """Wait until a request may be sent, and count it. Raises `LimitReached` if the run may send no more."""
        while True:
            if self._stop.is_set():
                raise Interrupted("stopped")
            with self._counting:
                if self.max_requests is not None and self.traffic.total >= self.max_requests:
                    raise LimitReached("requests", f"the {self.max_requests} requests allowed to this run are used up")
                wait = self._rate_limiter.acquire() if self._rate_limiter else 0.0
                if wait <= 0:
                    self.traffic.requests[endpoint] += 1
                    break
            self._on_wait("rate limit", wait)
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
                with closing(response):
                    body = responses.read_body(response)
            self.traffic.received_bytes += len(body)
            self._note_latency(time.monotonic() - began)
        except httpx.ReadTimeout:
            fault = f"the API gave no complete answer within {self._timeout_seconds:g} s (timeout_seconds)"
        except (httpx.TransportError, httpx.DecodingError) as error:
            fault = f"the API could not be reached: {responses.describe_connection_error(error, request.url.host)}"
            kind = UnreachableError if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else RetryableError
        if fault:
            # Raised here, not from httpx's error, which contains the URL and may quote a header.
            raise kind(fault)
        date = responses.read_date(response)
        self.clock.note_date(date, fetched_at, is_success=response.is_success)
        if not response.is_success:
            self.last_error_message = responses.read_error_message(body)
            raise responses.build_error(response, body)
        server_at = self.clock.api.at(date, fetched_at)
        answer = Answer(response.status_code, body, responses.read_request_id(response), fetched_at, server_at, date)
        self.last_answer = answer
        return answer

    def _decode(self, answer: Answer, decode: Callable[[Answer], T], endpoint: str) -> T:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = decode(answer)
            self.traffic.answered += 1
            return decoded
        # Raised here, not from the decoder's error, which may quote the body.
        raise RetryableError(f"{endpoint}: malformed answer", status=answer.status, request_id=answer.request_id)

    def _note_latency(self, seconds: float) -> None:
        """Update the mean latency; a single slow answer counts little."""
        before = self.traffic.latency_seconds or seconds
        self.traffic.latency_seconds = before + (min(seconds, 2 * before) - before) / LATENCY_MEMORY

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
        self._on_wait("429 from the API" if limited else str(error), state.upcoming_sleep)


@cache
def _build_ssl_context() -> ssl.SSLContext:
    """Load the trusted certificates, once for all clients: it takes some 40 ms."""
    check_certificates()
    return httpx.create_ssl_context()


class _RetryLimit:
    """Limits the retries of one request: by number for failures, by time for 429."""

    def __init__(self, max_attempts: int, patience_seconds: float) -> None:
        self._attempts_left = max_attempts
        self._patience_seconds = patience_seconds
        self._limited_since: float | None = None

    def is_reached(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RateLimitedError):
            self._limited_since = self._limited_since or time.monotonic()
            return time.monotonic() + state.upcoming_sleep > self._limited_since + self._patience_seconds
        self._attempts_left -= 1
        return self._attempts_left <= 0


def check_base_url(base_url: str) -> httpx.URL:
    """Return the base URL. Raises `ConfigurationError` unless it is https, or http to this machine."""
    try:
        if not is_base_url(base_url):
            raise httpx.InvalidURL("")
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        raise ConfigurationError(f"base_url must be {BASE_URL_HELP}") from None
    if url.scheme == "https" or is_loopback(url.host):
        return url
    raise ConfigurationError("base_url begins with http://: the key would be sent unencrypted; use https://")


def _check_key(api_key: str) -> None:
    # httpx would quote it where it cannot be a header.
    if not re.fullmatch("[!-~]+", api_key) or api_key[0] in "'\"":
        raise ConfigurationError("api_key is empty, or has spaces, quotes or other characters that no key has")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
